"""Losses, weights and masks against worked values."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.diffusion.loss import draw_noise, element_loss, min_snr_weight, per_sample
from lora_loom.trainer.diffusion.objectives import Epsilon, FlowMatching, VPrediction
from lora_loom.trainer.seeding import generator


def test_one_number_per_sample():
    prediction, target = torch.zeros(3, 2, 4, 4), torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 2, 4, 4)
    assert per_sample(element_loss(prediction, target)).tolist() == [0, 1, 4]


def test_huber_and_smooth_l1_worked_values():
    """At a difference of 0.5 and delta 0.1: huber 0.1 (0.5 - 0.05) = 0.045, smooth L1 0.5 - 0.05 = 0.45."""
    prediction, target = torch.zeros(1), torch.tensor([0.5])
    assert element_loss(prediction, target, "huber", 0.1).item() == pytest.approx(0.045)
    assert element_loss(prediction, target, "smooth_l1", 0.1).item() == pytest.approx(0.45)
    with pytest.raises(ValueError, match="known are mse"):
        element_loss(prediction, target, "l3")


def test_loss_is_computed_in_fp32():
    prediction = torch.full((1, 1, 64, 64), 1000.0, dtype=torch.float16)
    assert element_loss(prediction, -prediction).max().item() == pytest.approx(4e6)  # inf in fp16


def test_plain_and_normalised_masks():
    loss = torch.full((2, 3, 4, 4), 2.0)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, 0, 0] = 1  # one of sixteen
    mask[1] = 1
    assert per_sample(loss, mask, normalised=True).tolist() == pytest.approx([2, 2])
    assert per_sample(loss, mask, normalised=False).tolist() == pytest.approx([2 / 16, 2])
    assert per_sample(loss, torch.zeros(2, 1, 4, 4)).tolist() == [0, 0]


@given(weight=st.floats(0.05, 1))
def test_a_constant_mask_changes_nothing_when_normalised(weight):
    loss = torch.rand(2, 3, 4, 4, generator=generator(1))
    mask = torch.full((2, 1, 4, 4), weight)
    assert torch.allclose(per_sample(loss, mask), per_sample(loss), rtol=1e-5)


def test_masks_reach_video_shaped_latents():
    loss = torch.rand(2, 3, 1, 4, 4, generator=generator(2))
    mask = torch.rand(2, 1, 4, 4, generator=generator(3))
    assert torch.allclose(per_sample(loss, mask), per_sample(loss[:, :, 0], mask))


def test_min_snr_worked_values():
    """SNR 25 at sigma 0.2 and gamma 5: 5/25 for epsilon, 5/26 for v. SNR 0.25: 1, and 0.25/1.25."""
    sigma = torch.tensor([0.2, 2.0])
    assert min_snr_weight(Epsilon(), sigma, 5.0).tolist() == pytest.approx([0.2, 1.0], rel=1e-5)
    assert min_snr_weight(VPrediction(), sigma, 5.0).tolist() == pytest.approx([5 / 26, 0.2], rel=1e-5)


def test_min_snr_survives_zero_terminal_snr():
    weight = min_snr_weight(VPrediction(zero_terminal_snr=True), torch.tensor([1e9]), 5.0)
    assert torch.isfinite(weight).all()


def test_min_snr_is_refused_for_flow():
    with pytest.raises(ValueError, match="epsilon and v"):
        min_snr_weight(FlowMatching(), torch.tensor([0.5]), 5.0)


def test_noise_offset_shifts_whole_channels():
    plain = draw_noise((4, 32, 32), generator(7))
    shifted = draw_noise((4, 32, 32), generator(7), offset=0.1)
    difference = shifted - plain
    assert torch.allclose(difference, difference.mean((1, 2), keepdim=True).expand_as(difference), atol=1e-6)
    assert difference.abs().max() > 0.01
    assert plain.std().item() == pytest.approx(1, abs=0.05)


def test_masked_gradient_stays_inside_the_mask():
    prediction = torch.zeros(1, 2, 4, 4, requires_grad=True)
    mask = F.pad(torch.ones(1, 1, 2, 2), (0, 2, 0, 2))
    per_sample(element_loss(prediction, torch.ones_like(prediction)), mask).sum().backward()
    assert torch.equal(prediction.grad != 0, (mask > 0).expand_as(prediction))
