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


def test_noise_offset_is_that_wide():
    """epsilon + o N(0, 1) of shape (C, 1, 1): over many channels the shifts have the spread o."""
    difference = draw_noise((4000, 1, 2), generator(8), offset=0.1) - draw_noise((4000, 1, 2), generator(8))
    assert difference[:, 0, 0].std().item() == pytest.approx(0.1, rel=0.05)
    assert difference.mean().item() == pytest.approx(0.0, abs=0.01)
    assert torch.equal(draw_noise((4, 2, 2), generator(8), offset=0.0), draw_noise((4, 2, 2), generator(8)))


def test_huber_joins_its_two_branches():
    """Half the square below delta, delta (|d| - delta / 2) above; smooth L1 is that over delta."""
    difference = torch.tensor([0.05, 0.1, 0.3])
    huber = element_loss(difference, torch.zeros(3), "huber", 0.1)
    assert huber.tolist() == pytest.approx([0.00125, 0.005, 0.025])
    smooth = element_loss(difference, torch.zeros(3), "smooth_l1", 0.1)
    assert smooth.tolist() == pytest.approx([0.0125, 0.05, 0.25])


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_over_the_whole_schedule(gamma):
    """min(SNR, gamma) / SNR and / (SNR + 1) with SNR = abar / (1 - abar), written out (algorithms D4)."""
    for objective, more in ((Epsilon(), 0), (VPrediction(), 1)):
        sigma = objective.sigmas[::37]
        abar = 1 / (1 + sigma.double() ** 2)
        snr = abar / (1 - abar)
        expected = snr.clamp_max(gamma) / (snr + more)
        assert torch.allclose(min_snr_weight(objective, sigma, gamma).double(), expected, rtol=1e-4)


def test_masked_gradient_stays_inside_the_mask():
    prediction = torch.zeros(1, 2, 4, 4, requires_grad=True)
    mask = F.pad(torch.ones(1, 1, 2, 2), (0, 2, 0, 2))
    per_sample(element_loss(prediction, torch.ones_like(prediction)), mask).sum().backward()
    assert torch.equal(prediction.grad != 0, (mask > 0).expand_as(prediction))
