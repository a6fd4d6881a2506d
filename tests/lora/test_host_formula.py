"""Our written-out copy of the host's arithmetic against what ComfyUI itself computed (recorded)."""

import pytest
import torch
from safetensors.torch import load_file

from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.lora.host_formula import (
    bias_change,
    changes_weight,
    group_by_module,
    needs_whole_weight,
    weight_change,
)
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
    others = {
        "lora-tucker",
        "loha-tucker",
        "diff",
        "diff-conv",
        "set",
        "norm",
        "oft",
        "oft-conv",
        "boft",
        "boft-rescale",
        "glora",
        "glora-old",
    }
    assert others <= set(CASES)


def test_alpha_is_one_where_it_is_not_stored():
    parts = {"lora_up.weight": torch.ones(3, 2), "lora_down.weight": torch.ones(2, 4)}
    assert weight_change(parts, torch.zeros(3, 4)).unique().item() == 2.0
    assert weight_change({**parts, "alpha": torch.tensor(1.0)}, torch.zeros(3, 4)).unique().item() == 1.0


def test_incomplete_adapters_are_an_error():
    with pytest.raises(ModelFileError, match="incomplete"):
        weight_change({"lora_up.weight": torch.ones(3, 2)}, torch.zeros(3, 4))


def test_grouping():
    tensors = {
        "a.b.lora_A.weight": torch.ones(1),
        "a.b.alpha": torch.ones(1),
        "c.diff": torch.ones(1),
        "d.oft_diag": torch.ones(1),
    }
    modules, unknown = group_by_module(tensors)
    assert {key: set(parts) for key, parts in modules.items()} == {"a.b": {"lora_A.weight", "alpha"}, "c": {"diff"}}
    assert unknown == ["d.oft_diag"]


def test_scales_of_columns_need_the_whole_weight_also_where_it_is_square():
    columns, rows = torch.rand(1, 8), torch.rand(8, 1)
    assert needs_whole_weight({"dora_scale": columns}, 8)
    assert needs_whole_weight({"dora_scale": columns}, 5)
    assert not needs_whole_weight({"dora_scale": rows}, 8)
    assert not needs_whole_weight({}, 8)


@pytest.mark.parametrize("span", [(0, 12), (0, 5), (3, 9), (4, 8), (7, 12)])
def test_some_rows_of_a_kronecker_product_are_the_rows_of_the_whole(span):
    """Heights of 4: a span begins and ends within one, at one, or is all of them."""
    source = torch.Generator().manual_seed(0)
    parts = {"lokr_w1": torch.randn(3, 2, generator=source), "lokr_w2": torch.randn(4, 3, generator=source)}
    whole, base = weight_change(parts, torch.zeros(12, 6)), torch.zeros(span[1] - span[0], 6)
    assert torch.equal(weight_change(parts, base, span=(span[0], 12)), whole[span[0] : span[1]])


@pytest.mark.parametrize("case", ["oft", "boft", "glora", "loha-tucker"])
def test_kinds_that_mix_rows_need_the_whole_weight(case):
    parts = {key.removeprefix(f"{case}."): tensor for key, tensor in RECORDED.items() if key.startswith(f"{case}.")}
    assert needs_whole_weight(parts, len(parts["base"]))


@pytest.mark.parametrize("name", ["diff", "set_weight"])
def test_rows_of_a_difference_are_cut_from_the_whole(name):
    parts, base = {name: torch.rand(6, 4)}, torch.rand(6, 4)
    whole = weight_change(parts, base, 0.5)
    assert torch.equal(weight_change(parts, base[2:5], 0.5, (2, 6)), whole[2:5])


def test_kinds_that_cannot_be_applied_are_refused():
    base, blocks = torch.rand(16, 8), torch.rand(2, 4, 4, 4)
    with pytest.raises(ModelFileError, match="a BOFT without alpha, which ComfyUI does not apply"):
        weight_change({"oft_blocks": blocks}, base)
    with pytest.raises(
        ModelFileError, match=r"diff has shape \(3, 3\), the weight \(16, 8\): it was made for a model of another size"
    ):
        weight_change({"diff": torch.rand(3, 3)}, base)


def test_a_bias_is_changed_apart():
    assert bias_change({"diff_b": torch.ones(3)}, 0.5).tolist() == [0.5] * 3
    assert bias_change({"lora_up.weight": torch.ones(3, 1)}) is None
    assert not changes_weight(["diff_b", "alpha"])
    assert changes_weight(["diff_b", "diff"])
