"""A sweep: one image (a cell) for each of checkpoints x strengths x references x prompts x seeds x guidance, and the base.

The id of a cell is a digest of its settings; a cell whose image exists is not rendered again. The base model is loaded
once, each LoRA is applied to it and removed again, and each prompt is encoded once.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby, product
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.run import GuidanceConfig
from ..config.toml import digest
from ..data.cache.references import encode_with_references, reference_latents, reference_placement
from ..data.sets import captions
from ..diffusion.denoiser import Denoiser
from ..diffusion.sample import SampleSettings, make_guidance, make_skip, sample, start_noise
from ..families.common.family import Encoders, Family, Text
from ..families.common.lora_names import is_text_encoder
from ..lora.patch import patched
from ..runs.reference_images import Reference
from ..training.text_encoders import TextModules, TextView
from ..types import CaptionForms, Cell, Geometry, Record, Size, named_references
from .cell_workflow import MakeGraph

Paths = tuple[Path, ...]
"""Reference images that are used together; () for none."""

BASE = "base"
SHEET_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SweptLora:
    """A LoRA to compare: its label, its tensors' digest, where it lies."""

    label: str
    digest: str
    path: Path
    step: int | None = None
    """Training step, if it is known."""
    has_texts: bool = False
    """Whether it has modules of text encoders."""
    loaded_into: str = ""
    """Of a LoRA with such modules, what a host loads it into. Its earlier versions left the text encoder out, and cells that they made are
    other images: a cell of the two has another id."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The values of all axes but the rendering: every combination is a cell."""

    loras: tuple[SweptLora, ...]
    base: bool
    strengths: tuple[float, ...]
    prompts: tuple[str, ...]
    negative: str
    seeds: tuple[int, ...]
    guidance: tuple[GuidanceConfig, ...]
    references: tuple[Reference, ...] = ()
    prompt_names: Mapping[str, str] = field(default_factory=dict)
    """{prompt: name} of the prompts that have a name."""
    wildcards: bool = False
    """Whether {a|b} in a prompt stands for one of the options, by the seed of the cell."""

    def prompt_at(self, prompt: str, seed: int) -> str:
        """The prompt of the cells with a seed."""
        forms = CaptionForms(texts=(prompt,), wildcards=True)
        choice = captions.RandomCaption(seed, "sweep prompt", prompt)
        return captions.render(prompt, forms, choice) if self.wildcards else prompt

    def name_of(self, prompt: str) -> str:
        """What cells of a prompt are called: its name, or the prompt as it is written where it has wildcards."""
        name = self.prompt_names.get(prompt, "")
        return name or (prompt if self.wildcards and self.prompt_at(prompt, 0) != prompt else "")


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How an image is made, apart from its content: size, sampling, model."""

    size: Size
    steps: int
    sampler: str
    scheduler: str
    model: str
    """Digest of the base and of the encoders."""
    model_guidance: float = 1.0
    """Guidance value fed to guidance-distilled networks."""


def count_cells(axes: Axes, renderings: Sequence[Rendering]) -> int:
    """How many cells `plan_cells` would give."""
    loras = axes.base + len(axes.loras) * len(axes.strengths)
    others = (axes.references or (None,), axes.prompts, axes.seeds, axes.guidance, renderings)
    return loras * prod(len(values) for values in others)


def plan_cells(axes: Axes, renderings: Sequence[Rendering], folder: Path) -> list[Cell]:
    """All cells in reading order: base first, then by LoRA, strength, reference, prompt, seed, guidance, rendering."""
    loras: list[tuple[SweptLora | None, float]] = [(None, 0.0)] if axes.base else []
    loras += list(product(axes.loras, axes.strengths))
    cells = []
    references: tuple[Reference | None, ...] = axes.references or (None,)
    for (lora, strength), reference, prompt, seed, guidance, rendering in product(
        loras, references, axes.prompts, axes.seeds, axes.guidance, renderings
    ):
        recipe = {
            "lora": lora.digest if lora else "",
            "strength": strength,
            "prompt": axes.prompt_at(prompt, seed),
            "negative": axes.negative,
            "seed": seed,
            "guidance": guidance_recipe(guidance),
            **asdict(rendering),
            **({"reference": reference.digest} if reference else {}),
            **({"loaded_into": lora.loaded_into} if lora and lora.loaded_into else {}),
        }
        cell_id = digest(recipe)[:32]
        cells.append(
            Cell(
                id=cell_id,
                image=folder / f"{cell_id}.png",
                checkpoint=lora.label if lora else BASE,
                strength=strength,
                prompt=axes.prompt_at(prompt, seed),
                prompt_name=axes.name_of(prompt),
                negative=axes.negative,
                seed=seed,
                guidance=guidance.name,
                reference=reference.label if reference else "",
                step=lora.step if lora else 0,
                settings={**recipe, "lora_file": lora.path.name if lora else ""},
            )
        )
    return cells


def guidance_recipe(guidance: GuidanceConfig) -> Record:
    """What of a guidance setting decides the image. Later options at their defaults are left out, so that old cells keep their ids."""
    recipe = {**asdict(guidance), "label": ""}
    if not guidance.rescale:
        recipe.pop("rescale")
    if not guidance.skip_layers:
        recipe = {name: value for name, value in recipe.items() if not name.startswith("skip_layer")}
    return recipe


def missing(cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose image does not exist yet, or is no longer a whole one."""
    return [cell for cell in cells if not is_whole(cell.image)]


