"""Scores: the planted best is recommended and framed, noise is not, each measure follows its law, a run can be scored."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app
from lora_loom.trainer.data.clip import ClipFiles
from lora_loom.trainer.drawing.text import BEST
from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.runs.checkpoint import list_checkpoints
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.score.bleed import has_trigger
from lora_loom.trainer.score.candidates import BASE_KEY, candidates
from lora_loom.trainer.score.image_statistics import StatisticsEncoder
from lora_loom.trainer.score.report import plot, to_csv, to_text
from lora_loom.trainer.score.run import MEASURED, RECORDED, adapter_norm, gather, score_sheet
from lora_loom.trainer.score.score import Evidence, Losses, score, units_of
from lora_loom.trainer.sweep.cells import sheet_from_dict, sheet_to_dict
from lora_loom.trainer.sweep.run import load_sheet, sweep, write_strips
from lora_loom.trainer.types import Cell
from tests.conftest import SilentHost, make_config

LORAS = ("", "d1", "d2", "d3")


def cells(tmp_path, colours=None, prompts=("a toad", "a house"), seeds=(0, 1, 2), strength=1.0):
    """Flat pictures: base, step 10, step 20, step 30."""
    made = []
    for number, lora in enumerate(LORAS):
        for prompt in prompts:
            for seed in seeds:
                path = tmp_path / f"{number}-{prompt}-{seed}.png"
                colour = (colours or {}).get((number, prompt), (40 * number, 80, 20 * seed))
                Image.new("RGB", (16, 16), colour).save(path)
                made.append(
                    Cell(
                        id=path.stem,
                        image=path,
                        checkpoint=f"step {number * 10}" if lora else "base",
                        strength=strength if lora else 0.0,
                        prompt=prompt,
                        negative="",
                        seed=seed,
                        guidance="CFG 4",
                        step=number * 10,
                        settings={
                            "lora": lora,
                            "lora_file": f"run-{number * 10:06d}.safetensors" if lora else "",
                            "size": [16, 16],
                        },
                    )
                )
    return made


def losses(gap, images=6, levels=4):
    source = np.random.default_rng(0)
    easy = source.normal(1, 0.3, (images, 1))
    values = {}
    for number, lora in enumerate(LORAS):
        noise = source.normal(0, 0.02, (images, levels))
        values[(lora, 1.0) if lora else BASE_KEY] = (easy + noise - (gap if number == 2 else 0)).tolist()
    return Losses(values=values, source="made up")


def evidence(made, training=(), **changes):
    found = gather(made, StatisticsEncoder(), list(training), None, [], {}, [], SilentHost())
    return replace(found, **changes)


def test_the_planted_best_is_recommended_with_reason_and_runner_up(tmp_path):
    made = cells(tmp_path)
    done = score(made, evidence(made, losses=losses(0.2)))
    chosen = done.recommendation
    assert chosen.choice == chosen.leading == "step 20"
    assert chosen.runner_up not in ("", "step 20")
    assert "lowest validation loss" in chosen.text
    assert "95% interval" in chosen.text
    assert set(done.best) == {cell.id for cell in made if cell.checkpoint == "step 20"}
    text = to_text(done)
    assert "recommended: step 20" in text
    assert f"runner-up: {chosen.runner_up}" in text
    assert "made up; 6 held-out images x 4 noise levels" in text


def test_noise_only_is_no_clear_winner_and_frames_nothing(tmp_path):
    made = cells(tmp_path)
    done = score(made, evidence(made, losses=losses(0.0)))
    assert done.recommendation.choice == ""
    assert done.best == ()
    assert "no clear winner" in to_text(done)
    assert "best" not in to_text(done)
    assert done.recommendation.tied


def test_an_interval_excludes_the_leaders_mean_exactly_where_the_lead_is_clear(tmp_path):
    made = cells(tmp_path)
    for gap in (0.0, 0.01, 0.2):
        done = score(made, evidence(made, losses=losses(gap)))
        values = {row.label: row.values["held_out"] for row in done.rows}
        leader = values[done.recommendation.leading].mean
        for label, value in values.items():
            if label != done.recommendation.leading:
                assert (value.low > leader) == (label not in done.recommendation.tied)


def test_the_base_can_win(tmp_path):
    made = cells(tmp_path)
    worse = losses(0.0)
    values = {key: (np.array(rows) + (0.5 if key[0] else 0)).tolist() for key, rows in worse.values.items()}
    assert score(made, evidence(made, losses=replace(worse, values=values))).recommendation.choice == "base"


def test_few_images_are_measured_by_noise_level():
    assert units_of([[1.0, 2.0], [3.0, 4.0]]) == [1, 2, 3, 4]
    assert units_of([[1.0, 3.0]] * 5) == [2] * 5


def test_without_losses_the_training_images_decide_and_the_text_says_so(tmp_path):
    training = tmp_path / "training"
    training.mkdir()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(training / "a.png")
    colours = {(n, p): (200 if n == 2 else 0, 30, 30) for n in range(4) for p in ("a toad", "a house")}
    made = cells(tmp_path, colours)
    done = score(made, evidence(made, [training / "a.png"]))
    assert done.recommendation.choice == "step 20"
    assert any("no validation loss is known" in note for note in done.notes)
    assert any("no encoder" in note for note in done.notes)
    assert done.recommendation.cautions, "flat pictures of the training image's colour are copies"
    nothing = score(made, evidence(made))
    assert nothing.recommendation is None
    assert any("no recommendation" in note for note in nothing.notes)


def test_drift_is_zero_for_the_base_and_sees_only_prompts_without_the_trigger(tmp_path):
    colours = {(n, "a house"): (60 * n, 60 * n, 0) for n in range(4)}
    made = cells(tmp_path, colours)
    done = score(made, evidence(made, triggers=["toad"], losses=losses(0.2)))
    drift = [row.values["drift"].mean for row in done.rows]
    assert drift[0] == pytest.approx(0)
    assert all(value > 0.1 for value in drift[1:])
    assert all("drift" not in done.cells[cell.id] for cell in made if "toad" in cell.prompt)
    assert any("drift not measured" in note for note in score(made, evidence(made)).notes)
    only = cells(tmp_path, prompts=("a toad",))
    assert any("a prompt without toad" in note for note in score(only, evidence(only, triggers=["toad"])).notes)


@pytest.mark.parametrize(
    ("prompt", "found"), [("a toad", True), ("Toad, red", True), ("toadstool", False), ("a TOAD.", True), ("", False)]
)
def test_triggers_are_whole_words(prompt, found):
    assert has_trigger(prompt, ["toad", ""]) is found


def test_spread_is_over_seeds(tmp_path):
    made = cells(tmp_path)
    values = score(made, evidence(made, triggers=["toad"])).rows[1].values
    assert values["drift"].count == 3
    single = [cell for cell in made if cell.seed == 0]
    assert score(single, evidence(single, triggers=["toad"])).rows[1].values["drift"].spread is None


def test_norms_follow_strength_and_growth_the_order(tmp_path):
    made = cells(tmp_path, strength=0.5)
    done = score(made, evidence(made, norms={"d1": 2.0, "d2": 3.0, "d3": 3.0}))
    assert [row.values["norm"].mean for row in done.rows[1:]] == [1.0, 1.5, 1.5]
    assert [row.values["growth"].mean for row in done.rows[2:]] == [1.5, 1.0]
    assert done.rows[1].label == "step 10, strength 0.5"


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_an_adapters_norm_is_that_of_its_dense_change(tmp_path, kind):
    a, b, c, d = (torch.randn(*shape) for shape in ((8, 3), (3, 6), (8, 3), (3, 6)))
    tensors, dense = {
        "lora": ({"lora_B.weight": a, "lora_A.weight": b, "alpha": torch.tensor(1.5)}, 0.5 * a @ b),
        "loha": ({"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}, (a @ b) * (c @ d)),
        "lokr": ({"lokr_w1": a, "lokr_w2": b}, torch.kron(a, b)),
    }[kind]
    save_file(
        {f"{place}.{name}": t.clone() for place in ("x", "y") for name, t in tensors.items()},
        tmp_path / "l.safetensors",
    )
    assert adapter_norm(tmp_path / "l.safetensors") == pytest.approx(dense.norm().item() * 2**0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("label", "step"), [("base", 0), ("step 50", 50), ("cat-000100", 100), ("a/cat-000100", 100), ("cat", None)]
)
def test_a_sheet_of_version_0_1_names_steps_in_labels_only(tmp_path, label, step):
    data = sheet_to_dict(cells(tmp_path)[:1])
    [cell] = data["cells"]
    del cell["step"]
    cell["checkpoint"] = label
    assert [one.step for one in sheet_from_dict(data, tmp_path)] == [step]


def test_the_step_is_carried_and_not_read_from_the_label(tmp_path):
    made = [replace(cell, checkpoint=f"step {i}", step=7) for i, cell in enumerate(cells(tmp_path))]
    assert [cell.step for cell in sheet_from_dict(sheet_to_dict(made), tmp_path)] == [7] * len(made)
    assert {candidate.step for candidate in candidates(made)} == {7}


def test_candidates_are_loras_at_strengths(tmp_path):
    made = cells(tmp_path) + [replace(s, id=s.id + "x", strength=0.5) for s in cells(tmp_path) if s.settings["lora"]]
    labels = [candidate.label for candidate in candidates(made)]
    assert labels[:2] == ["base", "step 10, strength 1"]
    assert "step 30, strength 0.5" in labels


def test_reports(tmp_path):
    made = cells(tmp_path)
    done = score(made, evidence(made, losses=losses(0.2), norms={"d1": 1.0}))
    rows = list(csv.DictReader(io.StringIO(to_csv(done))))
    assert [row["candidate"] for row in rows] == ["base", "step 10", "step 20", "step 30"]
    assert float(rows[2]["held_out mean"]) == pytest.approx(done.rows[2].values["held_out"].mean)
    with Image.open(io.BytesIO(plot(done, "a title"))) as picture:
        assert picture.width > 600
    json.dumps(done.to_dict(), allow_nan=False)


# A real run.

SWEEP = {"prompts": ["a red circle"], "seeds": "0,1", "steps": 2, "guidance": [{"scale": 2.0}]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = make_config(
        "sd3",
        tmp_path_factory.mktemp("score"),
        sweep=SWEEP,
        data={"resolution": 64, "bucket_step": 32, "validation_split": 0.34},
        optimizer={"learning_rate": 0.01},
        training={"steps": 4, "save_every": 2, "ema_decay": 0.5},
        output={"dtype": "float32"},
    )
    train(config, SilentHost())
    sweep(config, SilentHost())
    return config


def test_a_run_is_scored_from_its_own_record(finished):
    folder = run_folder(finished).path / "strips"
    done = score_sheet(folder, SilentHost(), triggers=["circle"])
    assert [row.label for row in done.score.rows] == ["base", "step 2", "step 4"]
    assert any(MEASURED in note for note in done.score.notes)
    by_label = {row.label: row.values["held_out"].mean for row in done.score.rows}
    lines = run_folder(finished).read_metrics()
    averaged = {line["step"]: line["held_out_ema"] for line in lines if "held_out_ema" in line}
    assert by_label["step 4"] == pytest.approx(averaged[4], rel=1e-4), "files hold the average, and so does the score"
    assert all(path.is_file() for path in done.files)
    sheet = load_sheet(folder)
    assert sheet.best == frozenset(done.score.best)
    assert all(cell.settings["scores"] == done.score.cells[cell.id] for cell in sheet.cells)


def test_recorded_losses_stand_in_where_there_is_no_configuration(finished, tmp_path):
    import shutil

    copy = tmp_path / finished.name
    shutil.copytree(run_folder(finished).path, copy)
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "config": {"cache": "x"}}))
    done = score_sheet(copy / "strips", SilentHost())
    assert any(RECORDED in note for note in done.score.notes)
    measured = score_sheet(run_folder(finished).path / "strips", SilentHost())
    for here, there in zip(done.score.rows, measured.score.rows, strict=True):
        assert here.values["held_out"].mean == pytest.approx(there.values["held_out"].mean, rel=1e-4)


def test_a_lora_file_that_changed_is_not_measured(finished, tmp_path):
    folder = run_folder(finished).path / "strips"
    data = json.loads((folder / "sheet.json").read_text())
    [name] = [digest for digest, path in data["loras"].items() if path.endswith("-000002.safetensors")]
    (folder / "sheet-gone.json").write_text(
        json.dumps({**data, "loras": {**data["loras"], name: str(tmp_path / "gone")}})
    )
    done = score_sheet(folder / "sheet-gone.json", SilentHost())
    assert any("step 2 not measured: its file is gone" in note for note in done.score.notes)
    assert any("not ranked: step 2" in note for note in done.score.notes)


def test_the_strip_frames_what_is_recommended(finished):
    folder = run_folder(finished).path / "strips"
    data = json.loads((folder / "sheet.json").read_text())
    best = [cell_id["id"] for cell_id in data["cells"] if cell_id["checkpoint"] == "step 4"]
    (folder / "sheet-framed.json").write_text(json.dumps({**data, "best": best}))
    [path] = write_strips(
        load_sheet(folder, "sheet-framed"), columns=("checkpoint",), rows=("seed",), title="t", name="framed"
    )
    with Image.open(path) as picture:
        assert (np.asarray(picture) == BEST).all(-1).sum() > 1000


def test_the_command(finished):
    folder = run_folder(finished).path / "strips"
    result = CliRunner().invoke(app, ["score", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert [row["label"] for row in last["score"]["rows"]] == ["base", "step 2", "step 4"]
    assert any(path.endswith("strip.html") for path in last["files"])
    assert len(list_checkpoints(run_folder(finished).checkpoints)) == 2, "scoring leaves the run alone"
    result = CliRunner().invoke(app, ["score", str(folder / "nowhere")])
    assert result.exit_code == 5
    assert "run the sweep first" in result.output


def test_a_clip_as_files(finished, tiny_clip):
    done = score_sheet(run_folder(finished).path / "strips", SilentHost(), encoder=str(tiny_clip))
    assert any("similarity by CLIP" in note for note in done.score.notes)
    for row in done.score.rows:
        assert -1 <= row.values["training_likeness"].mean <= 1
        assert -1 <= row.values["prompt_likeness"].mean <= 1
    clip = ClipFiles(tiny_clip)
    features = clip.images([cell.image for cell in done.sheet.cells[:2]])
    assert np.diag(clip.compare(features, features)) == pytest.approx(1)
    first, second, again = clip.texts(["a cat", "zz", "a cat"])
    assert clip.compare([first], [again])[0, 0] == pytest.approx(1)
    assert clip.compare([first], [second])[0, 0] < 0.9999


def test_a_folder_that_is_no_clip(finished, tmp_path):
    with pytest.raises(ModelFileError, match=r"holds no config\.json"):
        score_sheet(run_folder(finished).path / "strips", SilentHost(), encoder=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="not a usable CLIP"):
        score_sheet(run_folder(finished).path / "strips", SilentHost(), encoder=str(tmp_path))


def test_evidence_without_pictures_of_training_needs_none():
    with pytest.raises(ValueError, match="without cells"):
        score([], Evidence(losses=None, encoder=StatisticsEncoder(), statistics={}, features={}))
