"""Checkpoints on disk: what is in the folder, what comes back, and what is left after pruning."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from lora_loom.trainer.errors import DivergedError, RunError
from lora_loom.trainer.runs.checkpoint import list_checkpoints, load_checkpoint, prune, save_checkpoint
from lora_loom.trainer.training.loop import fit
from tests.training.test_loop import ToyBatches, ToyDenoiser, settings, take, training, values


def made(scale=None, ema=0.9):
    """A toy in training; `scale` is where a float16 run begins to look for its own."""
    denoiser = ToyDenoiser()
    state = training(denoiser, ema=ema)
    if scale:
        state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return denoiser, state


def run(denoiser, state, steps):
    return take(fit(denoiser, state, ToyBatches(), settings(), lambda step: 1e-2), steps)


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_a_checkpoint_is_on_disk(tmp_path):
    denoiser, state = made()
    run(denoiser, state, 3)
    checkpoint = save_checkpoint(tmp_path, state)
    assert contents(tmp_path) == [
        "step-000003",
        *(f"step-000003/{name}" for name in ("adapter.safetensors", "optimizer.safetensors", "state.json")),
    ]
    adapter = load_file(checkpoint.folder / "adapter.safetensors")
    assert {name: (t.dtype, tuple(t.shape)) for name, t in adapter.items()} == {
        "mix|lora_A.weight": (torch.float32, (2, 4)),
        "mix|lora_B.weight": (torch.float32, (4, 2)),
    }
    assert all(torch.equal(adapter[name], p) for name, p in state.adapter.parameters().items())
    tensors = load_file(checkpoint.folder / "optimizer.safetensors")
    assert {f"ema.{name}" for name in adapter} <= tensors.keys()
    assert all(torch.equal(tensors[f"ema.{name}"], value) for name, value in state.average.values.items())
    on_disk = json.loads((checkpoint.folder / "state.json").read_text())
    assert (on_disk["format"], on_disk["step"], on_disk["ema"], on_disk["scaler"]) == (1, 3, True, None)


def test_the_scale_of_float16_goes_on_where_it_was(tmp_path):
    """Two overflows have halved it twice. Without it a resumed run would overflow twice more, and skip those steps."""
    denoiser, state = made(scale=2.0**16)
    [first, *_] = state.adapter.parameters().values()
    overflow = iter([True, True])
    hook = first.register_hook(lambda grad: grad * float("inf") if next(overflow, False) else grad)
    run(denoiser, state, 5)
    hook.remove()
    save_checkpoint(tmp_path, state)
    other, resumed = made(scale=2.0**16)
    load_checkpoint(list_checkpoints(tmp_path)[-1], resumed)
    assert resumed.scaler.get_scale() == 2.0**14
    assert resumed.scaler.state_dict() == state.scaler.state_dict()
    assert resumed.scaler.state_dict()["_growth_tracker"] == 3
    assert resumed.step == 5
    for denoised, one in ((denoiser, state), (other, resumed)):
        run(denoised, one, 3)
    assert all(torch.equal(a, b) for a, b in zip(values(state), values(resumed), strict=True))
    assert resumed.scaler.state_dict() == state.scaler.state_dict()


@pytest.mark.parametrize(("saved", "loaded"), [(None, 2.0**16), (2.0**16, None)])
def test_a_run_whose_precision_changed_begins_a_scale_of_its_own(tmp_path, saved, loaded):
    denoiser, state = made(scale=saved)
    run(denoiser, state, 1)
    _, resumed = made(scale=loaded)
    load_checkpoint(save_checkpoint(tmp_path, state), resumed)
    assert (resumed.scaler.get_scale() if loaded else resumed.scaler) == loaded
    assert resumed.step == 1


def test_everything_comes_back(tmp_path):
    denoiser, state = made()
    run(denoiser, state, 4)
    other, resumed = made()
    load_checkpoint(save_checkpoint(tmp_path, state), resumed)
    for name, value in state.average.values.items():
        assert torch.equal(resumed.average.values[name], value)
        assert not torch.equal(value, state.adapter.parameters()[name])
    for denoised, one in ((denoiser, state), (other, resumed)):
        run(denoised, one, 3)
    assert all(torch.equal(a, b) for a, b in zip(values(state), values(resumed), strict=True))
    for name, value in state.average.values.items():
        assert torch.equal(resumed.average.values[name], value)


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 10]), (1, [10]), (3, [2, 3, 10]), (9, [1, 2, 3, 10])])
def test_pruning_leaves_the_newest_and_nothing_else(tmp_path, keep, left):
    """Nor a half deleted folder under another name, which the reader would not list."""
    _, state = made(ema=0.0)
    for step in (1, 2, 3, 10):
        state.step = step
        save_checkpoint(tmp_path, state)
    (tmp_path / "notes").mkdir()
    prune(tmp_path, keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", *(f"step-{step:06d}" for step in left)]
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == left


def test_pruning_spares_a_step(tmp_path):
    _, state = made(ema=0.0)
    for step in (1, 2, 3, 10):
        state.step = step
        save_checkpoint(tmp_path, state)
    prune(tmp_path, 1, spared=2)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [2, 10]


def test_a_checkpoint_that_is_there_is_not_written_again(tmp_path):
    denoiser, state = made()
    run(denoiser, state, 1)
    folder = save_checkpoint(tmp_path, state).folder
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert save_checkpoint(tmp_path, state).folder == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_weights_that_are_not_numbers_are_never_saved(tmp_path):
    _, state = made()
    [first, *_] = state.adapter.parameters().values()
    first.data[0, 0] = float("inf")
    with pytest.raises(DivergedError, match=r"first mix\|lora_A.weight.*learning_rate"):
        save_checkpoint(tmp_path, state)
    assert contents(tmp_path) == []


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_says_what_to_do(tmp_path, name, damage):
    denoiser, state = made()
    run(denoiser, state, 1)
    checkpoint = save_checkpoint(tmp_path, state)
    path = checkpoint.folder / name
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunError, match=r"step-000001 is damaged .*delete it"):
        load_checkpoint(checkpoint, state)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    _, state = made()
    checkpoint = save_checkpoint(tmp_path, state)
    path = checkpoint.folder / "state.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(RunError, match="has format 2, this version reads 1"):
        load_checkpoint(checkpoint, state)


def test_only_whole_checkpoints_are_listed(tmp_path):
    for name in ("step-000001", "step-000002.tmp", "step-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000003").write_text("a file")
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [1]


def test_a_checkpoint_of_version_0_1_has_no_digests_and_loads(tmp_path):
    denoiser, state = made()
    run(denoiser, state, 1)
    checkpoint = save_checkpoint(tmp_path, state)
    path = checkpoint.folder / "state.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}))
    load_checkpoint(checkpoint, state)


@pytest.mark.parametrize("content", ["{}", "[]", "", "\udcff"])
def test_a_state_that_is_none_is_one_plain_line(tmp_path, content):
    _, state = made()
    checkpoint = save_checkpoint(tmp_path, state)
    (checkpoint.folder / "state.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=r"step-000000 is damaged"):
        load_checkpoint(checkpoint, state)


def test_a_number_of_the_state_that_was_changed_is_noticed(tmp_path):
    """The digests of the tensors do not cover the learning rate, or how often the optimizer has stepped."""
    denoiser, state = made()
    run(denoiser, state, 2)
    checkpoint = save_checkpoint(tmp_path, state)
    path = checkpoint.folder / "state.json"
    whole = path.read_text()
    changed = re.sub(r'("lr",\s*)[0-9.e-]+', r"\g<1>0.5", whole)
    assert changed != whole
    path.write_text(changed)
    with pytest.raises(RunError, match=r"step-000002 is damaged \(state.json is not what was written\)"):
        load_checkpoint(checkpoint, state)


def test_a_state_without_digest_that_the_optimizer_cannot_use_is_one_plain_line(tmp_path):
    denoiser, state = made()
    run(denoiser, state, 1)
    checkpoint = save_checkpoint(tmp_path, state)
    path = checkpoint.folder / "state.json"
    content = {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}
    text = json.dumps(content)
    path.write_text(text.replace("param_groups", "groups"))
    with pytest.raises(RunError, match=r"step-000001 cannot be used \(KeyError.*delete it"):
        load_checkpoint(checkpoint, state)
