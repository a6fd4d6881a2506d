"""What other trainers call compiling, and keeping checkpoints in RAM, and what of it does not go together here."""

import json

import pytest

from lora_loom.trainer.data.sets.checks import Surroundings
from lora_loom.trainer.importers.finish import finish
from lora_loom.trainer.importers.read import import_text
from lora_loom.trainer.importers.translation import Translation

SWITCHES = [
    ("musubi_tuner", "args", "gradient_checkpointing_cpu_offload", "checkpoint_offload"),
    ("sd_scripts", "args", "cpu_offload_checkpointing", "checkpoint_offload"),
    ("onetrainer", "config", "part.activation_offloading", "checkpoint_offload"),
    ("musubi_tuner", "args", "compile", "compile"),
    ("sd_scripts", "args", "torch_compile", "compile"),
    ("diffusion_pipe", "run", "compile", "compile"),
    ("onetrainer", "config", "compile", "compile"),
    ("ai_toolkit", "job", "model.compile", "compile"),
    ("ai_toolkit", "job", "model.block_compile", "compile"),
]


@pytest.mark.parametrize(("trainer", "part", "theirs", "ours"), SWITCHES)
def test_switches_are_taken(trainer, part, theirs, ours):
    done = finish(Translation(trainer, (part,), {theirs: True}))
    assert getattr(done.config.memory, ours) is True
    assert not getattr(finish(Translation(trainer, (part,), {theirs: False})).config.memory, ours)


def simpletuner(tmp_path, **options):
    text = json.dumps({"model_family": "sd3", "base_model_precision": "nf4-bnb", **options})
    return import_text(text, Surroundings(tmp_path), "it")


@pytest.mark.parametrize(("interval", "checkpoint"), [(1, "auto"), (2, "every 2"), (4, "every 4"), (9, "every 4")])
def test_simpletuner(tmp_path, interval, checkpoint):
    done = simpletuner(tmp_path, gradient_checkpointing_interval=interval, dynamo_backend="inductor")
    assert done.config.memory.checkpoint == checkpoint
    assert done.config.memory.compile
    assert done.config.model.quantize == "nf4"
    assert not simpletuner(tmp_path, dynamo_backend="no").config.memory.compile


def test_what_does_not_go_together_is_left_out_and_said():
    both = finish(Translation("ai_toolkit", ("job",), {"model.compile": True, "model.layer_offloading": True}))
    assert (both.config.memory.compile, both.config.memory.base) == (False, "stream")
    assert "a base that is streamed or split is not compiled here" in both.text()
    none = {"part.gradient_checkpointing": False, "part.activation_offloading": True}
    off = finish(Translation("onetrainer", ("config",), none))
    assert not off.config.memory.checkpoint_offload
