"""The plan of a run against what the run then held, counted over all live storages, and what follows from it."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.memory_plan.meter import LiveBytes
from lora_loom.trainer.memory_plan.rehearsal import tensors_of
from lora_loom.trainer.runs import assemble
from lora_loom.trainer.runs.headless import build_cache, make_session, plan_memory, prepare, run_plan, train
from lora_loom.trainer.training.loop import LoopSettings, fit
from lora_loom.trainer.weights.streaming import stream_of
from tests.conftest import FAMILIES, SilentHost, make_config, pictures
from tests.runs.test_streamed_runs import written

DEFAULT = ("sd", "lumina2")
SAMPLES = {"prompts": ["a red thing"], "sample_steps": 1, "width": 64, "height": 64}


def held_by_steps(prepared, steps=2):
    """The most bytes that live tensors take while a run trains: base, adapter, optimizer and all between."""
    host = SilentHost()
    build_cache(prepared, host)
    session = make_session(prepared, run_plan(prepared))
    meter = LiveBytes()
    session, training = assemble.set_up(session, host)
    meter.hold([*tensors_of(session.denoiser.module)])
    if (stream := stream_of(session.denoiser.module)) and stream.ring:  # a base of two blocks stays as a whole
        streamed = [home for block in stream.blocks for home in block.homes()]
        meter.live -= sum(home.numel() * home.element_size() for home in streamed)
        meter.hold([slot.buffer for slot in stream.ring._free])
    meter.hold(tables(session.denoiser.module))
    if session.samples is not None:
        meter.hold([*tensors_of(session.samples.decode.__closure__[1].cell_contents.module)])
    settings = LoopSettings(
        loss=session.loss, seed=0, accumulation=prepared.config.training.gradient_accumulation_steps, clip_norm=1.0
    )
    meter.restart()
    with meter:
        going = fit(session.denoiser, training, session.batches, settings, lambda step: 1e-4)
        for _ in range(steps):
            next(going)
    return meter.peak


def tables(module):
    """Complex numbers of positions, plain attributes: a device gets a copy of them in every pass, the CPU computes where they are."""
    attributes = [value for part in module.modules() for value in vars(part).values()]
    each = [one for value in attributes for one in (value if isinstance(value, list | tuple) else [value])]
    return [one for one in each if isinstance(one, torch.Tensor) and one.is_complex()]


def alike(folder):
    """The pictures, all with the longest caption: samples with texts of several lengths are computed one after another where a
    family must not see padding, and a plan is for those that are computed together."""
    if not folder.exists():
        shutil.copytree(pictures(), folder)
        captions = list(folder.glob("*.txt"))
        longest = max((caption.read_text() for caption in captions), key=len)
        for caption in captions:
            caption.write_text(longest)
    return [{"folder": str(folder)}]


def check(tmp_path, family, **changes):
    config = make_config(family, tmp_path, dataset=alike(tmp_path / "alike"), **changes)
    prepared = prepare(config, SilentHost())
    plan = prepared.memory_plan = plan_memory(prepared)
    held = held_by_steps(prepared)
    assert abs(plan.parts.total / held - 1) <= 0.1, (plan.parts, held)
    return plan


WAYS = {
    "plain": {},
    "checkpointing": {"memory": {"gradient_checkpointing": True}},
    "accumulation": {"training": {"batch_size": 1, "gradient_accumulation_steps": 2}, "memory": {"gradient_checkpointing": True}},
    "streamed": {"memory": {"gradient_checkpointing": True, "base": "stream"}},
    "bfloat16": {"training": {"precision": "bfloat16"}, "model": {"dtype": "bfloat16"}, "network": {"rank": 16}},
}  # fmt: skip


@pytest.mark.parametrize("family", DEFAULT)
def test_a_step_holds_what_was_predicted(tmp_path, family):
    check(tmp_path, family, **WAYS["checkpointing"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_on_a_base_in_nf4_holds_what_was_predicted(tmp_path, precision):
    pytest.importorskip("bitsandbytes")
    sections = {"training": {"precision": precision}, "memory": {"gradient_checkpointing": True}}
    plain, packed = (
        check(
            tmp_path,
            "lumina2",
            **sections,
            model={"base": make_config("lumina2", tmp_path).model.base, "quantize": kind},
        )
        for kind in ("none", "nf4")
    )
    assert packed.parts.base < 0.5 * plain.parts.base


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_holds_what_was_predicted_in_every_family(tmp_path, family, way):
    check(tmp_path, family, **WAYS[way])


@pytest.fixture
def card(monkeypatch):
    """Simulates a card of so many bytes, and has runs planned."""

    def simulate(size):
        monkeypatch.setenv("LORA_LOOM_PLAN", "1")
        monkeypatch.setenv("LORA_LOOM_VRAM_GB", f"{size / 1e9:.12f}")

    return simulate


def planned(tmp_path, family="sd", **changes):
    return plan_memory(prepare(make_config(family, tmp_path, **changes), SilentHost()))


def test_auto_streams_what_does_not_fit_and_the_lora_stays_the_same(tmp_path, card):
    whole = planned(tmp_path)
    train(make_config("sd", tmp_path / "whole"), SilentHost())
    card(whole.parts.total - 500_000)
    host = SilentHost()
    train(make_config("sd", tmp_path / "small"), host)
    record = json.loads((tmp_path / "small/run/run.json").read_text())["memory_plan"]
    assert record["base"]["mode"] == "stream"
    assert 0 < record["base"]["streamed_blocks"] <= record["base"]["blocks"]
    assert record["phases"]["training"] == sum(record["parts"].values()) <= record["available"]
    assert "are more than" in record["base"]["why"]
    assert any(text.startswith("predicted peak on a simulated card") for text in host.text)
    assert any(text.startswith("streamed base:") for text in host.text)
    assert written(tmp_path / "whole") == written(tmp_path / "small")


def test_what_fits_stays_on_the_device(tmp_path, card):
    card(planned(tmp_path, "sd3").peak)
    plan = planned(tmp_path, "sd3")
    assert plan.stream is None
    assert "all of it fits" in plan.why


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path, card):
    changes = {"training": {"batch_size": 4}, "memory": {"gradient_checkpointing": False}}
    best = planned(tmp_path, memory={"gradient_checkpointing": True, "base": "stream"}, training={"batch_size": 4})
    card(best.parts.total)
    with pytest.raises(
        ConfigError, match=r'Nearest that fits: memory\.base = "stream", memory\.gradient_checkpointing = true \('
    ):
        train(make_config("sd", tmp_path, **changes), SilentHost())
    assert not (tmp_path / "run").exists()
    card(1000)
    with pytest.raises(ConfigError, match=r"it would still need .*: use a lower data\.resolution"):
        planned(tmp_path, "sd3")


def test_a_refusal_names_every_lever_of_checkpointing_and_a_compiled_base_is_not_streamed(tmp_path, card):
    card(1000)
    with pytest.raises(ConfigError) as refused:
        planned(tmp_path, "sd3", memory={"gradient_checkpointing": False, "compile": True})
    assert (
        'With memory.base = "stream" and memory.compile = false, memory.gradient_checkpointing = true, '
        "memory.checkpoint_offload = true, " in str(refused.value)
    )
    assert 'model.quantize = "nf4"' in str(refused.value)


def test_levers_save_what_they_say(tmp_path):
    tables = {"training": {"batch_size": 2}, "data": {"resolution": 128}, "network": {"rank": 1}}

    def of(**sections):
        return planned(tmp_path, "lumina2", **{**tables, **sections})

    plan = of()
    found = {lever.setting: lever for lever in plan.levers}
    assert len(found) == 3
    assert found["memory.gradient_checkpointing = true"].same_result
    less = of(memory={"gradient_checkpointing": True})
    assert found["memory.gradient_checkpointing = true"].saves == plan.parts.total - less.parts.total
    single = found["training.batch_size = 1 with gradient_accumulation_steps = 2"]
    assert single.saves == plan.parts.total - of(training={"batch_size": 1}).parts.total


def test_the_command_prints_the_plan_of_every_size(tmp_path, card):
    from tests.conftest import tiny_folder

    card(1_000_000_000)
    file = tmp_path / "run.toml"
    file.write_text(
        f'name = "x"\n[model]\nbase = "{tiny_folder("sd3").as_posix()}"\n[[dataset]]\nfolder = "{pictures().as_posix()}"\n'
        f'[data]\nresolution = 128\n[output]\ndirectory = "{tmp_path.as_posix()}"\n'
    )
    made = CliRunner().invoke(app, ["plan", str(file), "--json", "--set", 'validation.prompts=["a"]'])
    assert made.exit_code == 0, made.output
    plan = json.loads(made.stdout.splitlines()[-1])["memory_plan"]
    sizes = {tuple(bucket["size"]): bucket for bucket in plan["buckets"]}
    assert len(sizes) == 2
    assert sum(bucket["images"] for bucket in sizes.values()) == 6
    assert plan["available"] == 1_000_000_000
    assert plan["phases"]["caching"] > 0 < plan["phases"]["samples"]
    assert plan["seconds_per_step"][0] < plan["seconds_per_step"][1]
    assert plan["cache"] > 0
    assert not (tmp_path / "x").exists()


def test_a_card_without_a_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_LOOM_VRAM_GB", "large")
    with pytest.raises(ConfigError, match="LORA_LOOM_VRAM_GB = 'large': give the size of a card in GB"):
        planned(tmp_path)
