"""The graph of a new run: loaders, dataset, cache, samples and LoomTrain, with what is usual for the model and the goal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..comfy_types import GraphNode
from .loaders import Loaders
from .models import Seen

Goal: TypeAlias = Literal["character", "style", "object", "edit"]
Place: TypeAlias = tuple[int, int, int, int]
"""x, y, width, height on the canvas."""

DEMO = "demo"
"""The name of the base model that comes with LoRA Loom."""
SCENES: Mapping[Goal, tuple[str, ...]] = {
    "character": ("portrait, looking at the viewer", "walking through a street in a city, full body"),
    "style": ("a house by the sea", "a woman reading in a garden"),
    "object": ("on a wooden table", "in a meadow, sunlight"),
}
"""What samples show besides the trigger; an edit has no samples without an image to edit."""
USUAL_RANK = 16
COLUMN, WIDTH, TRAIN_WIDTH, TRAIN_HEIGHT = 385, 345, 430, 880
CACHE_HEIGHT = 570
"""With its report and the contact sheet below it, which come when it has run."""
GAP = 50
"""Between a node and the title of the one below it."""
FRAME = 110
"""From a node to the first one of the group below it: a title each, and air."""
MODEL, IMAGES, CACHE, TRAIN = "1  Model", "2  Your images", "3  Cache and samples", "4  Train"
ADAPTER, PREVIEW = "Training adapter", "Samples come from"
COLUMNS: Mapping[str, int] = {MODEL: 0, IMAGES: 0, ADAPTER: 0, PREVIEW: 0, CACHE: 1, TRAIN: 2}
"""{title of a group: its column}."""
SCREEN = (1230, 1065)
"""Pixels of a graph that a run without extras fits into: the width at 70 % beside the open sidebar of a window of 1280 x 800, and about its height."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a person has chosen for a new run. `texts`, `vae` and `adapter` are files as ComfyUI's loaders list them, `preview` is
    a base model as Loom lists it, which makes the samples."""

    model: str
    goal: Goal
    name: str
    trigger: str = ""
    folder: str = ""
    references: str = ""
    texts: tuple[str, ...] = ()
    vae: str = ""
    adapter: str = ""
    preview: str = ""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A graph in ComfyUI's API format, and where its nodes and their groups lie."""

    graph: dict[str, GraphNode] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    """{id of a node: the title of its group}."""

    def add(self, kind: str, title: str, height: int, /, **inputs: object) -> str:
        """Add a node of a group, below those that its column has; returns its id."""
        number = str(len(self.graph) + 1)
        left = COLUMN * COLUMNS[title]
        above = {key: y + tall for key, (x, y, _, tall) in self.places.items() if x == left}
        last = max(above, key=lambda key: above[key], default=None)
        top = 0 if last is None else above[last] + (GAP if self.titles[last] == title else FRAME)
        self.graph[number] = {"class_type": kind, "inputs": inputs}
        self.places[number] = (left, top, TRAIN_WIDTH if title == TRAIN else WIDTH, height)
        self.titles[number] = title
        return number

    @property
    def groups(self) -> dict[str, Place]:
        """A frame round the nodes of each title that has any."""
        found: dict[str, Place] = {}
        for title, column in COLUMNS.items():
            inside = [place for key, place in self.places.items() if self.titles[key] == title]
            if inside:
                top, bottom = min(y for _, y, _, _ in inside), max(y + height for _, y, _, height in inside)
                width = max(width for _, _, width, _ in inside)
                found[title] = (column * COLUMN - 15, top - 75, width + 30, bottom - top + 90)
        return found


def resolution_of(model: str, seen: Seen) -> int:
    """Pixels of the side of a square that a model is made for."""
    if model == DEMO:
        return 128
    if seen.model_class == "BaseModel":
        return 768 if seen.config.get("context_dim") == 1024 else 512
    return 1024


