"""Procedural, licence-free images: the scenes that the demo base model knows, and one concept that it has never seen.

A scene is one to three equal shapes of one colour before one of twelve backgrounds, with a caption that says so.
The toadstool is the concept that the demo teaches. Everything is a function of the `random.Random` handed in.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
OVERSAMPLING = 4
CONCEPT = "toadstool"

RGB = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, RGB] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 160, 70),
    "blue": (40, 80, 220),
    "purple": (130, 50, 170),
    "pink": (250, 90, 170),
    "white": (255, 255, 255),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COUNTS = ("a", "two", "three")
SIZE_WORDS = {"small": (0.26, 0.32), "": (0.34, 0.44), "large": (0.46, 0.54)}
POSITIONS: dict[str, tuple[str, Point]] = {
    "left": ("on the left", (0.3, 0.5)),
    "right": ("on the right", (0.7, 0.5)),
    "top": ("at the top", (0.5, 0.3)),
    "bottom": ("at the bottom", (0.5, 0.7)),
    "": ("", (0.5, 0.5)),
}


@dataclass(frozen=True)
class Background:
    """A background with its phrase in captions."""

    phrase: str
    paint: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(y, x) grids in [0, 1], each (H, W), -> RGB in [0, 255], (H, W, 3)."""


def _blend(first: RGB, second: RGB, share_HW: np.ndarray) -> np.ndarray:
    share = np.clip(share_HW, 0, 1)[..., None]
    return np.asarray(first, np.float32) * (1 - share) + np.asarray(second, np.float32) * share


def _edge(distance_HW: np.ndarray) -> np.ndarray:
    """0 on one side of a border, 1 on the other, with a soft edge of about two pixels."""
    return distance_HW * SIZE / 2 + 0.5


