"""The graph of one cell, for its PNG: stock nodes that make just this picture when the file is dropped on ComfyUI.

ComfyUI's page opens the API graph that it finds under "prompt" in a PNG's text. What the sweep took its model, text
encoder and VAE from is copied out of the queued graph; the rest is a loader, prompts, a sampler and a decoder.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...trainer.config import GuidanceConfig
from ...trainer.records import Shot
from .families import known
from .paths import is_inside, lora_folder, lora_root

CellGraph = Callable[[Shot, Path | None, GuidanceConfig], dict[str, str]]
SOURCES = ("model", "clip", "vae")


def cell_graphs(graph: Mapping[str, Any] | None, node_id: Any, model: Any) -> CellGraph:
    """What makes a cell's PNG entries: {} where the queued graph is not known, or a LoRA lies where no loader lists it."""
    inputs = graph[str(node_id)]["inputs"] if graph and str(node_id) in graph else {}
    if not graph or not all(isinstance(inputs.get(name), list) for name in SOURCES):
        return lambda shot, lora, guidance: {}
    links = {name: inputs[name] for name in SOURCES}
    family = known(type(model.model).__name__)
    is_distilled = family is not None and "guidance" in family.conditions
    above = upstream(graph, [str(link[0]) for link in links.values()])

    def make(shot: Shot, lora: Path | None, guidance: GuidanceConfig) -> dict[str, str]:
        name = listed_name(lora) if lora is not None else ""
        if name is None:
            return {}
        return {"prompt": json.dumps({**above, **_cell(shot, name, guidance, links, is_distilled)})}

    return make


def listed_name(lora: Path) -> str | None:
    """The file as LoraLoader lists it: itself, or the copy that a run's checkpoint has there; none for one elsewhere."""
    copy = lora_folder() / lora.parent.parent.name / lora.name  # output/lora_loom/<run>/loras/<file>
    for path in (lora, copy):
        if path.is_file() and is_inside(path, lora_root()):
            return os.path.relpath(os.path.realpath(path), os.path.realpath(lora_root()))
    return None


def upstream(graph: Mapping[str, Any], wanted: list[str]) -> dict[str, Any]:
    """The nodes named, and all that they are linked to."""
    found: dict[str, Any] = {}
    while wanted:
        key = wanted.pop()
        if key in found or key not in graph:
            continue
        found[key] = {"class_type": graph[key]["class_type"], "inputs": dict(graph[key]["inputs"])}
        wanted += [
            str(value[0]) for value in graph[key]["inputs"].values() if isinstance(value, list) and len(value) == 2
        ]
    return found


def _cell(
    shot: Shot, lora: str, guidance: GuidanceConfig, links: Mapping[str, Any], is_distilled: bool
) -> dict[str, Any]:
    recipe = shot.settings
    width, height = recipe["size"]
    nodes: dict[str, Any] = {}

    def add(key: str, kind: str, **inputs: Any) -> list[Any]:
        nodes[f"cell_{key}"] = {"class_type": kind, "inputs": inputs}
        return [f"cell_{key}", 0]

    model = links["model"]
    if lora:
        model = add("lora", "LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=shot.strength)
    model = _guided(add, model, guidance)
    positive, negative = (
        add(key, "CLIPTextEncode", clip=links["clip"], text=text)
        for key, text in (("positive", shot.prompt), ("negative", shot.negative))
    )
    if is_distilled:
        positive = add("guidance", "FluxGuidance", conditioning=positive, guidance=recipe["model_guidance"])
    latent = add("latent", "EmptyLatentImage", width=width, height=height, batch_size=1)
    made = add(
        "sampler", "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=shot.seed,
        steps=recipe["steps"], cfg=guidance.scale, sampler_name=recipe["sampler"], scheduler=recipe["scheduler"], denoise=1.0,
    )  # fmt: skip
    add("save", "SaveImage", images=add("decode", "VAEDecode", samples=made, vae=links["vae"]), filename_prefix="cell")
    return nodes


def _guided(add: Callable[..., list[Any]], model: Any, guidance: GuidanceConfig) -> Any:
    plain = {"eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0}
    if guidance.method == "apg":
        plain = {name: getattr(guidance, name) for name in plain}
    elif not guidance.rescale:
        return model
    return add("apg", "LoomAPG", model=model, **plain, rescale=guidance.rescale)
