"""The settings of other trainers that bench/learning.py measures: all are valid here, and each names its source."""

import pytest

from bench.learning import TRAINERS, config_of
from lora_loom.trainer.config.unused import refuse_unused_options
from lora_loom.trainer.training.loss_settings import check_objective


@pytest.mark.parametrize("name", TRAINERS)
def test_settings_are_those_of_a_run(name, tmp_path):
    from lora_loom.trainer.base_model import open_base

    config = config_of(TRAINERS[name], tmp_path, "x", seed=3)
    refuse_unused_options(config)
    base = open_base(config.model, config.text)
    check_objective(config.objective, base.settings.objective)
    assert (config.training.steps, config.training.batch_size, config.training.seed) == (200, 1, 3)
    assert [one.role for one in config.dataset] == ["train", "validation"]
    assert TRAINERS[name].source


def test_ours_are_first_and_take_the_default_targets():
    ours = [name for name in TRAINERS if name.startswith("ours")]
    assert ours == list(TRAINERS)[: len(ours)]
    targets = [TRAINERS[name].tables["network"]["target_modules"] for name in ours]
    assert targets == ["attention", *["default"] * (len(ours) - 1)]
