"""A run with an optimizer that averages its weights: its files hold the average, and looking at it leaves no trace."""

import pytest
import torch
from safetensors.torch import load_file

from lora_loom.trainer.choices import OPTIMIZERS, OptimizerChoice
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.headless import run_folder, train
from tests.conftest import SilentHost, make_config
from tests.training.test_optim import Averaging


@pytest.fixture(autouse=True)
def averaging(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "averaging", OptimizerChoice(help="x", make=Averaging))


def config_of(root, **training):
    return make_config(
        "sd3",
        root,
        optimizer={"name": "averaging", "learning_rate": 1.0, "weight_decay": 0.0},
        training={"steps": 6, "save_every": 6, **training},
        output={"dtype": "float32"},
        data={"validation_split": 0.34},
    )


def test_saving_measuring_and_resuming_change_nothing_and_the_file_holds_the_average(tmp_path):
    straight = load_file(train(config_of(tmp_path / "straight"), SilentHost()).lora)
    watched = config_of(tmp_path / "watched", save_every=1)
    train(watched, SilentHost(stop_at=3))
    outcome = train(watched, SilentHost())
    assert outcome.step == 6
    assert all(torch.equal(straight[name], tensor) for name, tensor in load_file(outcome.lora).items())
    trained = load_file(run_folder(watched).checkpoints / "step-000006" / "adapter.safetensors")
    ups = [
        [tensor for key, tensor in one.items() if key.endswith("lora_B.weight") and tensor.any()]
        for one in (trained, straight)
    ]
    assert ups[0]
    assert not any(torch.equal(up, saved) for up in ups[0] for saved in ups[1]), "the checkpoint has what is trained"


def test_an_ema_of_an_average_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="averaging averages the weights by itself"):
        train(config_of(tmp_path, ema_decay=0.9), SilentHost())