def is_whole(path: Path) -> bool:
    """Whether an image file is there with every byte; the checksums of a PNG are enough, its pixels are not decoded."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class CellRenderer:
    """Renders cells with the trainer's own models."""

    denoiser: Denoiser
    family: Family
    encoders: Encoders
    text_pixels: int = 0
    """Area in pixels of reference images for the text encoder, as in `Variant`; 0 if it does not take images."""

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.denoiser.module.parameters()).device

    @contextmanager
    def with_lora(self, tensors: Mapping[str, Tensor], strength: float) -> Iterator[bool]:
        """A LoRA laid over the network, and over the text encoders if it has modules of theirs; whether it has any."""
        networks = getattr(self.encoders.text, "networks", None)
        texts = {key: t for key, t in tensors.items() if is_text_encoder(key)} if networks else {}
        rest = {key: t for key, t in tensors.items() if key not in texts}
        with ExitStack() as stack:
            if texts and strength and networks:
                view = TextView(family=self.family.name, module=TextModules(networks()))
                stack.enter_context(patched(view, texts, strength))
            if rest or not texts:
                stack.enter_context(patched(self.denoiser, rest, strength))
            yield bool(texts) and bool(strength)

    def encode(self, prompts: Collection[str], references: Collection[Paths]) -> "EncodedTexts":
        """Every prompt encoded with each set of references; by itself, if the text encoder takes no images."""
        if self.text_pixels and () not in references:
            pairs = product(sorted(prompts), references)
            return {pair: encode_with_references(self.encoders, *pair, self.text_pixels) for pair in pairs}
        alone = dict(zip(sorted(prompts), self.encoders.text.encode(sorted(prompts)), strict=True))
        return {(prompt, paths): text for prompt, text in alone.items() for paths in references}

    def encode_references(self, paths: Paths, size: Size) -> dict[str, Tensor]:
        """Returns {"reference", "reference_2", …: (1, C, h, w) model-space latents}, for an image of this size."""
        raw_CHW = [reference_latents(self.encoders, path, reference_placement(path, size)) for path in paths]
        to_model = self.family.latent_space.to_model
        return named_references([to_model(latents.unsqueeze(0)).to(self.device) for latents in raw_CHW])


EncodedTexts = Mapping[tuple[str, Paths], Text]
"""{(prompt, reference images): output of the text encoders}."""


def render(
    cells: Sequence[Cell],
    renderer: CellRenderer,
    axes: Axes,
    read: Callable[[Path], Mapping[str, Tensor]],
    progress: Callable[[int, int], None],
    graph: MakeGraph = lambda cell, lora, guidance: {},
) -> Iterator[Cell]:
    """Render the given cells, LoRA by LoRA, and yield each after its PNG was written, with its workflow (`graph`)."""
    paths = {reference.digest: reference.paths for reference in axes.references}
    texts = renderer.encode(*_texts_and_references(cells, paths))
    files = {lora.digest: lora for lora in axes.loras}
    guidance = {setting.name: setting for setting in axes.guidance}
    done = 0
    for (lora, strength), group in groupby(cells, key=lambda cell: (cell.settings["lora"], cell.strength)):
        tensors = read(files[lora].path) if lora else {}
        with renderer.with_lora(tensors, strength) as has_text_modules:
            members = list(group)
            encoded = renderer.encode(*_texts_and_references(members, paths)) if has_text_modules else texts
            for cell in members:
                references = paths.get(cell.settings.get("reference", ""), ())
                pixels_CHW = render_one(cell, renderer, encoded, guidance[cell.guidance], references)
                entries = graph(cell, files[lora].path if lora else None, guidance[cell.guidance])
                write_image(pixels_CHW, cell, entries)
                done += 1
                progress(done, len(cells))
                yield cell


