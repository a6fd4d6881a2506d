"""LoomObjective: every input becomes the option of its name."""

from dataclasses import fields

import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.trainer.config.aliases import current_options
from lora_loom.trainer.config.run import ObjectiveConfig
from lora_loom.trainer.errors import ConfigError

SET = {
    "beta_a": 1.0, "beta_b": 3.0, "multires_noise_iterations": 6, "multires_noise_discount": 0.2, "ip_noise_gamma": 0.1,
    "min_snr_gamma": 5.0, "soft_min_snr": True, "debiased_loss": True, "scale_v_loss": True, "loss": "huber",
    "huber_schedule": "snr", "unmasked_probability": 0.1, "unmasked_weight": 0.2,
}  # fmt: skip


def test_the_inputs_are_the_options():
    node = NODE_CLASS_MAPPINGS["LoomObjective"]()
    [value] = node.run(timesteps="beta", shift="auto", **SET)
    assert value.objective.beta == (1.0, 3.0)
    for name in SET.keys() - {"beta_a", "beta_b"}:
        assert getattr(value.objective, name) == SET[name]


def test_a_list_of_noise_levels_is_a_text():
    node = NODE_CLASS_MAPPINGS["LoomObjective"]()
    [value] = node.run(timesteps="list", shift="1", timestep_list="1, 0.75,0.5")
    assert (value.objective.timestep_list, value.objective.shift) == ((1.0, 0.75, 0.5), 1.0)
    with pytest.raises(ConfigError, match="write numbers from 0 to 1"):
        node.run(timesteps="list", shift="1", timestep_list="1; 0.5")


def test_no_option_is_missing():
    inputs = NODE_CLASS_MAPPINGS["LoomObjective"].INPUT_TYPES()
    names = {*inputs["required"], *inputs["optional"]}
    present = set(current_options("objective", dict.fromkeys(names - {"beta_a", "beta_b"})))
    assert present | {"beta"} == {field.name for field in fields(ObjectiveConfig)}
