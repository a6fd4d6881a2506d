"""learning_rate = "auto": the rule, and that a run holds a number from its beginning to its end."""

import pytest
import torch
from safetensors import safe_open
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.runs.run_folder import RunFolder
from lora_loom.trainer.runs.settled import with_rate
from lora_loom.trainer.training import rate
from lora_loom.trainer.training.rate import auto_rate, width_of
from tests.conftest import SilentHost, make_config


def network(width):
    with torch.device("meta"):
        return nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.Linear(width, width)])


@pytest.mark.parametrize(
    ("width", "expected"), [(128, 1.5e-3), (1280, 5e-4), (1536, 5e-4), (3072, 4.2e-4), (5120, 3.4e-4), (100_000, 2e-4)]
)
def test_the_rule_falls_with_the_width_and_stays_where_trainers_of_real_models_are(width, expected):
    assert width_of(network(width)) == width
    assert auto_rate(network(width), NetworkConfig(), OptimizerConfig()).value == expected


@pytest.mark.parametrize(
    ("optimizer", "settings", "expected"),
    [
        ("prodigy", {"alpha": 1.0}, 1.0),
        ("lion", {}, 8.4e-5),
        ("adafactor", {}, 4.2e-4),
        ("adamw", {"rank": 16, "alpha": 8.0}, 8.4e-4),
        ("adamw", {"rank": 16, "rslora": True}, 1.1e-4),
        ("adamw", {"rank": 64, "alpha": 1.0}, 1e-2),
    ],
)
def test_optimizer_and_scale_count(optimizer, settings, expected):
    assert auto_rate(network(3072), NetworkConfig(**settings), OptimizerConfig(name=optimizer)).value == expected


def test_where_the_rule_says_nothing_the_rate_is_that_of_version_0_1():
    unknown = auto_rate(network(64), NetworkConfig(kind="lokr"), OptimizerConfig())
    assert (unknown.value, "no rule for lokr with adamw" in unknown.origin) == (1e-4, True)
    assert auto_rate(nn.Conv2d(3, 3, 1), NetworkConfig(), OptimizerConfig()).value == 1e-4


def test_a_rate_that_is_not_named_is_auto_and_a_word_is_refused():
    assert OptimizerConfig().learning_rate == "auto"
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate = 'fast'"):
        OptimizerConfig(learning_rate="fast")


def test_an_earlier_run_goes_on_at_the_rate_that_it_began_with(tmp_path):
    folder, host = RunFolder(tmp_path / "run"), SilentHost()
    folder.update(config={"optimizer": {"learning_rate": 1e-4}}, fixed={})
    new = with_rate(OptimizerConfig(), NetworkConfig(), folder, network(3072), host.log)
    assert new.learning_rate == 4.2e-4, "it has kept nothing, so it begins again"
    (folder.checkpoints / "step-000001").mkdir(parents=True)
    assert with_rate(OptimizerConfig(), NetworkConfig(), folder, network(3072), host.log).learning_rate == 1e-4
    assert host.text[-1] == "learning rate: 0.0001 (auto, as this run began)"
    named = OptimizerConfig(learning_rate=3e-4)
    assert with_rate(named, NetworkConfig(), folder, network(3072), host.log) is named


def test_a_run_holds_the_number_and_goes_on_with_it(tmp_path, monkeypatch):
    config = make_config("sd3", tmp_path, optimizer={"learning_rate": "auto"}, training={"steps": 1, "save_every": 1})
    host = SilentHost()
    outcome = train(config, host)
    folder = run_folder(config)
    number = folder.read()["config"]["optimizer"]["learning_rate"]
    assert folder.read_metrics()[-1].get("learning_rate", number) == number > 5e-4, "a toy is narrow"
    assert any(f"learning rate: {number:g} (auto, for adamw at width 32)" in text for text in host.text)
    with safe_open(outcome.lora, "pt") as file:
        assert float(file.metadata()["ss_learning_rate"]) == number
    monkeypatch.setattr(rate, "AT_2000", 1e-6)  # another version's rule
    longer = make_config("sd3", tmp_path, optimizer={"learning_rate": "auto"}, training={"steps": 2, "save_every": 1})
    train(longer, SilentHost())
    assert folder.read()["config"]["optimizer"]["learning_rate"] == number