def _texts_and_references(cells: Sequence[Cell], paths: Mapping[str, Paths]) -> tuple[set[str], set[Paths]]:
    """The prompts of these cells, and their sets of reference images."""
    texts = {text for cell in cells for text in (cell.prompt, cell.negative)}
    return texts, {paths.get(cell.settings.get("reference", ""), ()) for cell in cells}


def render_one(
    cell: Cell, renderer: CellRenderer, texts: EncodedTexts, guidance: GuidanceConfig, reference_paths: Paths = ()
) -> Tensor:
    """The image of a cell, (3, H, W) in [-1, 1]."""
    recipe, family, encoders = cell.settings, renderer.family, renderer.encoders
    width, height = recipe["size"]
    geometry = Geometry.whole((width, height))
    device = renderer.device
    references = renderer.encode_references(reference_paths, (width, height))
    positive, negative = (
        {
            **{name: tensor.to(device) for name, tensor in made.items()},
            **references,
        }
        for made in (
            family.condition([texts[prompt, reference_paths]], [geometry], recipe["model_guidance"])
            for prompt in (cell.prompt, cell.negative)
        )
    )
    factor = encoders.image.factor
    noise = start_noise((family.latent_space.channels, height // factor, width // factor), cell.seed, device)
    settings = SampleSettings(
        steps=recipe["steps"],
        sampler=recipe["sampler"],
        scheduler=recipe["scheduler"],
        guidance=make_guidance(guidance),
        skip=make_skip(guidance),
    )
    latents = sample(renderer.denoiser, noise, positive, negative, settings)
    return encoders.image.decode(family.latent_space.to_raw(latents))[0].clamp(-1, 1).cpu()


def write_image(pixels_CHW: Tensor, cell: Cell, texts: Mapping[str, str] | None = None) -> None:
    """Write the PNG of a cell with all its settings as a text entry, atomically. `texts` are further entries (ASCII)."""
    import io
    import json

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from ..storage.atomic import write_bytes

    array = ((pixels_CHW.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    info = PngInfo()
    info.add_itxt("lora_loom", json.dumps(cell_to_dict(cell)))
    for name, text in (texts or {}).items():
        info.add_text(name, text)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png", pnginfo=info)
    write_bytes(cell.image, buffer.getvalue())


def cell_to_dict(cell: Cell) -> Record:
    """A cell as plain data, with the file name of its image instead of the path."""
    return {**asdict(cell), "image": cell.image.name}


def sheet_to_dict(
    cells: Sequence[Cell], *, loras: Mapping[str, Path] | None = None, best: Sequence[str] = ()
) -> Record:
    """A sheet as plain data. `loras` maps digests to files; the PNGs, which people share, do not contain these paths."""
    where = {digest: str(path) for digest, path in (loras or {}).items()}
    return {
        "version": SHEET_VERSION,
        "cells": [cell_to_dict(cell) for cell in cells],
        "loras": where,
        "best": list(best),
    }


def sheet_from_dict(data: Record, folder: Path) -> list[Cell]:
    """The cells of a sheet, with images in `folder`."""
    return [_cell_from_dict(cell, folder) for cell in data["cells"]]


_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("id", "image", "checkpoint", "prompt", "negative", "guidance", "reference", "prompt_name"), str),
    **{"strength": (int, float), "seed": int, "step": (int, type(None)), "settings": dict},
}
"""What stands in a cell's entries."""


def _cell_from_dict(data: Record, folder: Path) -> Cell:
    """Sheets of version 0.1 name the step in the label only. Raises ValueError, KeyError or TypeError for what is no cell."""
    if Path(data["image"]).name != data["image"]:
        raise ValueError(f"{data['image']!r} is no file name")
    for name, kind in _TYPES.items():
        if name in data and not isinstance(data[name], kind):
            raise TypeError(f"a cell's {name} is no {type(data[name]).__name__}")
    step = data["step"] if "step" in data else _step_in(data["checkpoint"])
    return Cell(**{**data, "image": folder / data["image"], "step": step})


def _step_in(label: str) -> int | None:
    match = re.fullmatch(r"(?:.*/)?(?:step |.*-)(\d+)", label)
    return 0 if label == BASE else int(match[1]) if match else None