def make_graph(wish: Wish, seen: Seen, loaders: Loaders) -> Made:
    """The graph that trains what was wished for."""
    made = Made()
    model, clip, vae, dataset = _load(made, wish, loaders)
    data = dataset if wish.model == DEMO and not wish.folder else _dataset(made, wish)
    side = resolution_of(wish.model, seen)
    row = seen.told.row if seen.told else None
    step = row.bucket_step.value if row and row.bucket_step else 16 if wish.model == DEMO else 64
    buckets = "off" if data == dataset else "pixel_area"
    cache = made.add(
        "LoomCache", CACHE, CACHE_HEIGHT, dataset=data, vae=vae, clip=clip, resolution=side, buckets=buckets,
        bucket_step=step, model=model, **({"edit_prompts": "auto"} if wish.goal == "edit" else {}),
    )  # fmt: skip
    settings: dict[str, object] = {}
    room = TRAIN_HEIGHT
    if wish.goal != "edit":
        settings["validation"] = _samples(made, wish, seen, vae, clip, side)
    if wish.adapter:
        lora = made.add("LoomBaseLora", ADAPTER, 110, lora=wish.adapter, strength=1.0, use="training")
        settings["base_loras"] = [lora, 0]
    elif row and row.distilled == "guidance" and row.guidance is None:
        loss = made.add("LoomObjective", TRAIN, 160, timesteps="auto", shift="auto", guided_loss="target")
        settings["objective"] = [loss, 0]
        room -= 160 + GAP
    made.add("LoomTrain", TRAIN, room, model=model, cache=[cache, 0], **_training(wish, seen), **settings)
    return made


def _load(made: Made, wish: Wish, loaders: Loaders) -> tuple[list[object], list[object], list[object], list[object]]:
    """Loaders; returns links to MODEL, CLIP, VAE and, of the demo, its dataset."""
    if wish.model == DEMO:
        demo = made.add("LoomDemoModel", MODEL, 110)
        return [demo, 0], [demo, 1], [demo, 2], [demo, 3]
    file = _load_base(made, wish.model)
    if wish.model.startswith("checkpoints/"):
        return [file, 0], [file, 1], [file, 2], []
    inputs: dict[str, object] = dict(zip(loaders.inputs, wish.texts, strict=True))
    if loaders.kind:
        inputs |= {"type": loaders.kind}
    text = made.add(loaders.node, MODEL, 130, **inputs)
    vae = made.add("VAELoader", MODEL, 60, vae_name=wish.vae)
    return [file, 0], [text, 0], [vae, 0], []


def _load_base(made: Made, model: str, title: str = MODEL) -> str:
    """A loader whose first output is the MODEL; returns its id."""
    folder, _, name = model.partition("/")
    if folder == "checkpoints":
        return made.add("CheckpointLoaderSimple", title, 100, ckpt_name=name)
    return made.add("UNETLoader", title, 90, unet_name=name, weight_dtype="default")


def _dataset(made: Made, wish: Wish) -> list[object]:
    inputs: dict[str, object] = {"folder": wish.folder, "captions": "auto", "trigger": wish.trigger, "repeats": 1}
    if wish.goal == "edit":
        inputs["references"] = wish.references
    return [made.add("LoomDataset", IMAGES, 360, **inputs), 0]


def _samples(made: Made, wish: Wish, seen: Seen, vae: object, clip: object, side: int) -> list[object]:
    is_fast = bool(wish.preview or (seen.told and seen.told.row.distilled == "steps"))
    prompts = "\n".join(f"{wish.trigger}, {scene}" if wish.trigger else scene for scene in SCENES[wish.goal])
    if wish.model == DEMO:
        prompts = "a toadstool on a meadow"
    every = 50 if wish.model == DEMO else 250
    other = {"preview_model": [_load_base(made, wish.preview, PREVIEW), 0]} if wish.preview else {}
    node = made.add(
        "LoomValidation", CACHE, 350, vae=vae, clip=clip, prompts=prompts, every=every,
        steps=8 if is_fast else 20 if wish.model == DEMO else 25, cfg=0.0, width=side, height=side,
        **other,
    )  # fmt: skip
    return [node, 0]


def _training(wish: Wish, seen: Seen) -> dict[str, object]:
    """Values of LoomTrain: rate and length by the model and the images, rank by what is usual for the model."""
    rank = seen.told.row.rank.value if seen.told and seen.told.row.rank else USUAL_RANK
    usual: dict[str, object] = {
        "name": wish.name, "steps": 2000, "learning_rate": 1e-4, "rank": rank, "batch_size": 1, "save_every": 250, "seed": 0,
        "mode": "background", "existing_run": "new", "rate": "auto", "length": "style" if wish.goal == "style" else "character",
    }  # fmt: skip
    if wish.model == DEMO:
        usual |= {"steps": 200, "learning_rate": 1e-3, "rank": 8, "save_every": 50, "rate": "value", "length": "value"}
        usual |= {"batch_size": 1 if wish.folder else 8}  # the demo's own images are many
    return usual
