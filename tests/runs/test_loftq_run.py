"""A run with LoftQ: continued exactly, and its file is for the base as it is."""

import pytest
import torch
from safetensors.torch import load_file

from lora_loom.trainer.runs.headless import run_folder, train
from tests.conftest import SilentHost, make_config


@pytest.mark.parametrize("base", ["auto", "stream"])
def test_a_run_is_continued_exactly_and_its_file_has_twice_the_rank(base, tmp_path):
    def config(name):
        return make_config(
            "sd3", tmp_path / name, model={"quantize": "int8"}, network={"init": "loftq", "rank": 2}, memory={"base": base},
            training={"steps": 4, "save_every": 2}, output={"dtype": "float32"},
        )  # fmt: skip

    straight = train(config("straight"), SilentHost())
    train(config("halved"), SilentHost(stop_at=2))
    halved = train(config("halved"), SilentHost())
    one, other = load_file(straight.lora), load_file(halved.lora)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert straight.max_relative_error < 1e-4
    ranks = {
        tensor.shape[0] for key, tensor in load_file(straight.lora).items() if "lora_A" in key or "lora_down" in key
    }
    assert ranks == {4}
    losses = [line["loss"] for line in run_folder(config("straight")).read_metrics() if "loss" in line]
    assert losses == [line["loss"] for line in run_folder(config("halved")).read_metrics() if "loss" in line]
