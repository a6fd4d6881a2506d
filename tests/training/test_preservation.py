"""Prior preservation without class images: captions without the trigger are held to the base's own prediction."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_loom.trainer.config.run import DatasetConfig
from lora_loom.trainer.data.sets.captions import class_caption, texts_of
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.seeding import StepKey
from lora_loom.trainer.training.loop import fit
from lora_loom.trainer.training.step import draw, preservation_loss, train_step
from lora_loom.trainer.types import Preserved, PreserveRule
from tests.conftest import SilentHost, make_config
from tests.data.test_batches import example
from tests.training.test_loop import LOSS, ToyBatches, ToyDenoiser, settings, take, training


def preserving(weight=1.0, slots=(1,), batch=None):
    """A batch whose samples `slots` are held to the base's prediction for other conditionings."""
    batch = batch or ToyBatches().at(0)
    other = {name: value[list(slots)] + 0.5 for name, value in batch.conditioning.items()}
    held = Preserved(slots=slots, conditioning=other, weight_S=torch.full((len(slots),), float(weight)))
    return replace(batch, preserved=held)


def moved(denoiser):
    state = training(denoiser)
    for parameter in state.adapter.parameters().values():
        parameter.data += 0.3
    return state


def test_what_is_held_has_the_gradient_of_the_squared_distance_to_the_base():
    """By hand: w |f(x_t, c') - f_0(x_t, c')|^2 of the held sample alone, f_0 with the adapter off and without gradient."""
    denoiser, place = ToyDenoiser(), StepKey(seed=0, step=0, micro_batch=0)
    state, batch = moved(denoiser), preserving(weight=0.7)
    parameters = list(state.adapter.parameters().values())
    noise, sigma = draw(denoiser, batch, LOSS, place)
    noisy = denoiser.objective.add_noise(batch.latents_BCHW, noise, sigma)[1:]
    with torch.no_grad(), state.adapter.disabled():
        base = denoiser.predict(noisy, sigma[1:], batch.preserved.conditioning)
    expected = 0.7 * (denoiser.predict(noisy, sigma[1:], batch.preserved.conditioning) - base).square().mean()
    assert expected.item() > 0.01
    by_hand = torch.autograd.grad(expected, parameters, allow_unused=True)
    loss = preservation_loss(denoiser, batch, LOSS, place, state.adapter.disabled)
    got = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(got, by_hand, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-5, atol=1e-8)


def test_the_prediction_that_is_kept_is_the_bases_and_has_no_gradient():
    denoiser, calls = ToyDenoiser(), []
    state, batch = moved(denoiser), preserving()
    predict = denoiser.predict

    def watched(*inputs):
        adapter_is_off = torch.equal(predict(*inputs), off(*inputs))
        assert inputs[2] is batch.preserved.conditioning, "the caption without the trigger, not the one that is trained"
        calls.append((torch.is_grad_enabled(), adapter_is_off))
        return predict(*inputs)

    def off(*inputs):
        with state.adapter.disabled():
            return predict(*inputs)

    denoiser.predict = watched
    preservation_loss(denoiser, batch, LOSS, StepKey(seed=0, step=0, micro_batch=0), state.adapter.disabled)
    assert calls == [(False, True), (True, False)]


def test_a_step_takes_the_gradient_of_both_losses_and_reports_them_apart():
    class Preserving(ToyBatches):
        def at(self, position):
            return preserving(0.5, batch=super().at(position)) if self.size(position) > 1 else super().at(position)

    results = {}
    for name, batches in (("off", ToyBatches()), ("on", Preserving())):
        denoiser = ToyDenoiser()
        state = moved(denoiser)
        [results[name]] = take(fit(denoiser, state, batches, settings(clip_norm=0.0), lambda step: 0.0), 1)
    assert results["on"].loss == results["off"].loss
    assert results["off"].preservation is None
    assert "preservation" not in results["off"].scalars()
    denoiser = ToyDenoiser()
    state, place = moved(denoiser), StepKey(seed=0, step=0, micro_batch=0)
    batch = Preserving().at(0)
    loss = train_step(denoiser, batch, LOSS, place, state.adapter.disabled).sum()
    extra = preservation_loss(denoiser, batch, LOSS, place, state.adapter.disabled).sum()
    ((loss + extra) / batch.size).backward()
    norm = sum(p.grad.square().sum() for p in state.adapter.parameters().values() if p.grad is not None).sqrt()
    assert results["on"].preservation == pytest.approx(extra.item() / batch.size, rel=1e-6)
    assert results["on"].grad_norm == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("trigger", "class_prompt", "caption", "held"),
    [
        ("sks dog", "a dog", "photo of sks dog, outdoors", "photo of a dog, outdoors"),
        ("sks", "", "sks, outdoors", "outdoors"),
        ("sks", "", "a sks dog, outdoors", "a dog, outdoors"),
        ("sks", "", "sks", ""),
        ("sks", "a dog", "sksy outdoors", "a dog"),
        ("sks", "", "a dog", None),
        ("", "a dog", "photo of Rex", "a dog"),
        ("", "a dog", "a dog", None),
        ("sks", "a dog", "", None),
    ],
)
def test_the_class_stands_in_place_of_the_trigger(trigger, class_prompt, caption, held):
    rule = PreserveRule(trigger=trigger, class_prompt=class_prompt, weight=1.0, share=1.0)
    one = replace(example(0, preserve=rule), captions=(caption,))
    assert class_caption(one, caption) == held
    assert texts_of(one) == {"", caption, *([] if held is None else [held])}
    assert class_caption(replace(one, preserve=None), caption) is None


