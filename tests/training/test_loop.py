"""The loop as an order of events: accumulation, clipping, finite checks before the optimizer moves, averages."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig
from lora_loom.trainer.diffusion.loss import multires_noise
from lora_loom.trainer.diffusion.objectives import Epsilon, FlowMatching, VPrediction
from lora_loom.trainer.diffusion.timesteps import NoiseLevels, Uniform
from lora_loom.trainer.errors import DivergedError
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.seeding import StepKey, generator
from lora_loom.trainer.training.held_out import HeldOut, held_out_loss, held_out_losses, mean_loss
from lora_loom.trainer.training.loop import Average, LoopSettings, Training, fit
from lora_loom.trainer.training.optim import make_optimizer
from lora_loom.trainer.training.step import LossSettings, draw, partly_unmasked, perturbed, sample_loss, train_step
from lora_loom.trainer.types import Batch

LOSS = LossSettings(noise_levels=NoiseLevels(law=Uniform()))


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)
        with torch.no_grad():
            self.mix.weight.copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
            self.mix.bias.zero_()


@dataclass
class ToyDenoiser:
    module: nn.Module = field(default_factory=Toy)
    objective: object = field(default_factory=FlowMatching)
    family: str = "toy"
    poison: int | None = None
    calls: int = 0

    def predict(self, noisy_BCHW, sigma_B, conditioning):
        self.calls += 1
        mixed = self.module.mix(noisy_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        out = mixed * (1 + sigma_B.reshape(-1, 1, 1, 1)) + conditioning["text"].reshape(-1, 1, 1, 1)
        return out * float("nan") if self.calls == self.poison else out


class ToyBatches:
    """Batch p holds samples 2p and 2p + 1; the third holds one only."""

    def size(self, position):
        return 1 if position == 2 else 2

    def at(self, position):
        size = self.size(position)
        source = torch.Generator().manual_seed(position)
        return Batch(
            latents_BCHW=torch.randn(size, 4, 3, 3, generator=source),
            conditioning={"text": torch.randn(size, generator=source)},
            weight_B=torch.ones(size),
            mask_B1HW=None,
            names=tuple("ab"[:size]),
        )


def training(denoiser, ema=0.0, **network):
    adapter = inject(denoiser.module, ["mix"], NetworkConfig(rank=2, **network), seed=0)
    made = Training(
        adapter=adapter, optimizer=make_optimizer(adapter.parameters().values(), OptimizerConfig(learning_rate=1e-2))
    )
    if ema:
        made.average = Average(adapter.parameters(), ema)
    return made


def settings(**changes):
    return LoopSettings(**{"loss": LOSS, "seed": 0, **changes})


def values(state):
    return [p.detach().clone() for p in state.adapter.parameters().values()]


def take(steps, count):
    return [next(steps) for _ in range(count)]


def test_steps_come_one_by_one_and_can_be_left():
    denoiser = ToyDenoiser()
    state = training(denoiser)
    results = take(fit(denoiser, state, ToyBatches(), settings(), lambda step: 1e-2 * (step + 1)), 3)
    assert [result.step for result in results] == [1, 2, 3]
    assert [result.learning_rate for result in results] == pytest.approx([0.01, 0.02, 0.03])
    assert state.step == 3


def test_leaving_and_coming_back_is_seamless():
    one, two = ToyDenoiser(), ToyDenoiser()
    straight, halved = training(one, dropout=0.3), training(two, dropout=0.3)
    take(fit(one, straight, ToyBatches(), settings(), lambda step: 1e-2), 6)
    take(fit(two, halved, ToyBatches(), settings(), lambda step: 1e-2), 3)
    take(fit(two, halved, ToyBatches(), settings(), lambda step: 1e-2), 3)
    assert all(torch.equal(a, b) for a, b in zip(values(straight), values(halved), strict=True))


def test_accumulation_is_the_mean_over_all_samples():
    """Two micro-batches of 2 and 1 samples give the gradient of the mean of the three losses."""
    denoiser = ToyDenoiser()
    state = training(denoiser)
    for parameter in state.adapter.parameters().values():
        parameter.data += 0.1
    batches = ToyBatches()
    total = (
        sum(train_step(denoiser, batches.at(2 + i), LOSS, StepKey(seed=0, step=1, micro_batch=i)).sum() for i in (0, 1))
        / 3
    )
    total.backward()
    expected = [p.grad.norm().item() for p in state.adapter.parameters().values()]
    state.optimizer.zero_grad()
    state.step = 1
    [result] = take(fit(denoiser, state, batches, settings(accumulation=2, clip_norm=0.0), lambda step: 0.0), 1)
    assert result.loss == pytest.approx(total.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(sum(e**2 for e in expected) ** 0.5, rel=1e-5)


def test_sample_weights_scale_the_loss():
    denoiser, batch = ToyDenoiser(), ToyBatches().at(0)
    place = StepKey(seed=0, step=0, micro_batch=0)
    plain = train_step(denoiser, batch, LOSS, place)
    weighted = Batch(**{**batch.__dict__, "weight_B": torch.tensor([0.5, 2.0])})
    assert torch.allclose(train_step(denoiser, weighted, LOSS, place), plain * torch.tensor([0.5, 2.0]))


def taught(flags, batch=None):
    return Batch(**{**(batch or ToyBatches().at(0)).__dict__, "by_base_B": torch.tensor(flags)})


def test_samples_taught_by_the_base_cost_what_the_adapter_changed():
    """Nothing at the start; later the squared difference of what network and base predict. The others learn as ever."""
    denoiser, place = ToyDenoiser(), StepKey(seed=0, step=0, micro_batch=0)
    state, batch = training(denoiser), taught([True, False])
    off = state.adapter.disabled
    plain = train_step(denoiser, ToyBatches().at(0), LOSS, place)
    loss = train_step(denoiser, batch, LOSS, place, off)
    assert loss[0] == 0
    assert loss[1] == plain[1]
    for parameter in state.adapter.parameters().values():
        parameter.data += 0.3
    noise, sigma = draw(denoiser, batch, LOSS, place)
    noisy = denoiser.objective.add_noise(batch.latents_BCHW, noise, sigma)
    with torch.no_grad():
        with state.adapter.disabled():
            base = denoiser.predict(noisy, sigma, batch.conditioning)
        change = denoiser.predict(noisy, sigma, batch.conditioning) - base
    loss = train_step(denoiser, batch, LOSS, place, off)
    assert loss[0].item() == pytest.approx(change[0].square().mean().item(), rel=1e-5)
    assert loss[1] == train_step(denoiser, ToyBatches().at(0), LOSS, place)[1]
    weighted = Batch(**{**batch.__dict__, "weight_B": torch.tensor([0.5, 1.0])})
    assert train_step(denoiser, weighted, LOSS, place, off)[0] == loss[0] * 0.5


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_the_base_as_teacher_draws_the_adapter_back(kind):
    """Trained on such samples alone, an adapter that changes the network comes to change it less."""

    class Taught(ToyBatches):
        def at(self, position):
            return taught([True] * self.size(position), super().at(position))

    denoiser = ToyDenoiser()
    state = training(denoiser, kind=kind)
    for parameter in state.adapter.parameters().values():
        parameter.data += 0.2
    losses = [r.loss for r in take(fit(denoiser, state, Taught(), settings(), lambda step: 1e-2), 60)]
    assert sum(losses[-3:]) < 0.2 * sum(losses[:3])
    assert all(parameter.grad is None or parameter.requires_grad for parameter in state.adapter.parameters().values())


def test_noise_and_levels_are_functions_of_place_and_slot():
    denoiser, batch = ToyDenoiser(), ToyBatches().at(0)
    noise, sigma = draw(denoiser, batch, LOSS, StepKey(seed=0, step=3, micro_batch=1))
    again, _ = draw(denoiser, batch, LOSS, StepKey(seed=0, step=3, micro_batch=1))
    assert torch.equal(noise, again)
    assert not torch.equal(noise[0], noise[1])
    assert sigma[0] != sigma[1]
    single = Batch(**{**batch.__dict__, "latents_BCHW": batch.latents_BCHW[:1]})
    assert torch.equal(draw(denoiser, single, LOSS, StepKey(seed=0, step=3, micro_batch=1))[0][0], noise[0])
    for other in (
        StepKey(seed=1, step=3, micro_batch=1),
        StepKey(seed=0, step=4, micro_batch=1),
        StepKey(seed=0, step=3, micro_batch=0),
    ):
        assert not torch.equal(draw(denoiser, batch, LOSS, other)[0], noise)


def test_loss_options_reach_the_loss():
    denoiser, batch = ToyDenoiser(objective=Epsilon()), ToyBatches().at(0)
    noise, sigma = torch.randn(2, 4, 3, 3), torch.tensor([0.5, 5.0])
    plain = sample_loss(denoiser, batch, noise, sigma, LOSS)
    weighted = sample_loss(
        denoiser, batch, noise, sigma, LossSettings(noise_levels=LOSS.noise_levels, min_snr_gamma=1.0)
    )
    assert torch.allclose(weighted, plain * torch.tensor([0.25, 1.0]))
    huber = sample_loss(denoiser, batch, noise, sigma, LossSettings(noise_levels=LOSS.noise_levels, kind="huber"))
    assert (huber < plain).all()


def with_options(**options):
    return LossSettings(noise_levels=LOSS.noise_levels, **options)


def test_weights_of_the_loss_multiply():
    noise, sigma, batch = torch.randn(2, 4, 3, 3), torch.tensor([0.5, 5.0]), ToyBatches().at(0)
    for objective, options, weights in (
        (Epsilon(), {"debiased": True}, [0.5, 5.0]),
        (Epsilon(), {"min_snr_gamma": 1.0, "soft_min_snr": True}, [1 / 5, 25 / 26]),
        (VPrediction(), {"scale_v": True}, [4 / 5, 1 / 26]),
        (
            VPrediction(),
            {"debiased": True, "min_snr_gamma": 1.0},
            [(1 / 5) ** 2, (1 / 26 * 25) * (1 / 25 / (1 / 25 + 1))],
        ),
    ):
        denoiser = ToyDenoiser(objective=objective)
        plain = sample_loss(denoiser, batch, noise, sigma, LOSS)
        weighted = sample_loss(denoiser, batch, noise, sigma, with_options(**options))
        assert torch.allclose(weighted, plain * torch.tensor(weights), rtol=1e-4), options


def test_a_perturbed_input_has_more_noise_than_its_target():
    denoiser, batch, place = ToyDenoiser(), ToyBatches().at(0), StepKey(seed=0, step=3, micro_batch=1)
    noise, sigma = draw(denoiser, batch, LOSS, place)
    more = perturbed(noise, 0.1, place)
    assert torch.equal(more, perturbed(noise, 0.1, place)), "a function of its place"
    assert not torch.equal(more, perturbed(noise, 0.1, StepKey(seed=0, step=4, micro_batch=1)))
    assert (more - noise).std().item() == pytest.approx(0.1, rel=0.3)
    loss = train_step(denoiser, batch, with_options(perturbation=0.1), place)
    noisy = denoiser.objective.add_noise(batch.latents_BCHW, more, sigma)
    assert torch.equal(loss, sample_loss(denoiser, batch, noise, sigma, LOSS, noisy_BCHW=noisy) * batch.weight_B)
    assert not torch.equal(loss, train_step(denoiser, batch, LOSS, place))


def test_multires_noise_is_drawn_by_place():
    denoiser, batch = ToyDenoiser(objective=Epsilon()), ToyBatches().at(0)
    place, options = StepKey(seed=0, step=3, micro_batch=1), with_options(multires_iterations=4, multires_discount=0.5)
    noise, sigma = draw(denoiser, batch, options, place)
    plain, same = draw(denoiser, batch, LOSS, place)
    expected = multires_noise(plain[0], 4, 0.5, generator(0, "multires", 3, 1, 0))
    assert torch.equal(noise[0], expected)
    assert torch.equal(sigma, same)


def test_a_mask_is_ignored_as_often_as_asked_and_never_lower_than_asked():
    mask = torch.zeros(1, 1, 2, 2)
    places = [StepKey(seed=0, step=step, micro_batch=0) for step in range(400)]
    options = with_options(unmasked_probability=0.25, unmasked_weight=0.1)
    masks = [partly_unmasked(mask, options, place) for place in places]
    assert {round(value, 6) for one in masks for value in one.unique().tolist()} == {0.1, 1.0}
    assert sum(bool((one == 1).all()) for one in masks) / 400 == pytest.approx(0.25, abs=0.06)
    assert all(
        torch.equal(one, partly_unmasked(mask, options, place)) for one, place in zip(masks, places, strict=True)
    )
    assert partly_unmasked(mask, LOSS, places[0]) is mask
    assert partly_unmasked(None, options, places[0]) is None


def test_a_bad_step_is_not_taken():
    denoiser = ToyDenoiser(poison=3)
    state = training(denoiser)
    steps = fit(denoiser, state, ToyBatches(), settings(), lambda step: 1e-2)
    take(steps, 2)
    before = values(state)
    with pytest.raises(DivergedError, match=r"loss nan in step 3: lower optimizer\.learning_rate"):
        next(steps)
    assert all(torch.equal(a, b) for a, b in zip(before, values(state), strict=True))
    assert state.step == 2
    undisturbed = ToyDenoiser()
    straight = training(undisturbed)
    take(fit(undisturbed, straight, ToyBatches(), settings(), lambda step: 1e-2), 3)
    take(fit(denoiser, state, ToyBatches(), settings(), lambda step: 1e-2), 1)
    assert all(torch.equal(a, b) for a, b in zip(values(straight), values(state), strict=True)), "nothing of it is left"


def test_an_infinite_gradient_is_not_taken(monkeypatch):
    denoiser = ToyDenoiser()
    state = training(denoiser)
    [first, *_] = state.adapter.parameters().values()
    first.register_hook(lambda grad: grad * float("inf"))
    before = values(state)
    with pytest.raises(DivergedError, match="gradient norm"):
        next(fit(denoiser, state, ToyBatches(), settings(), lambda step: 1e-2))
    assert all(torch.equal(a, b) for a, b in zip(before, values(state), strict=True))


def test_float16_looks_for_a_scale_instead_of_giving_up():
    denoiser = ToyDenoiser()
    state = training(denoiser)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    [first, *_] = state.adapter.parameters().values()
    overflow = iter([True, True])
    first.register_hook(lambda grad: grad * float("inf") if next(overflow, False) else grad)
    before = values(state)
    steps = fit(denoiser, state, ToyBatches(), settings(), lambda step: 1e-2)
    take(steps, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, values(state), strict=True)), (
        "both steps overflowed and were skipped"
    )
    assert state.scaler.get_scale() == 2.0**14
    take(steps, 1)
    assert any(not torch.equal(a, b) for a, b in zip(before, values(state), strict=True))


def test_average_follows_its_closed_form():
    """d_n = min((1 + n) / (10 + n), d) on a parameter that jumps from 0 to 1."""
    parameter = {"p": torch.zeros(1)}
    average = Average(parameter, 0.9)
    parameter["p"] = torch.ones(1)
    expected = 0.0
    for step in range(1, 30):
        average.update(parameter, step)
        decay = min((1 + step) / (10 + step), 0.9)
        expected = decay * expected + (1 - decay)
        assert average.values["p"].item() == pytest.approx(expected, rel=1e-5)


def test_average_is_updated_after_each_step():
    denoiser = ToyDenoiser()
    state = training(denoiser, ema=0.5)
    start = {name: value.clone() for name, value in state.average.values.items()}
    take(fit(denoiser, state, ToyBatches(), settings(), lambda step: 1e-2), 1)
    for name, live in state.adapter.parameters().items():
        decay = 2 / 11
        assert torch.allclose(state.average.values[name], decay * start[name] + (1 - decay) * live, atol=1e-7)


def test_held_out_loss_repeats_and_follows_only_the_adapter():
    denoiser = ToyDenoiser()
    state = training(denoiser)
    batches = [Batch(**{**ToyBatches().at(p).__dict__, "weight_B": torch.ones(1), "latents_BCHW": ToyBatches().at(p).latents_BCHW[:1],
                        "conditioning": {"text": torch.zeros(1)}}) for p in range(3)]  # fmt: skip
    held = HeldOut(batches=batches, timesteps=4, levels=LOSS.noise_levels)
    first = held_out_loss(denoiser, held, LOSS.noise_levels)
    torch.randn(10)
    assert held_out_loss(denoiser, held, LOSS.noise_levels) == first
    take(fit(denoiser, state, ToyBatches(), settings(), lambda step: 1e-2), 3)
    assert held_out_loss(denoiser, held, LOSS.noise_levels) != first
    assert held.positions() == [0.125, 0.375, 0.625, 0.875]
    losses = held_out_losses(denoiser, held, LOSS.noise_levels)
    assert [len(row) for row in losses] == [4, 4, 4]
    assert held_out_loss(denoiser, held, LOSS.noise_levels) == pytest.approx(sum(map(sum, losses)) / 12, rel=1e-12)
    assert mean_loss([[1.0, 2.0], [3.0, 6.0]]) == 3.0
    assert math.isnan(mean_loss([]))


def test_masks_say_where_to_look_and_not_how_much_unless_it_is_asked_for():
    """By default a mask of one value changes nothing: also for the validation loss, which has no options of its own."""
    denoiser, batch = ToyDenoiser(), ToyBatches().at(0)
    masked = Batch(**{**batch.__dict__, "mask_B1HW": torch.full((2, 1, 3, 3), 0.5)})
    noise, sigma = torch.randn(2, 4, 3, 3), torch.tensor([0.3, 0.6])
    plain = sample_loss(denoiser, batch, noise, sigma, LOSS)
    assert torch.allclose(sample_loss(denoiser, masked, noise, sigma, LOSS), plain)
    scaled = LossSettings(noise_levels=LOSS.noise_levels, normalised_masks=False)
    assert torch.allclose(sample_loss(denoiser, masked, noise, sigma, scaled), plain * 0.5)


def test_dropout_is_off_between_steps():
    """What is measured or drawn then is the adapter itself."""
    denoiser, batch = ToyDenoiser(), ToyBatches().at(0)
    state = training(denoiser, dropout=0.5)
    take(fit(denoiser, state, ToyBatches(), settings(), lambda step: 1e-1), 2)
    inputs = batch.latents_BCHW, torch.tensor([0.3, 0.6]), batch.conditioning
    between = denoiser.predict(*inputs)
    state.adapter.set_draw(None)
    assert torch.equal(between, denoiser.predict(*inputs))


def test_between_the_micro_batches_of_a_step_others_may_have_the_machine(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("lora_loom.trainer.training.loop.time.perf_counter", lambda: clock[0])
    calls, denoiser = [], ToyDenoiser()

    def wait():
        calls.append(denoiser.calls)
        clock[0] += 100.0

    steps = fit(
        denoiser, training(denoiser), ToyBatches(), settings(accumulation=3), lambda step: 0.1, between_passes=wait
    )
    results = take(steps, 2)
    assert calls == [1, 2, 4, 5]
    assert [result.seconds for result in results] == [0.0, 0.0]  # waiting is no part of a step
