"""Our written-out copy of the host's arithmetic against what ComfyUI itself computed (recorded)."""

import pytest
import torch
from safetensors.torch import load_file

from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.lora.host_formula import group_by_module, weight_change
from tests.conftest import HOST_FIXTURES

RECORDED = load_file(HOST_FIXTURES / "adapters.safetensors")
CASES = sorted({key.split(".")[0] for key in RECORDED})


@pytest.mark.parametrize("case", CASES)
def test_equals_what_the_host_computed(case):
    parts = {key.removeprefix(f"{case}."): tensor for key, tensor in RECORDED.items() if key.startswith(f"{case}.")}
    base, patched = parts.pop("base"), parts.pop("patched")
    change = weight_change(parts, base, strength=0.7)
    expected = patched - base
    assert (change - expected).norm() / expected.norm() < 2e-6


def test_every_kind_was_recorded():
    assert {"lora", "lora-conv", "dora", "dora-conv", "dora-input", "loha", "lokr-full", "lokr-factored"} <= set(CASES)


def test_alpha_is_one_where_it_is_not_stored():
    parts = {"lora_up.weight": torch.ones(3, 2), "lora_down.weight": torch.ones(2, 4)}
    assert weight_change(parts, torch.zeros(3, 4)).unique().item() == 2.0
    assert weight_change({**parts, "alpha": torch.tensor(1.0)}, torch.zeros(3, 4)).unique().item() == 1.0


def test_incomplete_adapters_are_an_error():
    with pytest.raises(ModelFileError, match="incomplete"):
        weight_change({"lora_up.weight": torch.ones(3, 2)}, torch.zeros(3, 4))


def test_grouping():
    tensors = {"a.b.lora_A.weight": torch.ones(1), "a.b.alpha": torch.ones(1), "c.diff": torch.ones(1)}
    modules, unknown = group_by_module(tensors)
    assert {key: set(parts) for key, parts in modules.items()} == {"a.b": {"lora_A.weight", "alpha"}}
    assert unknown == ["c.diff"]
