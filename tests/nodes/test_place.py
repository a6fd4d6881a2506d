"""Conditioning is asked for where the network lies: a model may run a part of itself for it."""

from types import SimpleNamespace

import pytest
import torch

from lora_loom.nodes.host.backend.conditions import moved, place_of

GPU, CPU, NOWHERE = (SimpleNamespace(device=torch.device(name)) for name in ("cuda:1", "cpu", "meta"))


@pytest.mark.parametrize(
    ("parameters", "place"), [([CPU], "cpu"), ([CPU, GPU], "cuda:1"), ([NOWHERE, CPU], "cpu"), ([], "cpu")]
)
def test_the_place_of_a_network_is_the_gpu_if_a_part_of_it_is_there(parameters, place):
    model = SimpleNamespace(diffusion_model=SimpleNamespace(parameters=lambda: iter(parameters)))
    assert place_of(model) == torch.device(place)


def test_tensors_move_and_other_values_stay():
    found = moved([torch.ones(2), 3, "text", [torch.ones(1)]], torch.device("meta"))
    assert [getattr(one, "device", one) for one in found[:3]] == [torch.device("meta"), 3, "text"]
    assert found[3][0].device.type == "meta"
