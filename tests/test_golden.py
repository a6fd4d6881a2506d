"""The same seed is the same run in every version: one recorded number for each thing that is drawn.

A change here means that runs of earlier versions do not continue as they began and that published settings give another
LoRA. So these numbers change only with a new format of runs, never because a test is in the way.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_loom.trainer.config.dataset import DatasetConfig
from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.data.batches import CachedBatches
from lora_loom.trainer.data.images.index import FileFacts
from lora_loom.trainer.data.order import make_plan
from lora_loom.trainer.data.sets.buckets import Buckets
from lora_loom.trainer.data.sets.placement import placements
from lora_loom.trainer.diffusion.timesteps import NoiseLevels, Uniform
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.seeding import StepKey, derive, permutation, uniform
from lora_loom.trainer.sweep.axes import parse_seeds
from lora_loom.trainer.training.held_out import HeldOut, held_out_losses
from lora_loom.trainer.training.step import LossSettings, draw
from lora_loom.trainer.types import Batch, CaptionForms, Example, Geometry
from tests.training.test_loop import ToyDenoiser

LOSS = LossSettings(noise_levels=NoiseLevels(law=Uniform()))
GEOMETRY = Geometry(original=(64, 64), resized=(64, 64), crop_left=0, crop_top=0, target=(64, 64))


def batch(size=2):
    return Batch(
        latents_BCHW=torch.zeros(size, 4, 3, 3),
        conditioning={"text": torch.zeros(size)},
        weight_B=torch.ones(size),
        mask_B1HW=None,
        names=("a", "b")[:size],
    )


def example(number, **options):
    return Example(path=Path(f"{number}.png"), digest=f"d{number}", captions=("red, green, blue",), geometry=GEOMETRY, **options)  # fmt: skip


def close(values):
    return pytest.approx(values, abs=1e-6)


def test_the_numbers_behind_all_others():
    assert derive(7, "noise", 1, 2) == 7_805_355_134_987_012_784
    assert uniform(7, "item", "flip") == close(0.6661589578)
    assert permutation(6, 7, "epoch", 1) == [3, 0, 5, 2, 1, 4]


def test_noise_and_noise_levels_of_a_step():
    noise, sigma = draw(ToyDenoiser(), batch(), LOSS, StepKey(seed=7, step=3, micro_batch=1))
    assert noise[:, 0, 0, 0].tolist() == close([1.0039880, -0.0963957])
    assert sigma.tolist() == close([0.9442697, 0.0843014])
    offset, _ = draw(ToyDenoiser(), batch(), replace(LOSS, noise_offset=0.1), StepKey(seed=7, step=3, micro_batch=1))
    assert offset[:, 0, 0, 0].tolist() == close([0.8730273, -0.1762900])


def test_noise_of_the_validation_loss():
    """The toy's objective is a flow and its latents are zero here: what it is asked to predict is the noise itself."""
    seen = []

    class Recorder(ToyDenoiser):
        def predict(self, noisy_BCHW, sigma_B, conditioning):
            seen.append((noisy_BCHW / sigma_B.reshape(-1, 1, 1, 1))[0, 0, 0, 0].item())
            return noisy_BCHW

    held_out_losses(Recorder(), HeldOut(batches=[batch(1), batch(1)], timesteps=2, levels=LOSS.noise_levels, seed=7))
    assert seen == close([0.0831446, 0.3548922, -0.9930440, -0.0825439])


@pytest.mark.parametrize(
    ("kind", "tensor", "value"),
    [
        ("lora", "lora_A.weight", 0.0495492),
        ("loha", "hada_w1_b", 0.6633494),
        ("lokr", "lokr_w1", -0.2778807),
        ("dora", "lora_A.weight", 0.0495492),
    ],
)
def test_initial_weights(kind, tensor, value):
    adapter = inject(nn.ModuleDict({"mix": nn.Linear(8, 8)}), ["mix"], NetworkConfig(kind=kind, rank=2), seed=7)
    assert adapter.parameters()[f"mix|{tensor}"].flatten()[0].item() == close(value)


def test_dropout_mask():
    network = nn.ModuleDict({"mix": nn.Linear(8, 8)})
    adapter = inject(network, ["mix"], NetworkConfig(rank=2, dropout=0.5), seed=7)
    [dropout] = adapter._dropouts
    adapter.set_draw(StepKey(seed=7, step=3, micro_batch=1))
    assert dropout(torch.ones(8)).tolist() == [0, 2, 2, 2, 0, 2, 0, 2]


def test_order_of_the_data_and_how_each_image_is_seen():
    words = CaptionForms(texts=("red, green, blue", "black"), shuffle=True)
    examples = [
        example(number, repeats=1 + number % 2, may_flip=True, caption_dropout=0.3, live=words) for number in range(4)
    ]
    plan = make_plan(examples, 2, 7)
    order = [plan.at(position) for position in range(2 * plan.per_epoch)]
    assert [[visit.number for visit in visits] for visits in order] == [[0, 1], [3, 2], [3, 1], [3, 3], [0, 2], [1, 1]]
    batches = CachedBatches(examples, plan, None, "vae", normalise=None, condition=None, device=None)
    picks = [batches.pick(visit) for visit in [*order[0], *order[1], *order[2]]]
    assert [(pick.view.geometry.flip, pick.caption) for pick in picks] == [
        (True, ""),
        (False, "black"),
        (False, "blue, red, green"),
        (False, ""),
        (True, "blue, green, red"),
        (True, "red, blue, green"),
    ]


def test_which_images_are_set_aside():
    assert sorted(permutation(10, 7, "held out")[:3]) == [0, 6, 7]


def test_the_place_of_a_random_crop():
    config = DatasetConfig(folder=".", crop="random")
    facts = dict.fromkeys(("bytes", "modified_ns", "changed_ns"), 0) | dict.fromkeys(
        ("fingerprint", "colours", "focus"), ""
    )
    known = FileFacts(digest="d", width=200, height=100, **facts)
    [geometry] = placements(known, config, [Buckets(method="off", resolution=64, step=32)], 7)
    assert (geometry.crop_left, geometry.crop_top) == (46, 0)


def test_seeds_of_a_sweep():
    assert parse_seeds("seeds", "-1--1 [2]", 7) == [2_742_759_392, 1_013_179_379]
    assert parse_seeds("seeds", "5,-1", 7) == [5, 1_013_179_379]