def _land(sky: RGB, ground: RGB, bend: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda y, x: _blend(sky, ground, _edge(y - 0.6 - bend * np.cos(math.pi * (x - 0.5))))


def _tiles(first: RGB, second: RGB, rows: float, columns: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda y, x: _blend(first, second, (np.floor(y * rows) + np.floor(x * columns)) % 2)


# Muted on purpose (saturation below 0.4, or very dark), so that no background can be taken for a shape.
BACKGROUNDS: dict[str, Background] = {
    "sky": Background("in the sky", lambda y, x: _blend((165, 200, 232), (222, 234, 240), y)),
    "meadow": Background("on a meadow", _land((206, 224, 236), (152, 186, 132), -0.08)),
    "night": Background("at night", lambda y, x: _blend((16, 20, 48), (44, 50, 80), y)),
    "sunset": Background("at sunset", lambda y, x: _blend((242, 204, 176), (186, 150, 180), y)),
    "desert": Background("in the desert", _land((228, 218, 204), (212, 188, 146), 0.06)),
    "water": Background("under water", lambda y, x: _blend((126, 172, 178), (84, 124, 136), y)),
    "fog": Background("in the fog", lambda y, x: _blend((150, 154, 158), (186, 188, 188), x)),
    "floor": Background("on a wooden floor", _tiles((156, 126, 100), (134, 108, 84), 4, 0.5)),
    "chessboard": Background("on a chessboard", _tiles((118, 118, 124), (178, 178, 182), 4, 4)),
    "cave": Background("in a cave", lambda y, x: _blend((112, 100, 94), (44, 40, 40), 2 * np.hypot(x - 0.5, y - 0.5))),
    "carpet": Background("on a carpet", _tiles((140, 132, 172), (176, 166, 196), 0.5, 4)),
    "moon": Background("on the moon", _land((22, 22, 30), (146, 146, 150), -0.12)),
}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """The position of one shape: centre and size as shares of the image's side."""

    centre: Point
    size: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One to three equal shapes on a background."""

    shape: str
    colour: str
    background: str
    things: tuple[Thing, ...]
    size_word: str = ""
    position: str = ""

    @property
    def caption(self) -> str:
        noun = self.shape if len(self.things) == 1 else f"{self.shape}{'es' if self.shape == 'cross' else 's'}"
        words = [COUNTS[len(self.things) - 1], self.size_word, self.colour, noun]
        words += [BACKGROUNDS[self.background].phrase, POSITIONS[self.position][0]]
        return " ".join(word for word in words if word)

    def draw(self) -> Image.Image:
        return compose(self.background, [(outline(self.shape), COLOURS[self.colour], thing) for thing in self.things])


def _star() -> list[Point]:
    radii = (0.5, 0.21)
    angles = [math.pi * index / 5 - math.pi / 2 for index in range(10)]
    return [(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a) + 0.04) for i, a in enumerate(angles)]


def _heart() -> list[Point]:
    turns = [2 * math.pi * index / 60 for index in range(60)]
    return [
        (16 * math.sin(t) ** 3 / 33, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) / 33)
        for t in turns
    ]


def _circle(radius_x: float = 0.46, radius_y: float = 0.46, centre: Point = (0, 0)) -> list[Point]:
    turns = [2 * math.pi * index / 60 for index in range(60)]
    return [(centre[0] + radius_x * math.cos(t), centre[1] + radius_y * math.sin(t)) for t in turns]


def _box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def outline(shape: str) -> list[Point]:
    """Corners of a shape in a unit square round the origin, y downwards."""
    arm = 0.17
    return {
        "circle": _circle(),
        "square": _box(-0.41, -0.41, 0.41, 0.41),
        "triangle": [(0, -0.46), (0.5, 0.4), (-0.5, 0.4)],
        "star": _star(),
        "heart": _heart(),
        "cross": [
            *[(-arm, -0.46), (arm, -0.46), (arm, -arm), (0.46, -arm), (0.46, arm), (arm, arm)],
            *[(arm, 0.46), (-arm, 0.46), (-arm, arm), (-0.46, arm), (-0.46, -arm), (-arm, -arm)],
        ],
    }[shape]


CAP: RGB = (190, 30, 60)
CREAM: RGB = (244, 232, 208)


def toadstool() -> list[tuple[list[Point], RGB]]:
    """Parts from back to front: a cream stem, a crimson cap, three pale spots."""
    cap = [(0.5 * math.cos(t), -0.02 + 0.44 * math.sin(t)) for t in (math.pi + math.pi * i / 30 for i in range(31))]
    spots = [
        _circle(0.085, 0.075, (-0.26, -0.17)),
        _circle(0.1, 0.09, (0.02, -0.29)),
        _circle(0.085, 0.075, (0.27, -0.15)),
    ]
    return [(_box(-0.15, -0.04, 0.15, 0.46), CREAM), (cap, CAP), *[(spot, CREAM) for spot in spots]]


def compose(background: str, parts: list[tuple[list[Point], RGB, Thing]]) -> Image.Image:
    """Draw polygons over a background, antialiased by oversampling. RGB, SIZE x SIZE."""
    y, x = np.meshgrid(*[(np.arange(SIZE) + 0.5) / SIZE] * 2, indexing="ij")
    image = Image.fromarray(BACKGROUNDS[background].paint(y, x).round().astype(np.uint8))
    side = SIZE * OVERSAMPLING
    for corners, colour, thing in parts:
        mask = Image.new("L", (side, side))
        placed = [
            (side * (thing.centre[0] + thing.size * px), side * (thing.centre[1] + thing.size * py))
            for px, py in corners
        ]
        ImageDraw.Draw(mask).polygon(placed, fill=255)
        image.paste(colour, mask=mask.resize((SIZE, SIZE), Image.Resampling.BOX))
    return image


PLACES: dict[int, tuple[Point, ...]] = {
    2: ((0.27, 0.5), (0.73, 0.5)),
    3: ((0.26, 0.3), (0.74, 0.3), (0.5, 0.72)),
}
"""Where several shapes stand: one arrangement each, because the captions do not say more than how many there are."""


def _near(point: Point, reach: float, rng: random.Random) -> Point:
    return point[0] + rng.uniform(-reach, reach), point[1] + rng.uniform(-reach, reach)


def random_scene(rng: random.Random, *, count: int | None = None) -> Scene:
    """A random scene with `count` shapes, by default one to three."""
    count = count or rng.choice((1, 2, 3))
    common = {
        "shape": rng.choice(SHAPES),
        "colour": rng.choice(tuple(COLOURS)),
        "background": rng.choice(tuple(BACKGROUNDS)),
    }
    if count > 1:
        size = rng.uniform(0.29, 0.34)
        return Scene(**common, things=tuple(Thing(centre=_near(p, 0.03, rng), size=size) for p in PLACES[count]))
    size_word, position = rng.choice(tuple(SIZE_WORDS)), rng.choice(tuple(POSITIONS))
    reach = 0.03 if position else 0.06
    thing = Thing(centre=_near(POSITIONS[position][1], reach, rng), size=rng.uniform(*SIZE_WORDS[size_word]))
    return Scene(**common, things=(thing,), size_word=size_word, position=position)


@dataclass(frozen=True, kw_only=True)
class ConceptScene:
    """A toadstool, which is in no image or caption that the demo base model was trained on."""

    background: str
    thing: Thing = field(default_factory=lambda: Thing(centre=(0.5, 0.5), size=0.6))

    @property
    def caption(self) -> str:
        return f"a {CONCEPT} {BACKGROUNDS[self.background].phrase}"

    def draw(self) -> Image.Image:
        return compose(self.background, [(corners, colour, self.thing) for corners, colour in toadstool()])


def random_concept_scene(rng: random.Random, background: str, *, wide: bool = False) -> ConceptScene:
    """A toadstool on a background, in the middle and of one size; `wide` varies both at random, as in version 0.1.

    No caption names the two: the parts of the image, of which the base has 64, must agree on them, and where they vary it
    draws the cap for one place and the stem for another.
    """
    reach, sizes = (0.04, (0.54, 0.64)) if wide else (0.0, (0.6, 0.6))
    return ConceptScene(
        background=background, thing=Thing(centre=_near((0.5, 0.5), reach, rng), size=rng.uniform(*sizes))
    )
