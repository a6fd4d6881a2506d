"""Sliders: one LoRA whose strength moves one attribute, both ways."""

import itertools
from dataclasses import replace

import pytest
import torch

from lora_loom.trainer.config.run import DatasetConfig, NetworkConfig
from lora_loom.trainer.data.order import make_plan
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.seeding import StepKey
from lora_loom.trainer.training.loop import fit
from lora_loom.trainer.training.loss_settings import check_strengths
from lora_loom.trainer.training.step import draw, slider_loss, train_step
from lora_loom.trainer.types import Slider, SliderRule
from tests.conftest import SilentHost
from tests.data.test_batches import example
from tests.training.test_loop import LOSS, ToyBatches, ToyDenoiser, settings, take
from tests.training.test_preservation import moved

RULE = SliderRule(positive="old", negative="young", scale=3.0)


def sliding(batch=None, scale=3.0):
    batch = batch or ToyBatches().at(0)
    positive, negative = ({"text": batch.conditioning["text"] + more} for more in (0.5, -0.25))
    return replace(batch, slider=Slider(positive=positive, negative=negative, scale=scale))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_slider_has_the_gradient_of_its_formula(sign):
    """By hand: |f_s(x_t, c) - (f_0(x_t, c) + s k (f_0(x_t, c+) - f_0(x_t, c-)))|^2, with the base as a constant."""
    denoiser, place = ToyDenoiser(), StepKey(seed=0, step=0, micro_batch=0)
    state, batch = moved(denoiser), sliding()
    noise, sigma = draw(denoiser, batch, LOSS, place)
    noisy = denoiser.objective.add_noise(batch.latents_BCHW, noise, sigma)
    with torch.no_grad(), state.adapter.disabled():
        own = denoiser.predict(noisy, sigma, batch.conditioning)
        change = denoiser.predict(noisy, sigma, batch.slider.positive) - denoiser.predict(
            noisy, sigma, batch.slider.negative
        )
    parameters = state.adapter.parameters()
    up, down = (next(p for name, p in parameters.items() if part in name) for part in ("lora_B", "lora_A"))
    [layer] = state.adapter.layers.values()
    scale = layer.scaling["default"]
    moved_by = (noisy.permute(0, 2, 3, 1) @ down.T @ up.T * scale).permute(0, 3, 1, 2) * (
        1 + sigma.reshape(-1, 1, 1, 1)
    )
    expected = (own + sign * moved_by - own - sign * 3.0 * change).square().mean((1, 2, 3))
    by_hand = torch.autograd.grad(expected.sum(), [up, down])
    loss_at = slider_loss(denoiser, batch, LOSS, place, state.adapter.disabled)
    with state.adapter.at_strength(sign):
        loss = loss_at(sign)
        got = torch.autograd.grad(loss.sum(), [up, down])
    assert torch.allclose(loss, expected, rtol=1e-4)
    for one, other in zip(got, by_hand, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)
    assert layer.scaling["default"] == scale


def test_a_step_of_a_slider_trains_both_signs():
    class Sliding(ToyBatches):
        def at(self, position):
            return sliding(super().at(position))

    denoiser = ToyDenoiser()
    state, place = moved(denoiser), StepKey(seed=0, step=0, micro_batch=0)
    batch, total = Sliding().at(0), 0.0
    for sign in (1.0, -1.0):
        loss_at = slider_loss(denoiser, batch, LOSS, place, state.adapter.disabled)
        with state.adapter.at_strength(sign):
            total += loss_at(sign).mean().item() / 2
    [result] = take(fit(denoiser, state, Sliding(), settings(), lambda step: 0.0), 1)
    assert result.loss == pytest.approx(total, rel=1e-5)


def test_a_batch_is_trained_at_its_strength():
    class Opposite(ToyBatches):
        def at(self, position):
            return replace(super().at(position), strength=-1.0)

    denoiser = ToyDenoiser()
    state, place = moved(denoiser), StepKey(seed=0, step=0, micro_batch=0)
    for parameter_name, parameter in state.adapter.parameters().items():
        if "lora_B" in parameter_name:
            parameter.data.neg_()
    expected = train_step(denoiser, ToyBatches().at(0), LOSS, place).mean().item()
    state = moved(denoiser := ToyDenoiser())
    [result] = take(fit(denoiser, state, Opposite(), settings(), lambda step: 0.0), 1)
    assert result.loss == pytest.approx(expected, rel=1e-5)


def test_a_batch_has_one_strength_and_one_slider_and_the_others_keep_their_order():
    plain = [example(n, width) for n, width in enumerate((64, 128, 64, 96))]
    assert make_plan(plain, 2, 0).buckets == ((0, 2), (3,), (1,))
    mixed = [example(0), example(1, strength=-1.0), example(2, slider=RULE), example(3), example(4, strength=-1.0)]
    assert sorted(make_plan(mixed, 2, 0).buckets) == [(0, 3), (1, 4), (2,)]


