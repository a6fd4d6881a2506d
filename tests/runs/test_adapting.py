"""memory.on_oom = "adapt": under a limit a run takes what needs less memory and writes, bit for bit, what it would have written."""

import json

import pytest
import torch

from lora_loom.trainer.config.run import MemoryConfig
from lora_loom.trainer.errors import ConfigError, RunOutOfMemoryError
from lora_loom.trainer.memory_plan.base_sizes import BaseSizes
from lora_loom.trainer.memory_plan.card import Card
from lora_loom.trainer.memory_plan.meter import LiveBytes
from lora_loom.trainer.memory_plan.rehearsal import tensors_of
from lora_loom.trainer.runs.adapting.adapt import adapted_text, refuse_adapting
from lora_loom.trainer.runs.adapting.levers import next_lever
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.training import loop
from lora_loom.trainer.weights.streaming import StreamSettings, stream_of, stream_settings
from tests.conftest import SilentHost, make_config
from tests.runs.test_streamed_runs import written

FULL = {
    "training": {"steps": 4, "batch_size": 2, "save_every": 2, "gradient_accumulation_steps": 2, "ema_decay": 0.9},
    "validation": {"prompts": ["a red thing"], "sample_steps": 1, "sample_every": 2, "width": 64, "height": 64},
    "data": {"validation_split": 0.2},
}  # fmt: skip
OFF, ON = {"gradient_checkpointing": False}, {"gradient_checkpointing": True}


def run(root, family="sd3", *, memory, stop_at=None, **sections):
    host = SilentHost(stop_at)
    outcome = train(make_config(family, root, memory=memory, **{**FULL, **sections}), host)
    return host, outcome


def adapted(root):
    return json.loads((root / "run/run.json").read_text())["adapted"]["taken"]


