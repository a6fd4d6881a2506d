"""What guidance-distilled models are fed: 1 while training, 3.5 in samples and sweeps, where real guidance is off."""

import pytest

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import GuidanceConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.sweep.run import make_renderings, sweep, usual_guidance
from tests.conftest import SilentHost, make_config

SHORT = {"training": {"steps": 2, "save_every": 2}, "sweep": {"prompts": ["a cat"], "steps": 2}}
SAMPLES = {"prompts": ["a cat"], "sample_steps": 2}


def trained(root, **validation):
    host = SilentHost()
    config = make_config("flux", root, **SHORT, validation={**SAMPLES, **validation})
    train(config, host)
    return config, [step.loss for step in host.steps], (root / "run/samples/step-000000-0.png").read_bytes()


def test_samples_and_cells_are_fed_their_own_value_and_training_keeps_its(tmp_path):
    config, losses, usual = trained(tmp_path / "usual")
    _, same, other = trained(tmp_path / "other", model_guidance=1.0)
    assert usual != other
    assert losses == same
    made = sweep(config, SilentHost())
    for cell in made.cells:
        assert cell.settings["model_guidance"] == 3.5
        assert cell.settings["guidance"]["scale"] == 1.0, "real guidance is off where none is asked for"
    assert made.cells[0].image.exists()


def test_a_model_that_is_fed_none_keeps_its_cells_and_refuses_a_value(tmp_path):
    plain = make_config("sd", tmp_path, **SHORT)
    [rendering] = make_renderings(plain, open_base(plain.model))
    assert rendering.model_guidance == 1.0, "ids of cells do not change"
    for table in ("validation", "sweep"):
        tables = {"validation": SAMPLES, "sweep": SHORT["sweep"]}
        asked = make_config("sd", tmp_path, **{**tables, table: {**tables[table], "model_guidance": 2.0}})
        with pytest.raises(ConfigError, match=rf"{table}\.model_guidance = 2\.0: sd sd1 takes no guidance value"):
            (train if table == "validation" else sweep)(asked, SilentHost())
    with pytest.raises(ConfigError, match=r"validation\.model_guidance = -1\.0: use 0 or more"):
        make_config("flux", tmp_path, validation={**SAMPLES, "model_guidance": -1})


def test_guidance_that_is_asked_for_is_kept():
    asked = (GuidanceConfig(scale=2.0),)
    assert usual_guidance(asked, 1.0) == asked
    assert usual_guidance((GuidanceConfig(),), 7.0) == (GuidanceConfig(),)
    assert usual_guidance((GuidanceConfig(),), 1.0) == (GuidanceConfig(scale=1.0),)
