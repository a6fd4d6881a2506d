"""Whole runs of the command line on a streamed base: checkpoints, LoRA, samples and losses as on a resident one, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.weights import ring, streaming
from tests.conftest import SilentHost, make_config

FULL = {
    "training": {"steps": 6, "batch_size": 1, "save_every": 3, "gradient_accumulation_steps": 2, "ema_decay": 0.9},
    "validation": {"prompts": ["a red thing"], "sample_steps": 2, "sample_every": 3, "every": 3, "width": 64, "height": 64},
    "data": {"validation_split": 0.2},
}  # fmt: skip
STREAM = {"base": "stream", "gradient_checkpointing": True}
RESIDENT = {"gradient_checkpointing": True}


def run(root, family="sd", *, memory, stop_at=None, **sections):
    host = SilentHost(stop_at)
    outcome = train(make_config(family, root, memory=memory, **{**FULL, **sections}), host)
    return host, outcome


def written(root):
    """Everything that the weights decide: checkpoints, LoRA files, samples and measured losses."""
    folder = root / "run"
    files = [*folder.glob("checkpoints/*/*.safetensors"), *folder.glob("loras/*"), *folder.glob("samples/*.png")]
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in line.items() if name in ("step", "loss", "held_out")} for line in losses]
    return {path.relative_to(folder).as_posix(): content(path) for path in files}, kept


def content(path):
    """Of a LoRA file its tensors: its metadata hold the time."""
    if path.parent.name != "loras":
        return path.read_bytes()
    return {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in load_file(path).items() if tensor.ndim}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_streamed_run_writes_what_a_resident_one_writes(tmp_path, kind):
    changes = {"network": {"kind": kind, "rank": 2}}
    run(tmp_path / "resident", memory=RESIDENT, **changes)
    host, _ = run(tmp_path / "streamed", memory=STREAM, **changes)
    resident, streamed = written(tmp_path / "resident"), written(tmp_path / "streamed")
    assert len(resident[0]) >= 8
    assert resident[0].keys() == streamed[0].keys()
    assert [name for name, data in resident[0].items() if data != streamed[0][name]] == []
    assert resident[1] == streamed[1]
    assert any(text.startswith("streamed base: 1") for text in host.text)


def test_where_the_base_lies_may_change_when_a_run_is_continued(tmp_path):
    run(tmp_path / "whole", memory=RESIDENT)
    run(tmp_path / "parts", memory=STREAM, stop_at=2)
    run(tmp_path / "parts", memory=RESIDENT, stop_at=4)
    run(tmp_path / "parts", memory=STREAM)
    last = "checkpoints/step-000006/adapter.safetensors"
    assert written(tmp_path / "whole")[0][last] == written(tmp_path / "parts")[0][last]


def test_a_budget_that_is_too_small_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"memory\.vram_gb = 1e-06: .* give [0-9.]+ or more"):
        run(tmp_path, memory={"vram_gb": 0.000001})
    assert not (tmp_path / "run").exists()


def test_auto_keeps_a_base_that_fits_on_the_device(tmp_path):
    host, _ = run(tmp_path, memory={"vram_gb": 8.0})
    assert any("the base fits its budget" in text for text in host.text)


@pytest.mark.parametrize(
    "memory",
    [{"base": "resident", "vram_gb": 8.0}, {"base": "stream", "shard": True}, {"vram_gb": 1.0, "shard": True}, {"vram_gb": -1.0}],
)  # fmt: skip
def test_options_that_exclude_each_other_are_refused(tmp_path, memory):
    with pytest.raises(ConfigError, match=r"memory\.(vram_gb|shard)"):
        make_config("sd", tmp_path, memory=memory)


@pytest.mark.parametrize("fails", [False, True])
def test_after_a_run_the_buffers_are_given_back(tmp_path, monkeypatch, fails):
    rings = []

    class Seen(ring.Ring):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            rings.append((self, self.arena.live))

    monkeypatch.setattr(streaming, "Ring", Seen)
    if fails:
        monkeypatch.setattr("lora_loom.trainer.runs.execute.fit", lambda *_: iter(()))
    try:
        host, _ = run(tmp_path, memory=STREAM)
    except StopIteration:
        assert fails
    else:
        assert any("blocks brought to cpu" in text for text in host.text)
    used, held = rings[-1]  # the first is that of the check before anything is loaded
    assert len(rings) == 2
    assert used.arena.live == held - 2 * used.size
    with pytest.raises(AssertionError, match="closed"):
        used.get(next(iter(used._follows.values()), object()))
