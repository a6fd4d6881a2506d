"""A whole run: what it writes, what it keeps, what it refuses, and that its files are what was trained."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from lora_loom.trainer.errors import ConfigError, DataError, DivergedError, LoomError, ModelFileError, RunError
from lora_loom.trainer.runs import assemble as assemble_module
from lora_loom.trainer.runs.checkpoint import list_checkpoints
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.runs.run_folder import RunFolder
from tests.conftest import SilentHost, make_config, pictures
from tests.runs.failing_losses import change_loss


def go(tmp_path, stop_at=None, family="sd3", **sections):
    config, host = make_config(family, tmp_path, **sections), SilentHost(stop_at)
    return train(config, host), host, run_folder(config)


def test_what_a_run_leaves(tmp_path):
    outcome, host, folder = go(tmp_path, data={"validation_split": 0.34}, output={"loras": str(tmp_path / "loras")})
    assert outcome.state == "finished"
    assert outcome.max_relative_error < 5e-3
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    checkpoint = {"adapter.safetensors", "optimizer.safetensors", "state.json"}
    expected = {f"run/checkpoints/step-00000{n}/{name}" for n in (3, 6) for name in checkpoint}
    expected |= {
        f"{place}/run{suffix}.safetensors"
        for place in ("run/loras", "loras/run")
        for suffix in ("-000003", "-000006", "")
    }
    assert names == expected | {"run/run.json", "run/checkpoints/run.json", "run/metrics.jsonl", "run/lock"}
    record = folder.read()
    assert (record["state"], record["step"], record["name"]) == ("finished", 6, "run")
    assert record["environment"]["libraries"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert record["environment"]["threads"] == torch.get_num_threads()
    lines = folder.read_metrics()
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "held_out" in line] == [0, 3, 6]
    assert list(host.measures) == [0, 3, 6]


def test_the_file_describes_itself(tmp_path):
    outcome, _, _ = go(tmp_path, dataset=[{"folder": str(pictures()), "trigger": "zib"}], network={"alpha": 1.0})
    with safe_open(outcome.lora, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.architecture"] == "sd3/lora"
    assert metadata["modelspec.trigger_phrase"] == "zib"
    assert metadata["ss_network_dim"] == "2"
    assert metadata["ss_network_alpha"] == "1"
    assert metadata["ss_steps"] == "6"
    assert len(metadata["loom.dataset"]) == 64
    tensors = load_file(outcome.lora)
    assert {tensor.dtype for name, tensor in tensors.items() if not name.endswith(".alpha")} == {torch.bfloat16}


def test_adapters_move_and_the_base_does_not(tmp_path):
    from lora_loom.trainer.storage.fingerprint import tensor_digest

    config = make_config("sd3", tmp_path)
    [weights] = (run_folder(config).path.parent / config.model.base / "transformer").glob("*.safetensors")
    before = {name: tensor_digest(tensor) for name, tensor in load_file(weights).items()}
    seen = {}

    class Watching(SilentHost):
        def step(self, result, total):
            super().step(result, total)

    original = assemble_module.trained_part

    def spying(root, *args, **kwargs):
        seen["root"] = root
        return original(root, *args, **kwargs)

    assemble_module.trained_part = spying
    try:
        outcome = train(config, Watching())
    finally:
        assemble_module.trained_part = original
    after = {
        name.replace(".base_layer", ""): tensor_digest(p)
        for name, p in seen["root"].named_parameters()
        if ".lora_" not in name
    }
    assert {name: after[name] for name in before if name in after} == {
        name: before[name] for name in before if name in after
    }
    assert any(tensor.any() for name, tensor in load_file(outcome.lora).items() if "lora_B" in name)


def test_a_finished_run_is_returned_not_repeated(tmp_path):
    go(tmp_path)
    outcome, host, _ = go(tmp_path)
    assert outcome.state == "finished"
    assert host.steps == []


def test_retention_keeps_the_newest_and_all_loras(tmp_path):
    _, _, folder = go(tmp_path, training={"steps": 8, "save_every": 2, "keep_checkpoints": 2})
    assert [c.step for c in list_checkpoints(folder.checkpoints)] == [6, 8]
    assert len(list((folder.path / "loras").glob("run-*.safetensors"))) == 4


def test_stopping_saves(tmp_path):
    outcome, _, folder = go(tmp_path, stop_at=2)
    assert (outcome.state, outcome.step) == ("stopped", 2)
    assert [c.step for c in list_checkpoints(folder.checkpoints)] == [2]
    assert outcome.lora.name == "run.safetensors"


def test_average_is_what_is_saved(tmp_path):
    outcome, host, folder = go(
        tmp_path, training={"ema_decay": 0.5}, data={"validation_split": 0.34}, output={"dtype": "float32"}
    )
    names = {"held_out", "held_out_ema", "held_out_even", "held_out_even_ema", "drift"}
    assert [set(values) - names for values in host.measures.values()] == [set(), {"held_out_base"}, {"held_out_base"}]
    assert all(names <= set(values) for values in host.measures.values())
    last = list_checkpoints(folder.checkpoints)[-1].folder
    live = load_file(last / "adapter.safetensors")
    averaged = load_file(last / "optimizer.safetensors")
    name = next(name for name in live if name.endswith("lora_B.weight"))
    saved = load_file(outcome.lora)[f"transformer.{name.replace('|', '.')}"]
    assert torch.equal(saved, averaged[f"ema.{name}"])
    assert not torch.equal(saved, live[name])


def test_starting_from_a_lora(tmp_path):
    first, _, _ = go(tmp_path, name="first", output={"dtype": "float32"})
    config = make_config("sd3", tmp_path, name="second", network={"init_from": str(first.lora)}, training={"steps": 1, "save_every": 0}, optimizer={"learning_rate": 1e-12})  # fmt: skip
    second = train(config, SilentHost())
    before, after = load_file(first.lora), load_file(second.lora)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name].float(), rtol=1e-2, atol=1e-4) for name in before)


def test_the_default_is_all_of_the_blocks_and_goes_on_from_what_it_was_before(tmp_path):
    """Version 0.1 trained attention alone by `default`: its runs go on with that, and its LoRA files still serve as a start."""
    one = {"steps": 1, "save_every": 1}
    before, _, folder = go(tmp_path, name="before", training=one)  # the tests train attention
    old, former = folder.read()["modules"], folder.read()
    for table in (former["config"], former["fixed"]):
        table["network"]["target_modules"] = "default"
    folder.update(**former)
    go(tmp_path, name="before", network={"target_modules": "default"}, training={**one, "steps": 2})
    assert folder.read()["modules"] == old
    assert {path.split(".")[2] for path in old} == {"attn", "attn2"}
    _, _, new = go(tmp_path, name="new", network={"target_modules": "default"}, training=one)
    assert {path.split(".")[2] for path in new.read()["modules"]} == {"attn", "attn2", "ff", "ff_context", "norm1"}
    start = {"target_modules": "default", "init_from": str(before.lora)}
    _, _, further = go(tmp_path, name="further", network=start, training=one)
    assert further.read()["modules"] == old


def test_divergence_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    change_loss(monkeypatch, lambda loss: loss * float("nan"), at=4)
    with pytest.raises(DivergedError, match="loss nan in step 5"):
        go(tmp_path)
    folder = RunFolder(tmp_path / "run")
    assert folder.read()["state"] == "failed"
    assert "loss nan in step 5" in folder.read()["error"]
    assert [c.step for c in list_checkpoints(folder.checkpoints)] == [3]
    monkeypatch.undo()
    outcome, host, _ = go(tmp_path)
    assert [result.step for result in host.steps] == [4, 5, 6]
    assert outcome.state == "finished"


def test_out_of_memory_names_the_settings_that_help(tmp_path, monkeypatch):
    def exhausted(loss):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    change_loss(monkeypatch, exhausted, at=0)
    said = r"out of GPU memory: set memory\.gradient_checkpointing = true and memory\.checkpoint_offload = true.*lower data\.resolution"
    with pytest.raises(RunError, match=said):
        go(tmp_path)
    assert RunFolder(tmp_path / "run").read()["state"] == "failed"


def test_a_file_that_would_act_differently_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_loom.trainer.runs.final_file.max_relative_error", lambda *args: (0.3, "transformer.x"))
    with pytest.raises(RunError, match=r"would act differently than it was trained: 3\.00e-01 in transformer\.x"):
        go(tmp_path)


def test_a_changed_configuration_is_refused_with_its_fields(tmp_path):
    go(tmp_path)
    with pytest.raises(RunError, match=r"exists with another configuration: .*network\.rank: 2 -> 4.*use another name"):
        go(tmp_path, network={"rank": 4})
    with pytest.raises(RunError, match=r"optimizer\.learning_rate: 0\.001 -> 0\.01"):
        go(tmp_path, optimizer={"learning_rate": 0.01})
    outcome, host, _ = go(
        tmp_path,
        training={"steps": 8, "save_every": 2, "keep_checkpoints": 3},
        memory={"gradient_checkpointing": True},
        validation={"timesteps": 2},
    )
    assert outcome.step == 8
    assert [result.step for result in host.steps] == [7, 8]


def test_changed_data_is_another_configuration(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(pictures(), folder)
    sets = {"dataset": [{"folder": str(folder)}]}
    go(tmp_path, **sets)
    shutil.copytree(folder, tmp_path / "elsewhere")
    go(tmp_path, dataset=[{"folder": str(tmp_path / "elsewhere")}])
    (folder / "0.txt").write_text("another caption")
    with pytest.raises(RunError, match="images, captions or masks are others"):
        go(tmp_path, **sets)


def test_a_second_process_on_the_same_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    try:
        with pytest.raises(RunError, match=r"run run is being trained by another process"):
            go(tmp_path)
    finally:
        folder.unlock()
    go(tmp_path)


def test_half_written_leftovers_are_cleaned(tmp_path):
    _, _, folder = go(tmp_path)
    (folder.checkpoints / "step-000009.tmp").mkdir()
    (folder.checkpoints / "step-000009.tmp" / "adapter.safetensors").write_bytes(b"half")
    (folder.path / "run.json.123.tmp").write_text("{")
    assert [c.step for c in list_checkpoints(folder.checkpoints)] == [3, 6]
    go(tmp_path)
    assert not list(folder.path.rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["cut", "a flipped bit", "gone"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, damage):
    _, _, folder = go(tmp_path)
    newest = list_checkpoints(folder.checkpoints)[-1].folder
    path = newest / "optimizer.safetensors"
    content = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(
        content[:-5] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1])
    )
    _, host, _ = go(tmp_path, training={"steps": 8})
    assert [result.step for result in host.steps] == [4, 5, 6, 7, 8]
    assert any("step-000006 is damaged" in text for text in host.text)
    assert any("step-000006 is set aside as step-000006.damaged" in text for text in host.text)
    assert newest.with_name("step-000006.damaged").is_dir()


def test_with_all_checkpoints_damaged_it_says_what_to_do(tmp_path):
    _, _, folder = go(tmp_path)
    for checkpoint in list_checkpoints(folder.checkpoints):
        (checkpoint.folder / "adapter.safetensors").write_bytes(b"xx")
    with pytest.raises(RunError, match=r"step-000003 is damaged .*delete it"):
        go(tmp_path, training={"steps": 8})
    assert len(list_checkpoints(folder.checkpoints)) == 2, "nothing is moved"


def test_metrics_are_cut_to_the_checkpoint(tmp_path):
    _, _, folder = go(tmp_path, stop_at=4)
    folder.append_metrics(step=5, loss=1.0)
    with folder.metrics.open("a") as file:
        file.write('{"step": 6, "lo')
    go(tmp_path)
    assert [line["step"] for line in folder.read_metrics() if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_the_record_of_a_step_has_its_epoch_and_memory(tmp_path):
    _, _, folder = go(tmp_path)
    lines = [line for line in folder.read_metrics() if "loss" in line]
    per_step = {line["epoch"] / line["step"] for line in lines}
    assert max(per_step) == pytest.approx(min(per_step), rel=1e-2)
    assert lines[-1]["epoch"] > 0
    assert all(0.05 < line["ram_gb"] < 1000 for line in lines), "of this process, in GB"
    assert "vram_gb" not in lines[0]


def test_masked_training(tmp_path):
    folder = tmp_path / "masked"
    folder.mkdir()
    for number in range(2):
        image = Image.new("RGBA", (64, 64), (90 * number, 10, 10, 255))
        image.paste((0, 0, 0, 0), (0, 0, 32, 64))
        image.save(folder / f"{number}.png")
    losses = {}
    for kind in ("normalised", "plain"):
        _, host, _ = go(
            tmp_path / kind,
            dataset=[{"folder": str(folder), "masks": "alpha"}],
            objective={"masked_loss": kind},
            training={"steps": 1},
        )
        losses[kind] = host.steps[0].loss
    assert losses["plain"] == pytest.approx(losses["normalised"] / 2, rel=1e-4), "half of each picture is masked"


@pytest.mark.parametrize(
    ("kind", "told"),
    [("dora", "dora_scale = m * |W| / |W + dW|"), ("lokr", "multiplied into lokr_w2"), ("lora", "as trained")],
)
def test_the_file_and_inspect_say_how_it_was_written(tmp_path, kind, told):
    from lora_loom.trainer.lora_tools.inspect import inspect, to_text

    outcome, _, _ = go(tmp_path, network={"kind": kind}, training={"steps": 1})
    report = inspect(outcome.lora)
    assert told in report.metadata["loom.form"]
    assert told in to_text(report, outcome.lora)
    assert json.loads(report.metadata["loom.network"])["kind"] == kind
    assert list(report.kinds) == [{"dora": "lora + dora_scale"}.get(kind, kind)]


BAD = [
    ({"dataset": [{"folder": "{empty}"}]}, DataError, "holds no images"),
    (
        {"data": {"resolution": 16, "bucket_step": 0}, "family": "sd"},
        ConfigError,
        "smaller than the bucket step of 64",
    ),
    ({"data": {"bucket_step": 24}}, ConfigError, "data.bucket_step = 24: use a multiple of 16"),
    ({"training": {"batch_size": 99}}, ConfigError, "the dataset gives only 6 images"),
    ({"network": {"target_modules": "attn"}}, ConfigError, "did you mean 'attention'"),
    ({"network": {"target_modules": "regex:nothing_here"}}, ConfigError, "matches none"),
    ({"optimizer": {"name": "adamx"}}, ConfigError, "did you mean"),
    ({"objective": {"min_snr_gamma": 5.0}}, ConfigError, "made for epsilon and v models"),
    ({"objective": {"shift": 3.0}, "family": "sd"}, ConfigError, "only flow models have a shift"),
    ({"model": {"device": "cuda:7"}}, ConfigError, "is not available here"),
    ({"network": {"init_from": "nowhere.safetensors"}}, ModelFileError, "cannot read|No such file"),
]


@pytest.mark.parametrize(("sections", "error", "message"), BAD, ids=[b[2][:24] for b in BAD])
def test_bad_input_stops_before_anything_is_loaded_or_written(tmp_path, monkeypatch, sections, error, message):
    """A clear error with the value; no encoder, no network, no half-made run."""
    (tmp_path / "empty").mkdir()
    sections = json.loads(json.dumps(sections).replace("{empty}", str(tmp_path / "empty")))
    family = sections.pop("family", "sd3")
    if "model" in sections:
        sections["model"]["base"] = make_config(family, tmp_path).model.base
    monkeypatch.setattr("lora_loom.trainer.runs.headless.make_session", lambda *a: pytest.fail("loaded"))
    monkeypatch.setattr("lora_loom.trainer.base_model.Base.load_encoders", lambda *a: pytest.fail("loaded"))
    with pytest.raises(error, match=message):
        train(make_config(family, tmp_path / "out", **sections), SilentHost())
    assert not (tmp_path / "out" / "run" / "run.json").exists()


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_an_output_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LoomError, match="cannot write"):
        go(tmp_path)


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(RunError, match="cannot write"):
        train(make_config("sd3", tmp_path / "out"), SilentHost())


def test_a_full_disk(tmp_path, monkeypatch):
    """ENOSPC while saving: a plain error, the run is failed, the checkpoint before is whole."""
    import errno

    from lora_loom.trainer.storage import atomic as files

    plain, count = os.fsync, iter(range(10_000))

    def fsync(handle):
        if (tmp_path / "run" / "checkpoints" / "step-000003").exists() and next(count) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(RunError, match="No space left on device; free some space"):
        go(tmp_path)
    monkeypatch.undo()
    folder = RunFolder(tmp_path / "run")
    assert [c.step for c in list_checkpoints(folder.checkpoints)] == [3]
    outcome, _, _ = go(tmp_path)
    assert outcome.state == "finished"


def test_replace_keeps_configs_frozen(tmp_path):
    config = make_config("sd3", tmp_path)
    with pytest.raises(AttributeError):
        config.name = "x"
    assert replace(config, name="y").name == "y"
