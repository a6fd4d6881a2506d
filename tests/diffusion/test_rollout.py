"""Scheduled sampling: latents that a network made itself, against worked examples and the flow of a network that is never wrong."""

from dataclasses import dataclass, replace

import pytest
import torch

from lora_loom.trainer.diffusion.objectives import Epsilon, FlowMatching, VPrediction
from lora_loom.trainer.diffusion.rollout import earlier, offset, rolled
from lora_loom.trainer.seeding import StepKey, generator
from lora_loom.trainer.training.step import Rollout, draw, sample_loss, train_step
from tests.training.test_loop import LOSS, ToyBatches, ToyDenoiser

LATENTS, NOISE = torch.randn(2, 2, 4, 3, 3, generator=generator(0))
PLACE = StepKey(seed=0, step=3, micro_batch=1)


@dataclass
class Says:
    """A network that predicts what a function says of (noisy latents, noise levels)."""

    objective: object
    of: object
    calls: int = 0

    def predict(self, noisy_BCHW, sigma_B, conditioning):
        self.calls += 1
        return self.of(noisy_BCHW, sigma_B)


def test_a_worked_example():
    """v = x is dx/dsigma = x: three Euler steps of -1/1000 are the factor (1 - 1/1000)^3."""
    says = Says(FlowMatching(), lambda noisy, sigma: noisy)
    made = rolled(says, LATENTS, NOISE, torch.tensor([0.5, 0.25]), torch.tensor([3, 3]), {})
    start = torch.stack([0.497 * LATENTS[0] + 0.503 * NOISE[0], 0.747 * LATENTS[1] + 0.253 * NOISE[1]])
    assert torch.allclose(made, start * 0.999**3, atol=1e-5)
    assert says.calls == 3


@pytest.mark.parametrize("objective", [FlowMatching(), Epsilon(), VPrediction()], ids=lambda one: one.name)
def test_of_a_network_that_is_never_wrong_the_latents_are_the_usual_ones(objective):
    says = Says(objective, lambda noisy, sigma: objective.target(LATENTS, NOISE, sigma))
    sigma = objective.sigma_at(torch.tensor([0.3, 0.6]))
    made = rolled(says, LATENTS, NOISE, sigma, torch.tensor([40, 7]), {})
    usual = objective.add_noise(LATENTS, NOISE, sigma)
    assert torch.allclose(made, usual, atol=1e-4 * float(usual.abs().max()))
    wrong = Says(objective, lambda noisy, sigma: 2 * objective.target(LATENTS, NOISE, sigma))
    assert not torch.allclose(rolled(wrong, LATENTS, NOISE, sigma, torch.tensor([40, 7]), {}), usual, atol=1e-3)


def test_a_sample_without_a_rollout_is_noised_as_usual():
    says = Says(FlowMatching(), lambda noisy, sigma: noisy)
    sigma = torch.tensor([0.5, 0.25])
    made = rolled(says, LATENTS, NOISE, sigma, torch.tensor([0, 5]), {})
    usual = FlowMatching().add_noise(LATENTS, NOISE, sigma)
    assert torch.equal(made[0], usual[0])
    assert not torch.allclose(made[1], usual[1])


def test_earlier_levels_are_rows_of_the_table_and_end_at_the_highest():
    epsilon = Epsilon()
    sigma = epsilon.sigmas[[10, 500, 995]]
    assert torch.equal(earlier(epsilon, sigma, torch.tensor([0, 20, 20])), epsilon.sigmas[[10, 520, 999]])
    flow = earlier(FlowMatching(shift=3.0), torch.tensor([0.2, 0.995]), torch.tensor([10, 10]))
    assert torch.allclose(flow, torch.tensor([0.21, 1.0]))


def test_offsets_are_spread_as_their_names_say():
    shares = [(n + 0.5) / 1100 for n in range(1100)]
    counts = [[offset("uniform", 10, share) for share in shares].count(k) for k in range(11)]
    assert counts == [100] * 11
    means = {name: sum(offset(name, 10, share) for share in shares) / 1100 for name in ("biased_early", "biased_late")}
    assert means == pytest.approx({"biased_early": 10 / 3, "biased_late": 20 / 3}, abs=0.05)  # E U^2 = 1/3


def test_a_training_step_learns_from_the_rolled_latents():
    rollout = Rollout(most=10)
    settings = replace(LOSS, rollout=rollout)
    denoiser, batch = ToyDenoiser(), ToyBatches().at(0)
    noise, sigma = draw(denoiser, batch, LOSS, PLACE)
    offsets = rollout.offsets(batch.size, PLACE)
    assert any(offsets)
    made = rolled(denoiser, batch.latents_BCHW, noise, sigma, torch.tensor(offsets), batch.conditioning)
    denoiser.calls = 0
    loss = train_step(denoiser, batch, settings, PLACE)
    assert denoiser.calls == 1 + max(offsets)
    assert torch.equal(loss, sample_loss(denoiser, batch, noise, sigma, LOSS, noisy_BCHW=made) * batch.weight_B)
    plain = train_step(denoiser, batch, LOSS, PLACE)
    assert not torch.allclose(loss, plain, rtol=1e-5)
    assert not made.requires_grad, "only the last pass has a gradient"
    assert torch.equal(
        train_step(denoiser, batch, replace(LOSS, rollout=Rollout(most=10, probability=0.0)), PLACE), plain
    )


def test_how_often_and_when():
    often = [Rollout(most=10, probability=0.25).offsets(2, replace(PLACE, step=step)) for step in range(400)]
    share = sum(one > 0 for pair in often for one in pair) / 800
    assert share == pytest.approx(0.25 * 10 / 11, abs=0.04)
    rising = Rollout(most=10, ramp_steps=100)
    assert rising.offsets(50, replace(PLACE, step=0)) == [0] * 50
    halfway, after = (sum(one > 0 for one in rising.offsets(1000, replace(PLACE, step=step))) for step in (50, 100))
    assert (halfway, after) == (pytest.approx(455, abs=50), pytest.approx(909, abs=30))
