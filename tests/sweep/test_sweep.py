"""Sweeps: cell ids say what made them, existing cells stay, pictures are those of the LoRA and of the base."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from lora_loom.trainer.config.run import GuidanceConfig
from lora_loom.trainer.errors import ConfigError, ModelFileError, RunError
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.runs.run_folder import RunFolder
from lora_loom.trainer.score.score import setting_of
from lora_loom.trainer.sweep.cells import (
    Axes,
    Rendering,
    SweptLora,
    count_cells,
    plan_cells,
    sheet_from_dict,
    sheet_to_dict,
)
from lora_loom.trainer.sweep.loras import expanded, file_labels, read_loras, run_loras
from lora_loom.trainer.sweep.run import (
    LargeSweepPrompt,
    check_count,
    load_sheet,
    sweep,
    vary,
    write_strips,
)
from tests.conftest import FAMILIES, SilentHost, make_config

RENDERING = Rendering(size=(64, 64), steps=2, sampler="euler", scheduler="normal", model="m")


def axes(tmp_path, **changes):
    loras = tuple(SweptLora(label=f"step {n}", digest=f"d{n}", path=tmp_path / f"{n}.safetensors") for n in (1, 2))
    values = {
        "loras": loras,
        "base": True,
        "strengths": (1.0,),
        "prompts": ("a", "b"),
        "negative": "",
        "seeds": (0, 1),
        "guidance": (GuidanceConfig(),),
    }
    return Axes(**{**values, **changes})


def test_base_comes_once_and_first(tmp_path):
    cells = plan_cells(axes(tmp_path, strengths=(0.5, 1.0)), [RENDERING], tmp_path)
    assert len(cells) == (1 + 2 * 2) * 2 * 2
    assert [cell.checkpoint for cell in cells[:4]] == ["base"] * 4
    assert all(cell.strength == 0 for cell in cells[:4])
    assert len({cell.id for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    "change",
    [{"negative": "x"}, {"prompts": ("a", "c")}, {"seeds": (0, 2)}, {"guidance": (GuidanceConfig(scale=5.0),)}],
    ids=str,
)
def test_ids_follow_what_makes_a_cell(tmp_path, change):
    before = {cell.id for cell in plan_cells(axes(tmp_path), [RENDERING], tmp_path)}
    after = {cell.id for cell in plan_cells(axes(tmp_path, **change), [RENDERING], tmp_path)}
    assert before != after
    for other in (
        replace(RENDERING, steps=3),
        replace(RENDERING, size=(64, 128)),
        replace(RENDERING, model="n"),
        replace(RENDERING, sampler="heun"),
    ):
        assert before.isdisjoint(cell.id for cell in plan_cells(axes(tmp_path), [other], tmp_path))


def test_ids_do_not_follow_names_and_labels(tmp_path):
    renamed = axes(tmp_path, loras=tuple(replace(lora, label="x" + lora.label, path=tmp_path / "y") for lora in axes(tmp_path).loras),
                   guidance=(GuidanceConfig(label="mine"),))  # fmt: skip
    assert [s.id for s in plan_cells(axes(tmp_path), [RENDERING], tmp_path)] == [
        s.id for s in plan_cells(renamed, [RENDERING], tmp_path)
    ]


def test_cells_that_were_made_without_the_text_encoder_are_made_again_and_no_others(tmp_path):
    """A host that loads a LoRA into its text encoder says so; versions that did not have made other images of the same files."""
    first, second = axes(tmp_path).loras
    before = plan_cells(axes(tmp_path), [RENDERING], tmp_path)
    changed = axes(tmp_path, loras=(first, replace(second, has_texts=True, loaded_into="model and clip")))
    after = plan_cells(changed, [RENDERING], tmp_path)
    assert [new.id == old.id for new, old in zip(after, before, strict=True)] == [cell.checkpoint != "step 2" for cell in before]  # fmt: skip
    assert [setting_of(cell) for cell in after] == [setting_of(cell) for cell in before], "they are compared as before"


def test_a_new_seed_only_adds_cells(tmp_path):
    few = {cell.id for cell in plan_cells(axes(tmp_path), [RENDERING], tmp_path)}
    many = {cell.id for cell in plan_cells(axes(tmp_path, seeds=(0, 1, 2)), [RENDERING], tmp_path)}
    assert few < many


@given(before=st.tuples(*[st.integers(1, 3)] * 4), after=st.tuples(*[st.integers(1, 3)] * 4))
@settings(max_examples=25)
def test_more_values_on_any_axis_only_add_cells(before, after):
    """Whatever is added to prompts, seeds, sizes and steps, the cells that were there keep their ids."""
    folder = Path("x")

    def ids(prompts, seeds, sizes, steps):
        renderings = vary(
            RENDERING,
            sizes=", ".join(f"{64 * (i + 1)}x64" for i in range(sizes)),
            step_counts=", ".join(str(2 + i) for i in range(steps)),
            samplers="",
        )
        chosen = axes(folder, prompts=tuple("abc"[:prompts]), seeds=tuple(range(seeds)))
        cells = plan_cells(chosen, renderings, folder)
        assert len(cells) == count_cells(chosen, renderings) == len({cell.id for cell in cells})
        return {cell.id for cell in cells}

    more = [max(pair) for pair in zip(before, after, strict=True)]
    assert ids(*before) <= ids(*more)


def test_a_cell_keeps_the_id_it_had_before_there_were_other_axes(tmp_path):
    """Written down once: whoever changes it makes everybody render everything anew."""
    cells = plan_cells(axes(tmp_path), [RENDERING], tmp_path)
    assert cells[0].id == "4e81a550165d1521dcb486a6a8f23bc9"


def test_an_immense_sweep_is_refused_before_it_is_planned(tmp_path):
    chosen = axes(tmp_path, seeds=tuple(range(1000)), strengths=tuple(range(1, 1001)))
    with pytest.raises(ConfigError, match=r"4,002,000 cells; 100,000 is the limit"):
        check_count(chosen, [RENDERING])


def test_a_large_sweep_asks_with_a_time_after_two_cells():
    asked = []

    def asking(answer):
        return LargeSweepPrompt(cells=1001, limit=1000, confirm=lambda text: asked.append(text) or answer)

    going = asking(True)
    for _ in range(4):
        going.rendered()
    assert len(asked) == 1
    assert asked[0].startswith("1,001 cells to render, about ")
    stopped = asking(False)
    stopped.rendered()
    with pytest.raises(ConfigError, match="more than sweep.max_cells = 1000"):
        stopped.rendered()
    small = LargeSweepPrompt(cells=1000, limit=1000, confirm=lambda text: pytest.fail("asked"))
    for _ in range(3):
        small.rendered()


def test_sheets_survive_json(tmp_path):
    cells = plan_cells(axes(tmp_path), [RENDERING], tmp_path)
    restored = sheet_from_dict(json.loads(json.dumps(sheet_to_dict(cells))), tmp_path)
    assert [(s.id, s.image, s.prompt) for s in restored] == [(s.id, s.image, s.prompt) for s in cells]


SWEEP = {"prompts": ["a red circle"], "seeds": "0,1", "steps": 2, "guidance": [{"scale": 2.0}]}


@pytest.fixture(scope="module", params=FAMILIES)
def finished(request, tmp_path_factory):
    """A trained run of each family, with a LoRA strong enough to see."""
    config = make_config(
        request.param,
        tmp_path_factory.mktemp("sweep"),
        sweep=SWEEP,
        optimizer={"learning_rate": 0.1},
        training={"steps": 4, "save_every": 2},
    )
    train(config, SilentHost())
    return config


def test_a_run_becomes_a_sheet(finished):
    sheet = sweep(finished, SilentHost())
    assert sheet.rendered == 6
    assert [cell.checkpoint for cell in sheet.cells] == ["base"] * 2 + ["step 2"] * 2 + ["step 4"] * 2
    pixels = {}
    for cell in sheet.cells:
        with Image.open(cell.image) as image:
            assert image.size == (64, 64)
            recipe = json.loads(image.info["lora_loom"])
            pixels[cell.checkpoint, cell.seed] = image.tobytes()
        assert (recipe["prompt"], recipe["seed"], recipe["id"]) == (cell.prompt, cell.seed, cell.id)
    assert len(set(pixels.values())) == 6, "every checkpoint and seed gives another picture"


def test_a_second_sweep_renders_nothing_and_a_lost_cell_comes_back_equal(finished, monkeypatch):
    sheet = sweep(finished, SilentHost())
    assert sheet.rendered == 0
    lost = sheet.cells[3].image
    before = Image.open(lost).tobytes()
    lost.unlink()
    again = sweep(finished, SilentHost())
    assert again.rendered == 1
    assert Image.open(lost).tobytes() == before
    monkeypatch.setattr("lora_loom.trainer.base_model.Base.load_denoiser", lambda *a: pytest.fail("loaded"))
    assert sweep(finished, SilentHost()).rendered == 0


def test_the_base_is_bit_identical_after_a_sweep(finished):
    """Cells rendered after others equal cells rendered alone: nothing of a LoRA stays behind."""
    sheet = sweep(finished, SilentHost())
    base = next(cell for cell in sheet.cells if cell.checkpoint == "base")
    before = Image.open(base.image).tobytes()
    for cell in sheet.cells:
        cell.image.unlink()
    config = replace(finished, sweep=replace(finished.sweep, strengths="0.5,1"))
    sweep(config, SilentHost())
    assert Image.open(base.image).tobytes() == before
    sweep(finished, SilentHost())


def test_sizes_steps_and_samplers_are_axes(finished):
    """New values render new cells only; any two axes go on rows and columns, the rest makes pages."""
    few = replace(finished.sweep, seeds="0", sizes="64x64", step_counts="2", samplers="euler/normal")
    assert sweep(replace(finished, sweep=few), SilentHost()).rendered == 0, "the same cells, written as lists"
    config = replace(
        finished,
        sweep=replace(few, base=False, sizes="64x64, 128x64", step_counts="1,2", samplers="euler/normal, heun/karras"),
    )
    sheet = sweep(config, SilentHost())
    assert (len(sheet.cells), sheet.rendered) == (2 * 8, 2 * 7)
    sizes = {tuple(cell.settings["size"]) for cell in sheet.cells}
    assert sizes == {(64, 64), (128, 64)}
    for cell in sheet.cells:
        with Image.open(cell.image) as image:
            assert image.size == tuple(cell.settings["size"])
    pages = write_strips(sheet, columns=("steps",), rows=("sampler",), title="t", name="axes")
    assert len(pages) == 2 * 2, "checkpoints and sizes"
    sweep(finished, SilentHost())


def test_more_cells_than_allowed_ask_first(finished):
    config = replace(finished, sweep=replace(finished.sweep, seeds="20-25 [6]", max_cells=3))
    with pytest.raises(ConfigError, match="18 cells to render, about"):
        sweep(config, SilentHost())
    assert sweep(config, SilentHost(), confirm=lambda text: True).rendered == 16, "two were kept"


def test_stopping_a_sweep_keeps_its_cells(finished):
    config = replace(finished, sweep=replace(finished.sweep, seeds="7,8"))

    class Impatient(SilentHost):
        count = 0

        def should_stop(self):
            self.count += 1
            return self.count == 3

    with pytest.raises(RunError, match="finished cells are kept"):
        sweep(config, Impatient())
    assert sweep(config, SilentHost()).rendered == 3


def test_strips_are_written(finished):
    sheet = sweep(finished, SilentHost())
    [path] = write_strips(load_sheet(sheet.folder), columns=("checkpoint",), rows=("seed",), title="test")
    with Image.open(path) as image:
        assert image.width > 3 * 160
        assert image.height > 2 * 160


def test_strengths_and_other_files(tmp_path, finished):
    loras = sorted((run_folder(finished).path / "loras").glob("run-*"))
    config = replace(finished, sweep=replace(finished.sweep, strengths="0-1 [2]", seeds="0", base=False))
    sheet = sweep(config, SilentHost(), loras[:1])
    assert [cell.strength for cell in sheet.cells] == [0.0, 1.0]
    plain = sweep(finished, SilentHost())
    base = next(cell for cell in plain.cells if cell.checkpoint == "base" and cell.seed == 0)
    assert Image.open(sheet.cells[0].image).tobytes() == Image.open(base.image).tobytes(), "strength 0 is the base"


def test_folders_and_patterns_are_expanded(tmp_path):
    for name in ("b.safetensors", "a.safetensors", "note.txt"):
        (tmp_path / name).touch()
    both = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    assert expanded([tmp_path]) == expanded([tmp_path / "*"]) == expanded([*both, tmp_path]) == both
    assert expanded([]) == []
    assert expanded([tmp_path / "gone.safetensors"]) == [tmp_path / "gone.safetensors"], (
        "reading it says that it is gone"
    )
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "x*"):
        with pytest.raises(RunError, match="holds no .safetensors file: name LoRA files, a folder"):
            expanded([tmp_path / nothing])


def test_loras_of_a_run_go_by_step_and_others_by_name_and_metadata(tmp_path):
    run = RunFolder(tmp_path / "run")
    places = {
        run.lora_file(100): "1",  # a run says itself at which step it saved a file
        run.lora_file(1000000): "1000000",
        run.lora_file(None): "1000000",
        tmp_path / "published" / "run-000100.safetensors": "1",
        tmp_path / "kohya.safetensors": "40",
        tmp_path / "unknown-000007.safetensors": "",
    }
    for number, (path, steps) in enumerate(places.items()):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"x.lora_A.weight": torch.full((1, 1), float(number))}, path, {"ss_steps": steps} if steps else None)
    (run.path / "loras" / "run-2.safetensors").touch()  # nothing that a run writes
    assert [(one.step, one.path) for one in run.saved_loras()] == [
        (step, run.lora_file(step)) for step in (100, 1000000)
    ]
    assert [(one.label, one.step) for one in run_loras(run, "train")] == [("step 100", 100), ("step 1000000", 1000000)]
    assert [(one.label, one.step) for one in read_loras(list(places)[2:], run)] == [
        ("run", 1000000),
        ("step 100", 100),
        ("kohya", 40),
        ("unknown-000007", None),
    ]
    with pytest.raises(RunError, match="has saved no LoRA yet: train it first"):
        run_loras(RunFolder(tmp_path / "other"), "train it first")


def test_labels_of_files_are_unique_and_sort_by_number(tmp_path):
    for step in (1200, 400, 24000):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"x.lora_A.weight": torch.full((1, 1), float(step))}, folder / "pytorch_lora_weights.safetensors")
        save_file({"x.lora_A.weight": torch.full((1, 1), float(step))}, tmp_path / f"a-{step}.safetensors")
    found = expanded([tmp_path / "checkpoint-*" / "pytorch_lora_weights.safetensors"])
    assert file_labels(found) == ["checkpoint-400", "checkpoint-1200", "checkpoint-24000"]
    assert [one.label for one in read_loras(found, RunFolder(tmp_path / "run"))] == file_labels(found)
    assert file_labels(expanded([tmp_path])) == ["a-400", "a-1200", "a-24000"]
    assert file_labels([Path("x/1/a.safetensors"), Path("x/2/b.safetensors"), Path("x/2/a.safetensors")]) == ["1/a", "2/b", "2/a"]  # fmt: skip


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lora_of_other_widths_is_refused_before_a_cell(finished, tmp_path, rank):
    path = tmp_path / "wide.safetensors"
    module = "lora_unet_nothing" if rank else "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{module}.lora_down.weight": torch.ones(2, 9), f"{module}.lora_up.weight": torch.ones(7, 2)}, path)
    with pytest.raises(
        ModelFileError, match=r"wide\.safetensors: .*it was made for (another model|a model of another size)"
    ):
        sweep(finished, SilentHost(), [path])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"prompts": []}, "sweep.prompts is empty"),
        ({"strengths": "x"}, "sweep.strengths = 'x'"),
        ({"seeds": ""}, "sweep.seeds = ''"),
        ({"width": 100}, "needs multiples of"),
        ({"guidance": [{"scale": 4}, {"scale": 4}]}, "two settings of the same name"),
    ],
)
def test_bad_sweeps(finished, sections, message):
    config = make_config(finished.model.base.rsplit("/", 1)[-1], finished.output.directory, sweep={**SWEEP, **sections})
    with pytest.raises(ConfigError, match=message):
        sweep(config, SilentHost())


def test_missing_and_foreign_loras(tmp_path, finished):
    fresh = make_config("sd3", tmp_path, sweep=SWEEP)
    with pytest.raises(RunError, match="has saved no LoRA yet"):
        sweep(fresh, SilentHost())
    with pytest.raises(RunError, match="holds no finished sheet"):
        load_sheet(tmp_path)
    from safetensors.torch import save_file

    save_file(
        {"transformer.nothing.lora_A.weight": torch.ones(2, 2), "transformer.nothing.lora_B.weight": torch.ones(2, 2)},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(ModelFileError, match="it was made for another model"):
        sweep(fresh, SilentHost(), [tmp_path / "x.safetensors"])


def test_wildcards_of_prompts_go_by_the_seed_and_are_recorded(tmp_path):
    """All checkpoints show the same prompt of a seed, and the grid has one row for it."""
    wild = axes(tmp_path, prompts=("a {red|blue|green} {cat|dog}", "plain"), seeds=tuple(range(12)), wildcards=True)
    cells = plan_cells(wild, [RENDERING], tmp_path)
    by_seed = {}
    for cell in cells:
        if cell.prompt_name:
            by_seed.setdefault(cell.seed, set()).add(cell.prompt)
    assert all(len(prompts) == 1 for prompts in by_seed.values())
    shown = {prompt for prompts in by_seed.values() for prompt in prompts}
    assert len(shown) > 3
    assert all("{" not in prompt for prompt in shown)
    assert {cell.prompt_name for cell in cells} == {"a {red|blue|green} {cat|dog}", ""}
    assert {cell.settings["prompt"] for cell in cells} == shown | {"plain"}
    assert plan_cells(wild, [RENDERING], tmp_path) == cells
    kept = plan_cells(replace(wild, wildcards=False), [RENDERING], tmp_path)
    assert {cell.prompt for cell in kept} == {"a {red|blue|green} {cat|dog}", "plain"}
