"""Training pictures of the demo base: scenes, and for the autoencoder also compositions of random coloured blobs."""

import math
import random
import zlib

import numpy as np
import torch
from torch import Tensor

from lora_loom.trainer.demo.scenes import BACKGROUNDS, RGB, Point, Scene, Thing, compose, random_scene


def held_out(scene: Scene) -> bool:
    """True for the 5 % of (shape, colour, background, count) that the base never trains on."""
    combination = f"{scene.shape} {scene.colour} {scene.background} {len(scene.things)}"
    return zlib.crc32(combination.encode()) % 20 == 0


def training_scene(rng: random.Random) -> Scene:
    while held_out(scene := random_scene(rng)):
        pass
    return scene


def _blob(rng: random.Random) -> list[Point]:
    corners = rng.randint(3, 9)
    turns = sorted(rng.uniform(0, 2 * math.pi) for _ in range(corners))
    return [(rng.uniform(0.2, 0.5) * math.cos(t), rng.uniform(0.2, 0.5) * math.sin(t)) for t in turns]


def random_composition(rng: random.Random) -> np.ndarray:
    """Blobs of any colour and size: what the autoencoder must survive beyond the scenes."""
    parts: list[tuple[list[Point], RGB, Thing]] = []
    for _ in range(rng.randint(1, 8)):
        colour: RGB = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        place = Thing(centre=(rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)), size=rng.uniform(0.1, 0.8))
        parts.append((_blob(rng), colour, place))
    return np.asarray(compose(rng.choice(tuple(BACKGROUNDS)), parts))


def autoencoder_pool(count: int, seed: int) -> Tensor:
    """uint8 (count, 3, SIZE, SIZE): two scenes for every composition."""
    rng = random.Random(seed)
    draw = [random_composition(rng) if i % 3 == 0 else np.asarray(training_scene(rng).draw()) for i in range(count)]
    return torch.from_numpy(np.stack(draw)).permute(0, 3, 1, 2).contiguous()


def scenes_pool(count: int, seed: int) -> Tensor:
    """uint8 (count, 3, SIZE, SIZE): scenes only."""
    rng = random.Random(seed)
    return (
        torch.from_numpy(np.stack([np.asarray(training_scene(rng).draw()) for _ in range(count)]))
        .permute(0, 3, 1, 2)
        .contiguous()
    )