class Limited(LiveBytes):
    """Raises as CUDA does where more than `limit` bytes of tensors would be alive."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self.live > self.limit:
            raise torch.cuda.OutOfMemoryError(f"{self.live} bytes are alive, {self.limit} are allowed")
        return out


@pytest.fixture
def card(monkeypatch):
    """Steps on a card of so many bytes; gives the most that each of them held."""
    plain, peaks = loop._accumulate, []

    def limit(size=float("inf")):
        def on_card(denoiser, *rest):
            meter = Limited(size)
            meter.hold(tensors_of(denoiser.module))
            try:
                with meter:
                    return plain(denoiser, *rest)
            finally:
                peaks.append(meter.peak)

        peaks.clear()
        monkeypatch.setattr(loop, "_accumulate", on_card)
        return peaks

    return limit


def test_under_a_limit_the_run_recomputes_and_writes_what_it_would_have_written(tmp_path, card):
    peaks = card()
    run(tmp_path / "free", memory=OFF)
    most = max(peaks)
    run(tmp_path / "less", memory={"gradient_checkpointing": True})
    less = max(peaks[len(peaks) // 2 :])
    assert less < 0.95 * most
    peaks = card((less + most) // 2)
    host, outcome = run(tmp_path / "card", memory={**OFF, "on_oom": "adapt"})
    assert outcome.state == "finished"
    assert peaks[0] > (less + most) // 2 > max(peaks[1:])
    assert adapted(tmp_path / "card") == [{"step": 0, "setting": 'memory.checkpoint = "all"'}]
    assert written(tmp_path / "card") == written(tmp_path / "free")
    assert any(text.startswith("memory ran out: the run goes on from the start with") for text in host.text)
    assert adapted_text(run_folder(make_config("sd3", tmp_path / "card")).read()) == [
        'memory ran out: went on from step 0 with memory.checkpoint = "all"'
    ]


def test_what_fits_is_not_recomputed_until_memory_runs_out_and_the_lora_is_the_same(tmp_path, card, monkeypatch):
    monkeypatch.setenv("LORA_LOOM_PLAN", "1")
    peaks = card()
    run(tmp_path / "off", memory=OFF)
    most = max(peaks)
    run(tmp_path / "all", memory={**ON, "checkpoint": "all"})
    less = max(peaks[len(peaks) // 2 :])
    assert less < 0.95 * most
    peaks = card()
    host, _ = run(tmp_path / "auto", memory=ON)
    assert max(peaks) > 0.99 * most
    assert not any("memory ran out" in text for text in host.text)
    plan = json.loads((tmp_path / "auto/run/run.json").read_text())["memory_plan"]
    assert "of RAM that are free" in plan["keeps_activations"]
    assert any("activations: kept and not recomputed" in text for text in host.text)
    peaks = card((less + most) // 2)
    host, outcome = run(tmp_path / "full", memory=ON)
    assert outcome.state == "finished"
    assert peaks[0] > (less + most) // 2 > max(peaks[1:])
    assert [text for text in host.text if "memory ran out" in text] == [
        "memory ran out without checkpointing: blocks are recomputed from here on (the LoRA is the same)"
    ]
    assert "adapted" not in json.loads((tmp_path / "full/run/run.json").read_text())
    assert (
        written(tmp_path / "off")
        == written(tmp_path / "all")
        == written(tmp_path / "auto")
        == written(tmp_path / "full")
    )
    card(1000)
    with pytest.raises(RunOutOfMemoryError):
        run(tmp_path / "none", memory=ON)


@pytest.mark.parametrize(
    ("memory", "keeps"),
    [
        ({}, True),
        ({"checkpoint": "all"}, False),
        ({"checkpoint": "every 2"}, False),
        ({"gradient_checkpointing": False}, False),  # nothing is left to decide
        ({"base": "stream"}, False),
        ({"checkpoint_offload": True}, False),
        ({"compile": True}, False),
    ],
)
def test_a_plan_decides_where_checkpointing_is_left_to_it(memory, keeps):
    assert MemoryConfig(**memory).may_keep == keeps


def test_a_card_has_ease_where_a_tenth_more_would_fit_too():
    card = Card(name="a card", free=1000, slack=0.07)
    assert card.has_ease(400, 300)
    assert not card.has_ease(400, 400)
    assert card.fits(930)
    in_ram = Card(name="cpu", free=None, ram=1000)
    assert in_ram.has_ease(10**9, 500)
    assert not in_ram.has_ease(0, 501)
    assert not Card(name="xpu", free=None).has_ease(0, 1)


@pytest.fixture
def device(monkeypatch):
    """From a step on, steps run out of memory unless `fits` says that this network is small enough."""
    plain = loop.train_step

    def limit(fits, at=0, error=torch.cuda.OutOfMemoryError):
        def limited(denoiser, batch, loss, key, *rest):
            if key.step >= at and not fits(denoiser.module):
                raise error("tried to allocate 20 GiB")
            return plain(denoiser, batch, loss, key, *rest)

        monkeypatch.setattr(loop, "train_step", limited)

    return limit


def held(module):
    stream = stream_of(module)
    return float("inf") if stream is None else stream.arena.peak


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, MemoryError])
def test_levers_follow_each_other_from_the_last_checkpoint(tmp_path, device, error):
    run(tmp_path / "free", memory=OFF)
    device(lambda module: held(module) < float("inf"), at=3, error=error)
    host, outcome = run(tmp_path / "card", memory={**OFF, "on_oom": "adapt"})
    assert outcome.state == "finished"
    first, second, third = adapted(tmp_path / "card")
    assert [first["setting"], second["setting"]] == ['memory.checkpoint = "all"', "memory.checkpoint_offload = true"]
    assert third["setting"].startswith("memory.vram_gb = ")
    assert [one["step"] for one in (first, second, third)] == [2, 2, 2]
    assert written(tmp_path / "card") == written(tmp_path / "free")
    assert sum("goes on from the checkpoint of step 2" in text for text in host.text) == 3


def test_the_budget_shrinks_to_what_works_and_a_run_that_is_continued_begins_with_it(tmp_path, device):
    run(tmp_path / "free", "sd", memory=OFF)
    seen = []
    device(lambda module: seen.append(held(module)) or held(module) <= max(least, 0))
    least = 0
    with pytest.raises(RunOutOfMemoryError, match=r"These were tried: .*Nothing is left that takes less memory"):
        run(tmp_path / "none", "sd", memory={**OFF, "on_oom": "adapt"})
    budgets = [size for size in seen if size < float("inf")]
    assert len(budgets) >= 2
    assert budgets == sorted(budgets, reverse=True)
    least = budgets[-1]
    memory = {**OFF, "on_oom": "adapt"}
    run(tmp_path / "card", "sd", memory=memory, stop_at=2)
    count = len(adapted(tmp_path / "card"))
    host, _ = run(tmp_path / "card", "sd", memory=memory)
    assert len(adapted(tmp_path / "card")) == count
    assert any(text.startswith("as memory ran out before: memory.checkpoint") for text in host.text)
    last = "checkpoints/step-000004/adapter.safetensors"
    assert written(tmp_path / "card")[0][last] == written(tmp_path / "free")[0][last]


def test_stop_ends_the_run_as_before(tmp_path, device):
    device(lambda module: False, at=2)
    with pytest.raises(RunOutOfMemoryError, match=r"out of GPU memory: .* kept: .*step-000002"):
        run(tmp_path, memory=OFF)
    assert "adapted" not in json.loads((tmp_path / "run/run.json").read_text())


def test_an_error_of_another_kind_is_not_taken_for_memory(tmp_path, device):
    device(lambda module: False, error=ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, memory={**OFF, "on_oom": "adapt"})


def test_the_order_of_levers():
    sizes = BaseSizes(blocks=[100_000] * 20, fixed=50_000)
    memory, stream, settings = MemoryConfig(checkpoint="every 2", on_oom="adapt"), None, []
    while lever := next_lever(memory, sizes, stream):
        memory = lever.memory
        stream = stream_settings(memory.base, memory.vram_gb)
        settings.append((lever.setting, sizes.on_device(stream)))
    assert [name for name, _ in settings][:2] == ['memory.checkpoint = "all"', "memory.checkpoint_offload = true"]
    held = [size for _, size in settings[1:]]
    assert held == sorted(held, reverse=True)
    assert held[-1] <= sizes.least * 1.1
    assert memory.on_oom == "adapt"
    chosen = next_lever(MemoryConfig(checkpoint="off"), sizes, StreamSettings(budget=700_000)).memory
    assert stream_settings(chosen.base, chosen.vram_gb) == StreamSettings(
        budget=700_000
    )  # what auto has streamed stays so
    assert next_lever(MemoryConfig(checkpoint_offload=True, shard=True), sizes, None) is None
    assert next_lever(MemoryConfig(checkpoint_offload=True), sizes, StreamSettings(budget=sizes.least)) is None


def test_several_processes_are_refused():
    refuse_adapting(MemoryConfig(on_oom="adapt"), 1)
    refuse_adapting(MemoryConfig(), 2)
    with pytest.raises(ConfigError, match="memory.on_oom = 'adapt' with 2 processes"):
        refuse_adapting(MemoryConfig(on_oom="adapt"), 2)
