"""Lengths in epochs: as many steps as they have batches, the same run as with steps, and LoRA files that are kept."""

import pytest
from safetensors.torch import load_file

from lora_loom.trainer.config.run import TrainingConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.checkpoint import list_checkpoints
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.training.epochs import in_steps
from tests.conftest import SilentHost, make_config


@pytest.mark.parametrize(
    ("epochs", "every", "batches", "accumulation", "processes", "steps", "save_every"),
    [
        (3, 1, 40, 1, 1, 120, 40),
        (3, 1, 40, 4, 1, 30, 10),
        (3, 1, 40, 4, 2, 15, 5),
        (2.5, 0.5, 40, 1, 1, 100, 20),
        (3, 1, 7, 2, 1, 11, 4),  # 10.5 steps: the last epoch is finished
        (1, 0.01, 7, 2, 1, 4, 1),
        (0, 0, 7, 2, 1, 77, 250),
    ],
)
def test_epochs_are_steps(epochs, every, batches, accumulation, processes, steps, save_every):
    asked = TrainingConfig(
        steps=0 if epochs else 77, epochs=epochs, save_every_epochs=every, gradient_accumulation_steps=accumulation
    )
    said = []
    training = in_steps(asked, lambda epochs: epochs * batches, 6, processes, said.append)
    assert (training.steps, training.save_every) == (steps, save_every)
    assert len(said) == (epochs > 0) + (every > 0)
    assert all(str(steps) in line or str(save_every) in line for line in said)


def of_epochs(root, **training):
    return make_config("sd3", root, training={"gradient_accumulation_steps": 2, **training})


def test_a_run_of_epochs_is_the_run_of_as_many_steps(tmp_path):
    """Six images are three batches of two, and two of them a step."""
    host = SilentHost()
    config = of_epochs(tmp_path / "epochs", epochs=4.0, save_every_epochs=2.0)
    by_epochs = train(config, host)
    by_steps = train(of_epochs(tmp_path / "steps", steps=6, save_every=3), SilentHost())
    first, second = load_file(by_epochs.lora), load_file(by_steps.lora)
    assert all((first[name] == second[name]).all() for name in first)
    folder = run_folder(config)
    assert [c.step for c in list_checkpoints(folder.checkpoints)] == [3, 6]
    assert "training.epochs = 4: 6 steps" in host.text
    longer = train(of_epochs(tmp_path / "epochs", epochs=5.0, save_every_epochs=2.0), SilentHost())
    assert longer.step == 8


def test_older_lora_files_go_everywhere_but_the_one_of_the_lowest_loss(tmp_path):
    loras = tmp_path / "comfy"
    config = make_config(
        "sd3",
        tmp_path,
        training={"steps": 4, "save_every": 1, "keep_loras": 1},
        output={"loras": str(loras)},
        data={"validation_split": 0.34},
    )
    train(config, SilentHost())
    folder = run_folder(config)
    losses = {line["step"]: line["held_out"] for line in folder.read_metrics() if "held_out" in line}
    best = min((loss, step) for step, loss in losses.items() if step)[1]
    kept = [lora.step for lora in folder.saved_loras()]
    assert kept == sorted({best, 4})
    folder.append_metrics(step=1, held_out=0.0)
    folder.prune_loras(1, loras)
    assert [lora.step for lora in folder.saved_loras()] == [4], "one that is not the lowest any more goes too"
    assert sorted(path.name for path in (loras / "run").iterdir()) == ["run-000004.safetensors", "run.safetensors"]


@pytest.mark.parametrize("name", ["epochs", "save_every_epochs", "keep_loras"])
def test_negative_lengths_are_refused(name):
    with pytest.raises(ConfigError, match=rf"training\.{name} = -1"):
        TrainingConfig(**{name: -1})
