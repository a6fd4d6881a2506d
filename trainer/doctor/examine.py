"""What the data doctor measures of a training image: its loss without and with the LoRA, and with the caption of another image.

Every image is measured at the same noise levels with the same noise, so that differences between two captions, or with and without the
LoRA, are paired. It costs `passes` forward passes, and no gradients.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ..data.batches import Singles
from ..diffusion.denoiser import Denoiser
from ..diffusion.loss import draw_noise
from ..diffusion.timesteps import NoiseLevels
from ..lora.adapter import Adapter
from ..seeding import generator, permutation
from ..training.step import LossSettings, sample_loss
from ..types import Batch, Example, Json, Progress

DRAWS = 6
"""Noise levels at which an image is measured, evenly spread through the family's own."""
RIVALS = 8
"""Captions of other images that an image is tried with at one noise level; the best of them is measured at all."""
MOST = 200
"""Images that are examined; of more, as many are drawn."""
EPOCHS = 5
"""Epochs after which a run is examined: it has learnt what its images share, and does not know each by heart yet."""
SCREENED_AT = 0.7
"""Share of the schedule at which captions are tried: the text decides most where much is noise."""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """The measurements of one image. Losses are mean squared errors, one for each of the same `DRAWS` noise levels."""

    name: str
    caption: str
    uses: int
    """How often it is used in an epoch."""
    base: list[float]
    """Losses of the base model without the LoRA."""
    lora: list[float]
    """Losses with the LoRA."""
    rival: str = ""
    """The caption of another image that fitted best; "" where no other caption could be tried."""
    with_rival: list[float]
    """Losses of the base model with that caption; [] without one."""
    nearest: str = ""
    """The image whose latents are nearest, of the same size."""
    distance: float = math.inf
    """How far they are, as a share of the median distance of two images."""

    def to_dict(self) -> Json:
        return asdict(self)


def examination_step(steps_per_epoch: float, total: int) -> int:
    """The step after which a run of `total` steps is examined."""
    return max(min(round(EPOCHS * steps_per_epoch), total), 1)


def trained_images(examples: Sequence[Example]) -> list[int]:
    """Which examples are examined: those that teach something, at most `MOST`, drawn in a fixed order."""
    usual = [
        one.role == "train" and one.teacher != "base" and one.slider is None and one.strength > 0 for one in examples
    ]
    numbers = [number for number, is_usual in enumerate(usual) if is_usual]
    if len(numbers) <= MOST:
        return numbers
    return sorted(numbers[i] for i in permutation(len(numbers), 0, "doctor")[:MOST])


def passes(images: int) -> int:
    """Forward passes of an examination, at most."""
    return images * (3 * DRAWS + RIVALS)


@torch.no_grad()
def examine(
    denoiser: Denoiser,
    adapter: Adapter,
    images: Singles,
    levels: NoiseLevels,
    progress: Progress = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Examined]:
    """The measurements of the images that are examined. `levels` are those of the family. Shorter if stopped before the end."""
    examples = images.batches.examples
    numbers = trained_images(examples)
    near = _nearest([images[n].latents_BCHW.float().cpu() for n in numbers])
    found: list[Examined] = []
    for index, number in enumerate(numbers):
        if should_stop():
            break
        batch, example = images[number], examples[number]
        with adapter.disabled():
            base = _losses(denoiser, batch, levels)
            rival = _rival(denoiser, images, numbers, number, levels)
            with_rival = _losses(denoiser, _spoken(batch, images[rival]), levels) if rival is not None else []
        twin, distance = near[index]
        found.append(
            Examined(
                name=batch.names[0],
                caption=example.captions[0],
                uses=example.repeats,
                base=base,
                lora=_losses(denoiser, batch, levels),
                rival=examples[rival].captions[0] if rival is not None else "",
                with_rival=with_rival,
                nearest=examples[numbers[twin]].path.name if twin is not None else "",
                distance=distance,
            )
        )
        progress(index + 1, len(numbers))
    return found


def _losses(denoiser: Denoiser, batch: Batch, levels: NoiseLevels) -> list[float]:
    return [_loss(denoiser, batch, levels, (i + 0.5) / DRAWS, i) for i in range(DRAWS)]


def _loss(denoiser: Denoiser, batch: Batch, levels: NoiseLevels, position: float, draw: int) -> float:
    """The unweighted loss of one image at a share of the schedule, with the noise of a draw, which is that of every image."""
    latents = batch.latents_BCHW
    height, width = latents.shape[-2:]
    sigma_B = levels.sigma(denoiser.objective, height, width, torch.tensor([position])).to(latents)
    noise = draw_noise(tuple(latents.shape[1:]), generator(0, "doctor", draw)).unsqueeze(0).to(latents)
    return sample_loss(denoiser, batch, noise, sigma_B, LossSettings(noise_levels=levels)).item()


def _rival(denoiser: Denoiser, images: Singles, numbers: Sequence[int], number: int, levels: NoiseLevels) -> int | None:
    """The image whose caption fits this one best of those that are tried; None where none can be.

    Only images of the same size lend their captions, because a conditioning may hold sizes; with reference images none does.
    The draw that chooses is none of those that are measured, so that the choice does not favour the rival.
    """
    examples = images.batches.examples
    own = examples[number]
    others: dict[str, int] = {}
    for n in numbers:
        example = examples[n]
        if example.captions[0] not in own.captions and example.geometry.target == own.geometry.target:
            others.setdefault(example.captions[0], n)
    if own.references or not others:
        return None
    captions = list(others.values())
    tried = [captions[i] for i in permutation(len(captions), 0, "rivals", own.digest)[:RIVALS]]
    batch = images[number]
    return min(tried, key=lambda n: _loss(denoiser, _spoken(batch, images[n]), levels, SCREENED_AT, DRAWS))


def _spoken(batch: Batch, other: Batch) -> Batch:
    """The image of one batch with the conditioning of another."""
    return replace(batch, conditioning=other.conditioning)


def _nearest(latents: Sequence[Tensor]) -> list[tuple[int | None, float]]:
    """For each image the nearest one of its shape, and their distance as a share of the median distance in that shape."""
    found: list[tuple[int | None, float]] = [(None, math.inf)] * len(latents)
    for shape in {one.shape for one in latents}:
        members = [n for n, one in enumerate(latents) if one.shape == shape]
        if len(members) < 3:
            continue
        flat = torch.stack([latents[n].flatten() for n in members])
        apart = torch.cdist(flat, flat)
        median = apart[~torch.eye(len(members), dtype=torch.bool)].median().clamp_min(1e-12)
        apart.fill_diagonal_(math.inf)
        least = apart.min(dim=1)
        for n, value, index in zip(members, least.values, least.indices, strict=True):
            found[n] = (members[int(index)], float(value / median))
    return found
