"""LoomOptimizer: what its inputs become, and the curve that it draws."""

import json

import numpy as np
import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.training.schedule import lr_factor


def made(**inputs):
    node = NODE_CLASS_MAPPINGS["LoomOptimizer"]()
    return node.run(**{"name": "adamw", "schedule": "constant", "warmup": 0.0, **inputs})


def test_every_option_of_a_schedule_is_an_input(host):
    value, curve = made(
        schedule="warm_restarts", cycles=3, cycle_warmup=0.1, cycle_decay=0.5, cycle_growth=2.0, floor=0.1
    )
    schedule = value.schedule
    assert (schedule.kind, schedule.cycles, schedule.cycle_warmup) == ("warm_restarts", 3, 0.1)
    assert (schedule.cycle_decay, schedule.cycle_growth, schedule.min_lr_ratio) == (0.5, 2.0, 0.1)
    other = made(schedule="wsd", decay=0.3)[1]
    assert curve.shape == other.shape
    assert not np.array_equal(curve, other)


def test_a_class_takes_the_place_of_the_name_and_its_options_reach_it(host):
    path = "torch.optim.lr_scheduler.CosineAnnealingLR"
    value, _ = made(schedule="linear", schedule_class=f" {path} ", schedule_options='T_max = "steps"\neta_min = 0.5')
    assert value.schedule.kind == path
    assert lr_factor(0, 10, value.schedule) == 1.0
    assert 0.5 < lr_factor(9, 10, value.schedule) < 0.52
    assert json.loads(value.to_json())["schedule"]["options"] == {"T_max": "steps", "eta_min": 0.5}


def test_an_optimizer_by_its_class_with_arguments(host):
    value, _ = made(optimizer_class="torch.optim.NAdam", options="betas = [0.8, 0.9]")
    assert (value.optimizer.name, value.optimizer.options) == ("torch.optim.NAdam", {"betas": [0.8, 0.9]})
    for inputs, message in (
        ({"options": "beta3 = 1"}, "it has no argument beta3"),
        ({"options": "lr = 1"}, "set learning_rate in Loom Train LoRA instead"),
        ({"optimizer_class": "subprocess.Popen"}, "a workflow may name classes of"),
        ({"optimizer_class": "torch.nn.Linear"}, "it is no optimizer"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(**inputs)
