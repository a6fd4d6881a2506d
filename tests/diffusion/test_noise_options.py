"""Pyramid noise, scheduled deltas of Huber's loss, and weights by the SNR, against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from lora_loom.trainer.diffusion.loss import (
    debiased_weight,
    element_loss,
    huber_deltas,
    min_snr_weight,
    multires_noise,
    v_scale_weight,
)
from lora_loom.trainer.diffusion.objectives import Epsilon, FlowMatching, VPrediction
from lora_loom.trainer.seeding import generator

SIGMAS = torch.tensor([0.1, 1.0, 10.0])


def test_multires_noise_is_the_sum_of_enlarged_noise_at_falling_resolutions():
    noise = torch.randn(2, 16, 24, generator=generator(0))
    source, expected, sizes = generator(1), noise, []
    for i in range(6):
        ratio = (2 + 2 * torch.rand((), generator=source).item()) ** i
        sizes.append((max(int(16 / ratio), 1), max(int(24 / ratio), 1)))
        coarse = torch.randn(2, *sizes[-1], generator=source)
        expected = expected + 0.4**i * F.interpolate(coarse[None], size=(16, 24), mode="bilinear")[0]
        if 1 in sizes[-1]:
            break
    assert len(sizes) < 6, "16 rows become one before that"
    assert torch.allclose(multires_noise(noise, 6, 0.4, generator(1)), expected / expected.std())
    assert multires_noise(noise, 6, 0.4, generator(1)).std().item() == pytest.approx(1.0)


def test_multires_noise_has_more_power_at_low_frequencies():
    plain = torch.randn(64, 32, 32, generator=generator(2))
    coarse = torch.stack([multires_noise(one[None], 8, 0.8, generator(3, n))[0] for n, one in enumerate(plain)])
    low = [F.avg_pool2d(noise[:, None], 8).var().item() for noise in (plain, coarse)]
    assert low[1] > 5 * low[0]


def test_video_shaped_noise_keeps_its_shape():
    assert multires_noise(torch.randn(4, 1, 8, 8), 3, 0.5, generator(0)).shape == (4, 1, 8, 8)


def test_scheduled_deltas_are_those_of_sd_scripts():
    """exponential: exp(-alpha t) with alpha = -log(c) / T; snr: (1 - c) / (1 + sigma)^2 + c."""
    objective, c = Epsilon(), 0.1
    steps = objective.timestep(SIGMAS)
    expected = [math.exp(math.log(c) / 1000 * step) for step in steps.tolist()]
    assert huber_deltas("exponential", c, objective, SIGMAS).tolist() == pytest.approx(expected)
    assert huber_deltas("exponential", c, FlowMatching(), torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx(
        [1.0, math.sqrt(c), c]
    )
    expected = [(1 - c) / (1 + sigma) ** 2 + c for sigma in SIGMAS.tolist()]
    assert huber_deltas("snr", c, objective, SIGMAS).tolist() == pytest.approx(expected)
    assert huber_deltas("constant", c, objective, SIGMAS) == c


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_a_delta_for_each_sample_is_torchs_loss_with_that_delta(kind):
    prediction, target = torch.randn(2, 2, 3, 8, 8, generator=generator(4))
    both = element_loss(prediction, target, kind, torch.tensor([0.1, 0.7]).reshape(2, 1, 1, 1))
    for sample, delta in enumerate((0.1, 0.7)):
        assert torch.allclose(both[sample], element_loss(prediction, target, kind, delta)[sample], atol=1e-6)


def test_weights_by_the_snr():
    snr = [100.0, 1.0, 0.01]
    assert debiased_weight(Epsilon(), SIGMAS).tolist() == pytest.approx([x**-0.5 for x in snr], rel=1e-4)
    assert debiased_weight(VPrediction(), SIGMAS).tolist() == pytest.approx([1 / (x + 1) for x in snr], rel=1e-4)
    assert debiased_weight(Epsilon(), torch.tensor([1e-3])).item() == pytest.approx(1000**-0.5)
    soft = [x * 5 / (x + 5) for x in snr]
    assert min_snr_weight(Epsilon(), SIGMAS, 5.0, soft=True).tolist() == pytest.approx(
        [a / b for a, b in zip(soft, snr, strict=True)], rel=1e-4
    )
    assert v_scale_weight(VPrediction(), SIGMAS).tolist() == pytest.approx([x / (x + 1) for x in snr], rel=1e-4)
