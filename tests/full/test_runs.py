"""Full fine-tunes from the command line: what is trained, files that load as trained, exact resume, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig
from lora_loom.trainer.errors import ConfigError, RunError
from lora_loom.trainer.runs.headless import plan_memory, prepare, train
from tests.conftest import FAMILIES, SilentHost, make_config

BF16 = {"model": {"dtype": "bfloat16"}, "training": {"precision": "bfloat16"}}


def config_of(family, root, *sections, **more):
    made = {"network": {"kind": "full", "rank": 16, "target_modules": "default"}, "optimizer": {"name": "adafactor", "learning_rate": 1e-4},
            "training": {"steps": 4, "save_every": 2}}  # fmt: skip
    for section in (*sections, more):
        for name, table in section.items():
            made[name] = {**made.get(name, {}), **table} if isinstance(table, dict) else table
    return make_config(family, root, **made)


def loaded(path, config):
    base = open_base(ModelConfig(base=str(path), encoders=str(config.model.base)))
    return base.load_denoiser(ModelConfig(base=str(path), dtype=config.model.dtype), config.training.precision)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_loads_by_the_familys_own_loader_and_is_what_was_trained(family, tmp_path, host, monkeypatch):
    from lora_loom.trainer.runs import execute

    seen = {}
    monkeypatch.setattr(execute.TrainingRun, "_catch_up", lambda run: seen.update(run=run))
    config = config_of(family, tmp_path, output={"dtype": "float32"}, training={"steps": 2, "save_every": 0})
    outcome = train(config, host)
    assert outcome.lora.parent.name == "models"
    trained = seen["run"].session.denoiser.module.state_dict()
    names = load_file(outcome.lora).keys()
    assert (names == trained.keys()) == (family == "qwen_image"), "the original file has diffusers' names there alone"
    written = loaded(outcome.lora, config).module.state_dict()
    assert written.keys() == trained.keys()
    assert all(torch.equal(written[key], trained[key]) for key in trained)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_stopped_run_goes_on_bit_for_bit(dtype, ema, tmp_path, host):
    """In bfloat16 the random rounding too; AdamW and EMA in fp32 beside it."""
    options = {"optimizer": {"name": "adamw", "learning_rate": 1e-3}, "output": {"dtype": "float32"},
               "model": {"dtype": dtype}, "training": {"precision": dtype, "ema_decay": ema, "gradient_accumulation_steps": 2}}  # fmt: skip
    straight = train(config_of("sd3", tmp_path / "a", options), host)
    config = config_of("sd3", tmp_path / "b", options)
    train(config, SilentHost(stop_at=3))
    again = train(config, host)
    first, second = load_file(straight.lora), load_file(again.lora)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    states = [Path(tmp_path / side / "run/checkpoints/step-000004") for side in "ab"]
    for name in ("adapter.safetensors", "optimizer.safetensors"):
        assert (states[0] / name).read_bytes() == (states[1] / name).read_bytes()


def test_a_whole_checkpoint_keeps_what_is_not_trained(tmp_path, host):
    """A single file with VAE and prefix: only the chosen modules differ; other keys and names stay; and it trains again from there."""
    from safetensors.torch import save_file

    folder = config_of("sd3", tmp_path).model.base
    whole = train(config_of("sd3", tmp_path / "first", training={"steps": 1}), host).lora
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in load_file(whole).items()}
    tensors["first_stage_model.mark"] = torch.randn(3, dtype=torch.float64)
    base = tmp_path / "base.safetensors"
    save_file(tensors, base, {"kept": "yes"})
    config = config_of(
        "sd3",
        tmp_path / "second",
        model={"base": str(base), "encoders": folder},
        network={"target_modules": "attention"},
    )
    made = load_file(train(config, host).lora)
    assert made.keys() == tensors.keys()
    changed = {key for key in made if not torch.equal(made[key], tensors[key])}
    assert changed
    assert all("attn" in key for key in changed)
    assert len(changed) < len(made) / 2
    from lora_loom.trainer.storage.tensor_file import TensorFile

    assert TensorFile(tmp_path / "second/run/models/run.safetensors").metadata["kept"] == "yes"


def test_losses_and_samples_are_the_trained_models_and_the_loss_falls(tmp_path):
    host = SilentHost()
    config = config_of(
        "sd3", tmp_path, optimizer={"name": "adamw", "learning_rate": 2e-3}, training={"steps": 30, "save_every": 10, "keep_loras": 1, "keep_checkpoints": 1, "keep_best": True},
        data={"validation_split": 0.4}, validation={"prompts": ["a red square"], "sample_steps": 2},
    )  # fmt: skip
    train(config, host)
    folder = tmp_path / "run"
    losses = [values["held_out"] for _, values in sorted(host.measures.items())]
    assert losses[-1] < 0.9 * losses[0]
    assert len(list((folder / "checkpoints").glob("step-*"))) == 1
    assert len(list((folder / "models").glob("run-*.safetensors"))) <= 2
    assert (folder / "samples/step-000000-0.png").read_bytes() != (folder / "samples/step-000030-0.png").read_bytes()


REFUSED = {
    "quantized": ({"model": {"quantize": "int8"}}, "quantize"),
    "multiplied in 8 bits": ({"model": {"matmul": "int8"}}, "model.matmul = 'int8'"),
    "streamed": ({"memory": {"base": "stream"}}, "memory.base"),
    "a limit": ({"memory": {"vram_gb": 4.0}}, "vram_gb"),
    "adapts": ({"memory": {"on_oom": "adapt"}}, "on_oom"),
    "half": ({"model": {"dtype": "float16"}}, "float16"),
    "base LoRA": ({"model": {"base_lora": [{"file": "x.safetensors"}]}}, "merge-base"),
    "doctor": ({"validation": {"doctor": True}}, "doctor"),
    "text": ({"text": {"learning_rate": 1e-5}}, "text.learning_rate"),
    "find": ({"optimizer": {"learning_rate": "find"}}, "find"),
    "teacher": ({"dataset": [{"folder": "x"}, {"folder": "y", "role": "regularisation", "teacher": "base"}]}, "teacher"),
    "kohya": ({"output": {"format": "kohya"}}, "output.format"),
    "prodigy": ({**BF16, "optimizer": {"name": "prodigy", "learning_rate": 1.0}}, "one by one"),
}  # fmt: skip


@pytest.mark.parametrize(("sections", "said"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_go_with_is_refused_before_anything_is_loaded(sections, said, tmp_path, host):
    with pytest.raises(ConfigError, match=said):
        prepare(config_of("sd3", tmp_path, sections), host)


def test_schedule_free_optimizers_need_float32(tmp_path, host):
    pytest.importorskip("schedulefree")
    with pytest.raises(ConfigError, match="one by one"):
        prepare(config_of("sd3", tmp_path, BF16, optimizer={"name": "adamw_schedule_free"}), host)


@pytest.mark.parametrize("option", ["rank", "alpha", "dropout", "init_from", "module_dropout", "lokr_factor"])
def test_an_adapters_options_are_refused(option, tmp_path):
    values = {"init_from": "x.safetensors", "rank": 8, "lokr_factor": 4, "alpha": 2.0}
    with pytest.raises(ConfigError, match=f"network.{option}"):
        config_of("sd3", tmp_path, network={option: values.get(option, 0.5)})


def test_the_plan_counts_gradients_optimizer_and_average(tmp_path, host):
    small = plan_memory(prepare(config_of("sd3", tmp_path), host))
    large = plan_memory(
        prepare(config_of("sd3", tmp_path, optimizer={"name": "adamw"}, training={"ema_decay": 0.9}), host)
    )
    weights = small.parts.base
    assert small.parts.adapter == 0
    assert large.parts.optimizer >= 3 * weights * 0.9
    assert small.parts.activations >= weights * 0.9
    assert small.stream is None
    assert not any("stream" in lever.setting or "quantize" in lever.setting for lever in large.levers)


def test_a_sweep_and_the_doctor_say_how_models_are_compared(tmp_path, host):
    from lora_loom.trainer.score.examination import examine_later
    from lora_loom.trainer.sweep.run import sweep

    config = config_of("sd3", tmp_path, training={"steps": 1}, sweep={"prompts": ["a cat"]})
    train(config, host)
    with pytest.raises(RunError, match="lora-loom extract"):
        sweep(config, host)
    with pytest.raises(RunError, match="full fine-tune"):
        examine_later(config, host)


def test_what_another_kind_kept_is_not_taken_over(tmp_path, host):
    """A run of the same name that trained a LoRA, and the other way round."""
    train(config_of("sd3", tmp_path, training={"steps": 1}), host)
    with pytest.raises(RunError, match="network.kind"):
        train(config_of("sd3", tmp_path, network={"kind": "lora"}, training={"steps": 1}), host)
