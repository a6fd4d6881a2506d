"""The simulation of a streamed base against what is known without it: a chain of equal blocks, and sizes that were published."""

import pytest

from bench.network_sizes import SIZES
from bench.streaming import CARDS, Work, break_even, slowdown, work_of

SIZE = {size.name: size for size in SIZES}


@pytest.mark.parametrize("copy_share", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_equal_blocks_take_the_longer_of_copy_and_arithmetic(copy_share):
    """A block's copy takes `copy_share` of its forward pass; the backward pass is twice as long. 2 (N - 2) blocks move."""
    count, seconds = 40, 1.0
    blocks = [Work(str(i), 1000, seconds * 0.5e12, 0.0) for i in range(count)]
    rate = 1000 / (copy_share * seconds)
    found = slowdown(blocks, 1, 1, 1e12, rate)
    forward, backward = max(1.0, copy_share), max(2.0, copy_share)
    assert found == pytest.approx((forward + backward) / 3, rel=0.06)
    assert found >= 0.999


@pytest.mark.parametrize(("name", "billions"), [("Flux 12B", 11.9), ("Qwen-Image 20B", 20.4), ("SD3.5-L 8B", 8.06)])
def test_the_blocks_hold_nearly_all_weights(name, billions):
    assert sum(work.parameters for work in work_of(SIZE[name], 512)) / 1e9 == pytest.approx(billions, rel=0.02)


def test_arithmetic_hides_the_copies_of_fp8_at_1024_pixels():
    for name in ("Flux 12B", "SD3.5-L 8B"):
        blocks = work_of(SIZE[name], 1024)
        for card in ("3060, PCIe 4", "4070, PCIe 4", "4090, PCIe 4", "5090, PCIe 5"):
            assert slowdown(blocks, 1, 1, *CARDS[card]) <= 1.10, (name, card)


def test_weights_that_do_not_travel_are_no_slower():
    for name, share in (("Flux 12B", 0.27), ("Qwen-Image 20B", 0.33)):
        blocks, less = work_of(SIZE[name], 512), work_of(SIZE[name], 512, modulation=False)
        left = sum(work.parameters for work in less) / sum(work.parameters for work in blocks)
        assert 1 - left == pytest.approx(share, abs=0.01)
        card = CARDS["4090, PCIe 4"]
        assert 1 < slowdown(less, 1, 1, *card) < slowdown(blocks, 1, 1, *card)


def test_a_larger_batch_hides_what_one_image_does_not():
    blocks, card = work_of(SIZE["Flux 12B"], 512), CARDS["4090, PCIe 4"]
    batch = break_even(blocks, 1, *card)
    assert 1 < batch <= 4
    assert slowdown(blocks, 1, batch, *card) <= 1.10 < slowdown(blocks, 1, batch - 1, *card)
