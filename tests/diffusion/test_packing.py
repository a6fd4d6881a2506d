import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.diffusion.packing import pack, position_ids, reference_places, unpack

sides = st.integers(1, 6).map(lambda n: 2 * n)


@given(height=sides, width=sides, channels=st.integers(1, 4))
def test_pack_and_unpack_invert(height, width, channels):
    latents = torch.arange(2.0 * channels * height * width).reshape(2, channels, height, width)
    assert torch.equal(unpack(pack(latents), height, width), latents)


def test_channel_order_is_channel_row_column():
    """A 1-channel 2x2 image is one token of its pixels in reading order; channels come first."""
    latents = torch.tensor([[[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]]])
    assert pack(latents).tolist() == [[[1, 2, 3, 4, 5, 6, 7, 8]]]


@pytest.mark.parametrize("size", [(3, 4), (4, 3), (5, 5)])
def test_odd_sides_are_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}"):
        pack(torch.zeros(1, 1, *size))


def test_position_ids_follow_the_tokens():
    """Each id row is [index, y, x] of its patch, in the order of pack."""
    rows = torch.arange(4.0).repeat_interleave(2)[:, None].expand(8, 6).reshape(1, 1, 8, 6)
    columns = torch.arange(3.0).repeat_interleave(2)[None, :].expand(8, 6).reshape(1, 1, 8, 6)
    ids = position_ids(8, 6, index=1, top=10, left=20)
    assert torch.equal(ids[:, 1] - 10, pack(rows)[0, :, 0])
    assert torch.equal(ids[:, 2] - 20, pack(columns)[0, :, 0])
    assert ids[:, 0].unique().item() == 1


def test_places_of_references_worked_by_hand():
    """Latents: A of 8 x 8, B of 8 x 4, C of 4 x 16, as ComfyUI's build_kontext_inputs lays them out.

    A at (0, 0): the whole is then 8 high, 8 wide. B: 8 + 8 > 4 + 8, so to the right at column 8; 8 high, 12 wide. C:
    4 + 8 > 16 + 12 is false, so below at row 8; 12 high, 16 wide. In patches of 2: (0, 0), (0, 4), (4, 0).
    """
    assert reference_places([(8, 8), (8, 4), (4, 16)]) == [(0, 0), (0, 4), (4, 0)]


def test_four_equal_references_worked_by_hand():
    """8 x 8 latents each. Below the first (8 + 8 > 8 + 8 is false), then to its right (8 + 16 > 8 + 8), then below again
    (8 + 16 > 8 + 16 is false), at row 16: none lies over another."""
    assert reference_places([(8, 8)] * 4) == [(0, 0), (4, 0), (0, 4), (8, 0)]


@given(sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=6))
def test_no_two_references_share_a_position(sizes):
    taken = set()
    for (rows, columns), (top, left) in zip(sizes, reference_places(sizes), strict=True):
        mine = {(top + y, left + x) for y in range(rows // 2) for x in range(columns // 2)}
        assert not taken & mine
        taken |= mine


def test_ids_of_a_reference_worked_by_hand():
    """A reference of 4 x 2 latents to the right of one of 4 x 4: one column of two patches, index 1, at column 2."""
    (_, (top, left)) = reference_places([(4, 4), (4, 2)])
    assert position_ids(4, 2, index=1, top=top, left=left).tolist() == [[1, 0, 2], [1, 1, 2]]
    assert position_ids(2, 4).tolist() == [[0, 0, 0], [0, 0, 1]], "the picture's own begin at the corner, with index 0"