def run(output, dataset=None, steps=3, **changes):
    config = make_config("sd", output, training={"steps": steps, "save_every": steps, "batch_size": 2})
    one = replace(config.dataset[0], trigger="sks", **(dataset or {}))
    config = replace(config, dataset=(one,), **changes)
    return config, train(config, SilentHost())


def weights(output, **options):
    _, outcome = run(output, options)
    from safetensors.torch import load_file

    return load_file(outcome.lora)


def test_weight_0_is_bit_for_bit_the_run_without(tmp_path):
    off, none, on = (
        weights(tmp_path / name, **options)
        for name, options in {
            "off": {},
            "none": {"teacher": "base", "teacher_weight": 0.0},
            "on": {"teacher": "base", "class_prompt": "a class"},
        }.items()
    )
    assert all(torch.equal(off[name], none[name]) for name in off)
    assert not all(torch.equal(off[name], on[name]) for name in off)


def test_a_run_that_holds_a_share_of_its_images_goes_on_exactly(tmp_path):
    options = {"teacher": "base", "teacher_share": 0.5, "class_prompt": "a class"}
    config, _ = run(tmp_path / "whole", options, steps=6)
    lines = run_folder(config).read_metrics()
    held = ["preservation" in line for line in lines if "loss" in line]
    assert any(held)
    assert all(line["preservation"] >= 0 for line in lines if "preservation" in line)
    first = config.training.steps // 2
    run(tmp_path / "two", options, steps=first)
    longer = replace(
        config,
        output=replace(config.output, directory=str(tmp_path / "two"), cache=config.output.cache),
    )
    assert train(longer, SilentHost()).step == 6
    one = [line for line in lines if "loss" in line]
    two = [line for line in run_folder(longer).read_metrics() if "loss" in line]
    assert [(a["loss"], a.get("preservation")) for a in one] == [(a["loss"], a.get("preservation")) for a in two]


def test_nothing_to_hold_is_refused(tmp_path):
    config = make_config("sd", tmp_path)
    config = replace(config, dataset=(replace(config.dataset[0], teacher="base"),))
    with pytest.raises(ConfigError, match=r"dataset\.teacher = 'base' of .*no caption has the trigger"):
        train(config, SilentHost())
    for name, value in (("teacher_weight", -1.0), ("teacher_share", 0.0), ("teacher_share", 1.5)):
        with pytest.raises(ConfigError, match=name):
            DatasetConfig(folder=str(Path(tmp_path)), **{name: value})


def test_the_plan_of_memory_counts_its_passes(tmp_path):
    """Two passes forward and one backward more, each by itself: twice the arithmetic and no higher peak."""
    from lora_loom.trainer.memory_plan.files import FilesRun
    from lora_loom.trainer.memory_plan.planner import Way
    from lora_loom.trainer.runs.headless import prepare

    taken = {}
    for name, options in {"off": {}, "on": {"teacher": "base", "class_prompt": "a class"}}.items():
        config = make_config("sd", tmp_path)
        config = replace(config, dataset=(replace(config.dataset[0], trigger="sks", **options),))
        prepared = prepare(config, SilentHost())
        run = FilesRun(prepared.base, prepared.config, prepared.dataset, prepared.targets)
        way = Way(memory=config.memory, batch_size=2, quantize="none", optimizer="adamw")
        taken[name] = run.step(way, prepared.dataset.training[0].geometry.target)
    assert 1.9 < taken["on"].flop / taken["off"].flop < 2.5
    assert taken["on"].activations < 1.1 * taken["off"].activations
