"""Equality of bits, whatever the numbers mean."""

import pytest
import torch

from lora_loom.trainer.weights import bits
from lora_loom.trainer.weights.bits import same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4, 5)], ids=str)
def test_a_copy_is_equal_and_one_flipped_bit_is_not(dtype, shape, monkeypatch):
    monkeypatch.setattr(bits, "BLOCK", 16)
    raw = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    one = raw.to(dtype)
    assert same_bits(one, one.clone())
    for place in (0, one.numel() - 1):
        other = one.clone()
        other.view(-1).view(torch.uint8)[place * one.element_size()] ^= 1
        assert not same_bits(one, other)


def test_numbers_that_compare_differently_than_their_bits():
    nan = torch.tensor([float("nan"), 1.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


def test_strides_and_offsets_do_not_matter():
    whole = torch.arange(61, dtype=torch.bfloat16)
    odd = whole[1:].view(6, 10)
    assert same_bits(odd, odd.clone())
    assert same_bits(odd.t(), odd.t().contiguous())
    assert not same_bits(odd.t(), odd.t().contiguous() + 1)


def test_other_shapes_and_dtypes_are_other_tensors():
    assert not same_bits(torch.zeros(2, 3), torch.zeros(3, 2))
    assert not same_bits(torch.zeros(4), torch.zeros(4, dtype=torch.int32))