def test_what_a_slider_needs_is_said():
    for options, said in (
        ({"slider_positive": "old"}, "two prompts"),
        ({"slider_positive": "old", "slider_negative": "old"}, "must differ"),
        ({"slider_positive": "a", "slider_negative": "b", "teacher": "base"}, "teacher = 'images'"),
        ({"slider_positive": "a", "slider_negative": "b", "slider_scale": 0.0}, "slider_scale"),
        ({"strength": 0.0}, "other than 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            DatasetConfig(folder="x", **options)
    sliders, network = [example(0, slider=RULE)], NetworkConfig()
    check_strengths(sliders, network, 1e-4)
    check_strengths([example(0)], NetworkConfig(kind="lokr"), "find")
    with pytest.raises(ConfigError, match=r"slider_positive = 'old' does not go with network.kind = 'dora'"):
        check_strengths(sliders, NetworkConfig(kind="dora"), 1e-4)
    with pytest.raises(ConfigError, match=r"memory.shard"):
        check_strengths(sliders, network, 1e-4, sharded=True)
    with pytest.raises(ConfigError, match="every image is trained at a negative strength"):
        check_strengths([example(0, strength=-1.0)], network, 1e-4)
    with pytest.raises(ConfigError, match="learning_rate = 'find', which measures.*use 'auto'"):
        check_strengths(sliders, network, "find")


def colours_by_strength(tmp_path, datasets, scenes, prompt, strengths):
    """Trains on the demo base; the mean of red - blue of samples of the file at the strengths and of the base."""
    import numpy as np
    from PIL import Image

    from lora_loom.trainer.config.run import TrainConfig
    from lora_loom.trainer.config.toml import parse
    from lora_loom.trainer.demo.demo import ASSETS
    from lora_loom.trainer.sweep.run import sweep

    for name, made in scenes.items():
        (tmp_path / name).mkdir()
        for number, scene in enumerate(made):
            scene.draw().save(tmp_path / name / f"{number}.png")
            (tmp_path / name / f"{number}.txt").write_text(scene.caption)
    config = parse(
        {
            "name": "slider",
            "model": {"base": str(ASSETS), "device": "cpu"},
            "dataset": [{**one, "folder": str(tmp_path / one["folder"])} for one in datasets],
            "data": {"resolution": 128},
            "network": {"rank": 8},
            "optimizer": {"learning_rate": 2e-3},
            "training": {"steps": 60, "batch_size": 4, "save_every": 0},
            "memory": {"gradient_checkpointing": False},
            "output": {"directory": str(tmp_path / "runs"), "dtype": "float32"},
            "sweep": {
                "prompts": [prompt],
                "seeds": "0,1,2",
                "strengths": strengths,
                "steps": 8,
                "guidance": [{"scale": 1.5}],
            },
        },
        TrainConfig,
    )
    train(config, SilentHost())
    sheet = sweep(config, SilentHost())
    found = {}
    for cell in sheet.cells:
        pixels = np.asarray(Image.open(cell.image).convert("RGB"), float)
        found.setdefault(cell.strength, []).append((pixels[..., 0] - pixels[..., 2])[40:88, 40:88].mean())
    return {strength: float(np.mean(values)) for strength, values in sorted(found.items())}


def circles(colour, count=6):
    from lora_loom.trainer.demo.scenes import BACKGROUNDS, Scene, Thing

    places = list(BACKGROUNDS)[:count]
    return [
        Scene(shape="circle", colour=colour, background=place, things=(Thing(centre=(0.5, 0.5), size=0.4),))
        for place in places
    ]


def is_rising(colours):
    return all(low < high for low, high in itertools.pairwise(colours.values()))


@pytest.mark.slow
def test_a_slider_of_prompts_moves_a_colour_with_its_strength(tmp_path):
    one = {"folder": "purple", "slider_positive": "a red circle", "slider_negative": "a blue circle"}
    colours = colours_by_strength(
        tmp_path, [one], {"purple": circles("purple")}, circles("purple")[0].caption, "-2,-1,1,2"
    )
    assert list(colours) == [-2, -1, 0, 1, 2]
    assert is_rising(colours), colours
    assert colours[2] - colours[-2] > 60


@pytest.mark.slow
def test_a_slider_of_image_pairs_moves_a_colour_with_its_strength(tmp_path):
    scenes = {"red": circles("red"), "blue": circles("blue")}
    common = {"captions": "fixed", "caption": "a circle"}
    datasets = [{"folder": "red", **common}, {"folder": "blue", "strength": -1.0, **common}]
    colours = colours_by_strength(tmp_path, datasets, scenes, "a circle", "-1,-0.5,0.5,1")
    assert is_rising(colours), colours
    assert colours[1] - colours[-1] > 60
