"""What goes wrong in a run: it is told plainly, noted in run.json, and what was good before it stays."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer.errors import ConfigError, DataError, DivergedError, LoomError, ModelFileError, RunError
from lora_loom.trainer.runs import headless as run_module
from lora_loom.trainer.runs.checkpoint import list_checkpoints
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.runs.run_folder import RunFolder
from tests.conftest import SilentHost, make_config, pictures, tiny_folder
from tests.runs.failing_losses import change_loss
from tests.runs.test_session import go


def state_of(tmp_path):
    record = RunFolder(tmp_path / "run").read()
    return record["state"], record.get("error", "")


def test_weights_that_a_good_step_breaks_are_not_saved(tmp_path, monkeypatch):
    """Loss and gradient were finite, the optimizer made infinity of them: that state must not become the last one."""
    plain, calls = torch.optim.AdamW.step, iter(range(100))

    def breaking(optimizer, *arguments):
        plain(optimizer, *arguments)
        if next(calls) == 5:
            optimizer.param_groups[0]["params"][0].data[0, 0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", breaking)
    with pytest.raises(DivergedError, match=r"1 weights are not finite after step 6, first .*lora_A"):
        go(tmp_path)
    assert [c.step for c in list_checkpoints(tmp_path / "run" / "checkpoints")] == [3]
    assert state_of(tmp_path)[0] == "failed"


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.cuda.OutOfMemoryError("tried to allocate 20 GiB"), "GPU memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "memory",
        ),
        (MemoryError(), "memory"),
    ],
)
def test_memory_that_runs_out_is_told_with_its_remedies_and_the_checkpoint_that_stays(
    tmp_path, monkeypatch, error, memory
):
    def full(loss):
        raise error

    change_loss(monkeypatch, full, at=4)
    with pytest.raises(
        RunError, match=rf"out of {memory}: .*gradient_checkpointing.*batch_size.*quantize.* kept: .*step-000003"
    ):
        go(tmp_path)
    assert state_of(tmp_path)[0] == "failed"
    assert [c.step for c in list_checkpoints(tmp_path / "run" / "checkpoints")] == [3]
    monkeypatch.undo()
    assert go(tmp_path)[0].step == 6


@pytest.mark.parametrize("keep", [1, 2])
def test_retention_never_deletes_the_last_good_one(tmp_path, monkeypatch, keep):
    change_loss(monkeypatch, lambda loss: loss * float("nan"), at=7)
    with pytest.raises(DivergedError):
        go(tmp_path, training={"steps": 12, "save_every": 2, "keep_checkpoints": keep})
    kept = [c.step for c in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert kept == [4, 6][-keep:]
    assert load_file(tmp_path / "run" / "checkpoints" / "step-000006" / "adapter.safetensors")


@pytest.mark.parametrize("where", ["build_cache", "make_session"])
@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ModelFileError("the base is odd"), "failed"),
        (RuntimeError("a bug"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
    ],
    ids=["known", "unknown", "interrupted"],
)
def test_a_run_that_fails_before_training_says_so(tmp_path, monkeypatch, where, error, state):
    def failing(*args):
        raise error

    monkeypatch.setattr(run_module, where, failing)
    with pytest.raises(type(error)):
        go(tmp_path)
    found, message = state_of(tmp_path)
    assert found == state
    assert str(error) in message
    monkeypatch.undo()
    assert go(tmp_path)[0].state == "finished"
    assert state_of(tmp_path) == ("finished", "")


def test_a_bug_inside_training_is_noted_too(tmp_path, monkeypatch):
    change_loss(monkeypatch, lambda loss: 1 / 0, at=0)
    with pytest.raises(ZeroDivisionError):
        go(tmp_path)
    assert state_of(tmp_path) == ("failed", "ZeroDivisionError: division by zero")


def test_a_full_disk_is_what_is_reported_even_if_nothing_can_be_noted(tmp_path, monkeypatch):
    """ENOSPC from the moment of the first checkpoint on: run.json cannot be written either."""
    from lora_loom.trainer.storage import atomic as files

    plain = os.fsync

    def full(handle):
        if any((tmp_path / "run" / "checkpoints").glob("step-*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(
        RunError, match=r"cannot write .*adapter\.safetensors: No space left on device; free some space"
    ):
        go(tmp_path)
    monkeypatch.undo()
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []
    assert not list(tmp_path.rglob("*.tmp"))
    outcome, host, _ = go(tmp_path)
    assert (outcome.state, len(host.steps)) == ("finished", 6)


def test_a_full_disk_while_the_metrics_grow(tmp_path, monkeypatch):
    plain = Path.open

    def full(self, mode="r", *args, **options):
        if self.name == "metrics.jsonl" and "a" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: No space left on device; free some space"):
        go(tmp_path)
    monkeypatch.undo()
    assert state_of(tmp_path)[0] == "failed"


def refusing(folder):
    """Tests run as root, who may write anywhere: so the refusal of one folder is made."""
    plain = os.mkdir

    def mkdir(path, *args, **options):
        if str(folder) in str(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(path, *args, **options)

    return mkdir


def test_output_folders_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "mkdir", refusing(tmp_path / "locked"))
    monkeypatch.setattr(run_module, "build_cache", lambda *a: pytest.fail("encoded"))
    with pytest.raises(
        RunError, match=r"cannot write to .*locked/run: Permission denied; choose another output folder"
    ):
        train(make_config("sd3", tmp_path / "locked"), SilentHost())
    with pytest.raises(RunError, match=r"cannot write .*locked/loras.*Permission denied"):
        go(tmp_path, output={"loras": str(tmp_path / "locked" / "loras")})
    assert not (tmp_path / "run" / "run.json").exists(), "found before the run begins, not at the first checkpoint"
    assert not (tmp_path / "locked").exists()


def test_stopping_while_encoding(tmp_path):
    class Stopping(SilentHost):
        def stage(self, name, done, total):
            self.encoding = name.startswith("encoding")

        def should_stop(self):
            return self.encoding

    cache = {"output": {"cache": str(tmp_path / "cache")}}
    with pytest.raises(RunError, match="stopped while encoding; what is done is kept, run it again") as error:
        train(make_config("sd3", tmp_path, **cache), Stopping())
    assert error.value.exit_code == 130
    assert state_of(tmp_path)[0] == "interrupted"
    assert go(tmp_path, **cache)[0].state == "finished"


def test_leftovers_of_a_kill_are_cleaned_everywhere(tmp_path):
    places = ["run", "run/checkpoints", "run/loras", "run/samples", "run/strips/cells", "loras/run"]
    for place in places:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "x.safetensors.4194305.tmp").write_bytes(b"half")  # of no process
    (tmp_path / "run" / "checkpoints" / "step-000002.tmp").mkdir()
    go(tmp_path, output={"loras": str(tmp_path / "loras")})
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_kill_between_saving_and_measuring_leaves_no_gap(tmp_path):
    """Held-out losses of a continued run are those of an unbroken one, each once."""
    options = {"data": {"validation_split": 0.34}}
    _, _, folder = go(tmp_path / "whole", **options)
    whole = [line for line in folder.read_metrics() if "held_out" in line]
    _, _, folder = go(tmp_path, stop_at=3, **options)
    kept = [line for line in folder.read_metrics() if "held_out" not in line or line["step"] == 0]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
    go(tmp_path, **options)
    assert [line for line in folder.read_metrics() if "held_out" in line] == whole
    shutil.rmtree(folder.checkpoints)
    go(tmp_path, **options)
    assert [line for line in folder.read_metrics() if "held_out" in line] == whole


def test_changed_data_names_the_settings(tmp_path):
    sets = [{"folder": str(pictures()), "repeats": 1}]
    go(tmp_path, dataset=sets)
    with pytest.raises(
        RunError,
        match=r"images, captions or masks are others; dataset\.0\.repeats: 1 -> 2.*Only training\.steps, .*training\.goal and the sections memory",
    ):
        go(tmp_path, dataset=[{**sets[0], "repeats": 2}])
    copy = tmp_path / "copy"
    shutil.copytree(pictures(), copy)
    go(tmp_path, name="other", dataset=[{"folder": str(copy)}])
    (copy / "0.txt").write_text("another caption")
    with pytest.raises(RunError, match=r"images, captions or masks in the folders changed"):
        go(tmp_path, name="other", dataset=[{"folder": str(copy)}])


def test_a_moved_initial_lora_is_the_same_run_and_a_changed_one_is_not(tmp_path):
    first, _, _ = go(tmp_path, name="first", training={"steps": 1})
    for name in ("a", "b"):
        shutil.copy(first.lora, tmp_path / f"{name}.safetensors")
    go(tmp_path, network={"init_from": str(tmp_path / "a.safetensors")})
    go(tmp_path, network={"init_from": str(tmp_path / "b.safetensors")}, training={"steps": 7})
    tensors = {key: tensor + 1 for key, tensor in load_file(first.lora).items()}
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(RunError, match=r"network\.init_from is another LoRA"):
        go(tmp_path, network={"init_from": str(tmp_path / "b.safetensors")})


def test_another_set_up_is_told_when_a_run_goes_on(tmp_path):
    _, host, folder = go(tmp_path, stop_at=2)
    assert not any("bit-identical" in text for text in host.text)
    record = folder.read()
    record["environment"]["libraries"]["torch"] = "1.0"
    (folder.path / "run.json").write_text(json.dumps(record))
    _, host, _ = go(tmp_path)
    [told] = [text for text in host.text if "bit-identical" in text]
    assert "libraries.torch: '1.0' -> " in told
    assert "pid" not in told


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def spoilt_base(kind, folder):
    base = shutil.copytree(tiny_folder("sd3"), folder / "base")
    [weights] = (base / "transformer").glob("*.safetensors")
    if kind == "truncated":
        cut(weights)
    elif kind == "a LoRA":
        save_file({"transformer.x.lora_A.weight": torch.ones(2, 2)}, folder / "lora.safetensors")
        return {"base": str(folder / "lora.safetensors")}
    elif kind == "of another family":
        return {"base": str(base), "family": "flux"}
    elif kind == "with a damaged configuration":
        (base / "transformer" / "config.json").write_text("{")
    elif kind == "of damaged encoders":
        cut(base / "text_encoder" / "model.safetensors")
    elif kind == "without a tensor":
        tensors = load_file(weights)
        tensors.pop("proj_out.weight")
        save_file(tensors, weights)
    return {"base": str(base)}


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("truncated", ModelFileError, "is damaged or truncated .*download or copy it again"),
        ("a LoRA", ModelFileError, r"is a LoRA, not a base model; give it as network\.init_from"),
        ("of another family", ModelFileError, "is a sd3 model, not flux: set model.family = 'sd3' or auto"),
        ("with a damaged configuration", ModelFileError, r"config\.json is not readable JSON .*copy it again"),
        ("of damaged encoders", ModelFileError, "is damaged or truncated"),
        ("without a tensor", ModelFileError, r"1 missing \(proj_out\.weight\)"),
    ],
)
def test_a_base_that_cannot_be_used(tmp_path, monkeypatch, kind, error, message):
    """Told before anything is encoded, and nothing of a run is left."""
    monkeypatch.setattr(run_module, "build_cache", lambda *a: pytest.fail("encoded"))
    (tmp_path / "bases").mkdir()
    model = spoilt_base(kind, tmp_path / "bases")
    with pytest.raises(error, match=message):
        train(make_config("sd3", tmp_path / "out", model=model), SilentHost())
    assert not (tmp_path / "out" / "run").exists()


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("sdxl", "vae"), ("sdxl", "text_encoder_2"), ("sd", "tokenizer"), ("sd3", "vae"), ("sd3", "text_encoder"),
        ("sd3", "tokenizer_3"), ("flux", "text_encoder_2"), ("qwen_image", "tokenizer"), ("lumina2", "text_encoder"),
    ],
)  # fmt: skip
def test_a_folder_that_lacks_a_part(tmp_path, monkeypatch, family, part):
    """Told by its name before an image is looked at."""
    monkeypatch.setattr(run_module, "dataset_of", lambda *a: pytest.fail("looked at images"))
    base = shutil.copytree(tiny_folder(family), tmp_path / "base")
    shutil.rmtree(base / part)
    with pytest.raises(
        ModelFileError, match=rf"base lacks {part}: it needs .*set model\.encoders to a folder that has them"
    ):
        train(make_config(family, tmp_path / "out", model={"base": str(base)}), SilentHost())
    assert not (tmp_path / "out" / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.ckpt", b"PK", "is a pickle, which can run code .*convert it to .safetensors first .*save_file"),
        ("model.gguf", b"GGUF", "is a GGUF file: .*use the .safetensors file"),
    ],
)
def test_kinds_of_files_that_are_not_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        train(make_config("sd", tmp_path / "out", model={"base": str(tmp_path / name)}), SilentHost())
    assert not (tmp_path / "out" / "run").exists()


def test_images_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "build_cache", lambda *a: pytest.fail("encoded"))
    folder = shutil.copytree(pictures(), tmp_path / "copy")
    cut(folder / "0.png")
    (folder / "1.png").write_text("no picture")
    (folder / "2.png").write_bytes(b"")
    (folder / "3.txt").unlink()
    with pytest.raises(DataError, match=r"3\.png has no caption: write 3\.txt next to it"):
        train(make_config("sd3", tmp_path / "out", dataset=[{"folder": str(folder)}]), SilentHost())
    (folder / "3.txt").write_text("a thing")
    strict = make_config("sd3", tmp_path / "out", dataset=[{"folder": str(folder)}], data={"strict": True})
    with pytest.raises(DataError) as error:
        train(strict, SilentHost())
    unusable = ("0.png is damaged", "1.png is not an image", "2.png is not an image")
    for name in unusable:
        assert name in str(error.value)
    assert not (tmp_path / "out" / "run").exists()
    monkeypatch.undo()  # what is not strict trains on the others, and says which ones it left out
    config = make_config("sd3", tmp_path / "out", dataset=[{"folder": str(folder)}], training={"steps": 1})
    host = SilentHost()
    assert train(config, host).state == "finished"
    for name in unusable:
        assert name in "\n".join(host.text)


def test_a_lora_to_start_from_that_cannot_be_used(tmp_path):
    first, _, _ = go(tmp_path, name="first", training={"steps": 1})
    cut_file = tmp_path / "cut.safetensors"
    shutil.copy(first.lora, cut_file)
    cut(cut_file)
    tensors = load_file(first.lora)
    module = next(iter(tensors)).split(".lora_")[0]
    save_file({f"{module}.mystery": torch.zeros(2, 4, 4)}, tmp_path / "odd.safetensors")
    for file, network, message in (
        (cut_file, {}, "is damaged .*copy it again"),
        (first.lora, {"rank": 4}, "has rank .2., network.rank = 4: use the file's rank"),
        (first.lora, {"target_modules": "attention+mlp"}, "it lacks [0-9]+ modules that are trained, first "),
        (tmp_path / "odd.safetensors", {}, "holds no LoRA tensors; it begins with .*mystery"),
    ):
        with pytest.raises(LoomError, match=message):
            go(tmp_path, name="second", network={"init_from": str(file), **network})
        assert not (tmp_path / "second").exists()


def test_guidance_for_a_model_that_takes_none(tmp_path):
    with pytest.raises(ConfigError, match=r"objective\.guidance_scale = 3\.5: sd3 sd3 takes no guidance value"):
        go(tmp_path, objective={"guidance_scale": 3.5})


def test_two_threads_may_write_the_same_record(tmp_path):
    """ComfyUI's node and the training thread both note things in run.json: nothing is lost, nothing is in the way."""
    from concurrent.futures import ThreadPoolExecutor

    from lora_loom.trainer.runs.run_folder import RunFolder

    def note(number):
        RunFolder(tmp_path / "run").update(**{f"fact{number}": number})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(note, range(64)))
    record = RunFolder(tmp_path / "run").read()
    assert all(record[f"fact{number}"] == number for number in range(64))


def test_a_missing_quantization_library_is_named_before_anything_is_loaded(tmp_path, monkeypatch):
    """requirements.txt leaves optimum-quanto out, so that no host's torch is replaced: many will not have it."""
    monkeypatch.setitem(sys.modules, "optimum.quanto", None)
    monkeypatch.setattr(run_module, "open_base", lambda *arguments: pytest.fail("the base was opened"))
    with pytest.raises(ConfigError, match=r"quantize = 'int8' needs the library optimum-quanto: pip install"):
        train(make_config("sd", tmp_path, model={"quantize": "int8"}), SilentHost())
