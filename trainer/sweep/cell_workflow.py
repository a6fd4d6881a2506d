"""The workflow of a cell, for its PNG: nodes of ComfyUI that make this image when the file is dropped on the frontend.

The frontend opens the API graph that it finds under "prompt" in a PNG's text. Where the model, the text encoder and the VAE come
from is given by the caller; the rest is a LoRA loader, prompts, a sampler and a decoder.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..config.run import GuidanceConfig
from ..families.common.comfy_loaders import Link
from ..types import Cell

Add = Callable[..., Link]
"""add(key, kind, **inputs): a node, as a link to its first output."""
PromptNode = Callable[[Add, str, str, Link], Link]
"""prompt_node(add, key, text, clip): a node that encodes a prompt, as a link to its conditioning."""
MakeGraph = Callable[[Cell, Path | None, GuidanceConfig], dict[str, str]]
"""(cell, LoRA file, guidance) -> the text entries of the cell's PNG; {} for a cell without a workflow."""


def plain_prompt_node(add: Add, key: str, text: str, clip: Link) -> Link:
    """A CLIPTextEncode node."""
    return add(key, "CLIPTextEncode", clip=clip, text=text)


def cell_graph(
    cell: Cell,
    guidance: GuidanceConfig,
    above: Mapping[str, object],
    links: Mapping[str, Link],
    *,
    lora: str,
    lora_to_clip: bool = False,
    distilled: bool = False,
    prompt_node: PromptNode = plain_prompt_node,
) -> dict[str, str]:
    """The text entries of a cell's PNG. `above` holds the nodes that `links` (model, clip, vae) lead to. {} for a
    guidance method that no node offers.

    `lora` is a file as LoraLoader lists it, "" for none; `lora_to_clip` loads it into the text encoder too. `distilled`:
    the network is fed a guidance value.
    """
    if guidance.method not in NODE_OF_METHOD:
        return {}
    recipe = cell.settings
    width, height = recipe["size"]
    nodes: dict[str, object] = dict(above)

    def add(key: str, kind: str, **inputs: object) -> Link:
        nodes[f"cell_{key}"] = {"class_type": kind, "inputs": inputs}
        return [f"cell_{key}", 0]

    model, clip = links["model"], links["clip"]
    if lora and lora_to_clip:
        model = add(
            "lora", "LoraLoader", model=model, clip=clip, lora_name=lora, strength_model=cell.strength,
            strength_clip=cell.strength,
        )  # fmt: skip
        clip = [model[0], 1]
    elif lora:
        model = add("lora", "LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=cell.strength)
    model = _guided(add, model, guidance)
    conditioning = [
        prompt_node(add, key, text, clip) for key, text in (("positive", cell.prompt), ("negative", cell.negative))
    ]
    if distilled:  # both sides are fed the value, as in the sweep
        value = recipe["model_guidance"]
        conditioning = [
            add(f"{str(link[0]).removeprefix('cell_')}_guidance", "FluxGuidance", conditioning=link, guidance=value)
            for link in conditioning
        ]
    positive, negative = conditioning
    latent = add("latent", "EmptyLatentImage", width=width, height=height, batch_size=1)
    made = add(
        "sampler", "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=cell.seed,
        steps=recipe["steps"], cfg=guidance.scale, sampler_name=recipe["sampler"], scheduler=recipe["scheduler"], denoise=1.0,
    )  # fmt: skip
    add("save", "SaveImage", images=add("decode", "VAEDecode", samples=made, vae=links["vae"]), filename_prefix="cell")
    return {"prompt": json.dumps(nodes)}


def with_base_loras(
    above: Mapping[str, object], links: Mapping[str, Link], loras: Sequence[tuple[str, float]]
) -> tuple[dict[str, object], dict[str, Link]]:
    """Nodes and links with base LoRAs, (name in LoraLoader, strength), loaded into the model."""
    nodes, model = dict(above), links["model"]
    for number, (name, strength) in enumerate(loras):
        inputs = {"model": model, "lora_name": name, "strength_model": strength}
        nodes[f"base_lora_{number}"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
        model = [f"base_lora_{number}", 0]
    return nodes, {**links, "model": model}


NODE_OF_METHOD = {"cfg": "", "apg": "LoomAPG"}
"""The node that makes ComfyUI's sampler guide by a method; "" where the sampler does so itself."""


def _guided(add: Add, model: Link, guidance: GuidanceConfig) -> Link:
    if guidance.skip_layers:
        layers = ", ".join(str(layer) for layer in guidance.skip_layers)
        limits = {"start_percent": guidance.skip_layer_start, "end_percent": guidance.skip_layer_end}
        model = add(
            "skip", "SkipLayerGuidanceSD3", model=model, layers=layers, scale=guidance.skip_layer_scale, **limits
        )
    plain = {"eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0}
    if guidance.method == "apg":
        plain = {name: getattr(guidance, name) for name in plain}
    elif not guidance.rescale:
        return model
    return add("apg", "LoomAPG", model=model, **plain, rescale=guidance.rescale)
