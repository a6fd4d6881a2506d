"""A base as ComfyUI's loaders load it, and how its texts are encoded there: for graphs that people open from a picture.

Files on this machine may be called otherwise than in their ComfyUI: the names here are those under which the models are
usually passed on, to be chosen again in the loaders where they differ.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...types import Size, reference_name
from .family import PromptEncoding
from .lumina2_prompt import system_prompt, worded
from .prompt_weights import escaped
from .source import Source

Link = list[Any]
Nodes = dict[str, dict[str, Any]]
Show = Callable[[Callable[..., Link], str], Link]

_CLIP_L, _CLIP_G, _T5 = "clip_l.safetensors", "clip_g.safetensors", "t5xxl_fp16.safetensors"
ENCODERS: Mapping[str, tuple[str, Mapping[str, str], str]] = {
    "sd": (
        "CLIPLoader",
        {"clip_name": _CLIP_L, "type": "stable_diffusion"},
        "vae-ft-mse-840000-ema-pruned.safetensors",
    ),
    "sdxl": ("DualCLIPLoader", {"clip_name1": _CLIP_L, "clip_name2": _CLIP_G, "type": "sdxl"}, "sdxl_vae.safetensors"),
    "sd3": (
        "TripleCLIPLoader",
        {"clip_name1": _CLIP_L, "clip_name2": _CLIP_G, "clip_name3": _T5},
        "sd3_vae.safetensors",
    ),
    "flux": ("DualCLIPLoader", {"clip_name1": _T5, "clip_name2": _CLIP_L, "type": "flux"}, "ae.safetensors"),
    "lumina2": ("CLIPLoader", {"clip_name": "gemma_2_2b_fp16.safetensors", "type": "lumina2"}, "ae.safetensors"),
    "qwen_image": (
        "CLIPLoader",
        {"clip_name": "qwen_2.5_vl_7b_fp8_scaled.safetensors", "type": "qwen_image"},
        "qwen_image_vae.safetensors",
    ),
}
"""{family: (loader of the text encoders, its inputs, file of the VAE)}."""
FOLDERS = ("sd", "sdxl")
"""Families whose diffusers folders ComfyUI loads whole."""
OWN_VAE = ("first_stage_model.", "vae.")
"""How a whole checkpoint calls its VAE's tensors."""
SHOWN = {
    "qwen-image-edit": ("TextEncodeQwenImageEdit", ("image",)),
    "qwen-image-edit-plus": ("TextEncodeQwenImageEditPlus", ("image1", "image2", "image3")),
}
"""Variants whose text encoder sees the references: its node, and the inputs for the pictures. The node could add their latents
too, but of a size of its own."""


def loaders(source: Source, family: str, reading: PromptEncoding) -> tuple[Nodes, dict[str, Link]]:
    """(nodes, {"model", "clip", "vae": where they come out)."""
    name = source.path.name if source.path.is_file() else f"{source.path.name}.safetensors"
    if source.path.is_dir() and family in FOLDERS:
        nodes, links = _whole("DiffusersLoader", model_path=source.path.name)
    elif any(key.startswith(OWN_VAE) for shapes in source.headers.values() for key in shapes):
        nodes, links = _whole("CheckpointLoaderSimple", ckpt_name=name)
    else:
        kind, inputs, vae = ENCODERS[family]
        nodes = {
            "model": _node("UNETLoader", unet_name=name, weight_dtype="default"),
            "clip": _node(kind, **inputs),
            "vae": _node("VAELoader", vae_name=vae),
        }
        links = {key: [key, 0] for key in nodes}
    if reading.clip_skip:
        nodes["skip"] = _node("CLIPSetLastLayer", clip=links["clip"], stop_at_clip_layer=-reading.clip_skip)
        links["clip"] = ["skip", 0]
    return nodes, links


def _whole(kind: str, **inputs: Any) -> tuple[Nodes, dict[str, Link]]:
    return {"model": _node(kind, **inputs)}, {
        name: ["model", output] for output, name in enumerate(("model", "clip", "vae"))
    }


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def prompt_nodes(
    family: str, variant: str, reading: PromptEncoding, vae: Link, references: Sequence[tuple[Show, Size]]
) -> Callable[..., Link]:
    """How a prompt becomes a conditioning (`cell_graph.Say`). `references`: what adds the node that a picture comes out of,
    and the size that the picture is brought to for the network."""

    def say(add: Callable[..., Link], key: str, text: str, clip: Link) -> Link:
        wording = worded(text, system_prompt(reading)) if family == "lumina2" else text
        if not references:
            return add(key, "CLIPTextEncode", clip=clip, text=wording)
        pictures = [show(add, reference_name(i)) for i, (show, _) in enumerate(references)]
        if variant in SHOWN:
            kind, places = SHOWN[variant]
            said = add(f"{key}_text", kind, clip=clip, prompt=text, **dict(zip(places, pictures, strict=False)))
        else:
            said = add(f"{key}_text", "CLIPTextEncode", clip=clip, text=wording)
        for i, (picture, (_, size)) in enumerate(zip(pictures, references, strict=True)):
            last = i == len(pictures) - 1
            said = add(
                key if last else f"{key}_{reference_name(i)}", "ReferenceLatent", conditioning=said,
                latent=_encoded(add, reference_name(i), picture, size, vae),
            )  # fmt: skip
        return said

    return say


def _encoded(add: Callable[..., Link], name: str, picture: Link, size: Size, vae: Link) -> Link:
    """A picture's latents, of this size in pixels."""
    width, height = size
    scaled = add(
        f"{name}_scaled",
        "ImageScale",
        image=picture,
        upscale_method="lanczos",
        width=width,
        height=height,
        crop="disabled",
    )
    return add(f"{name}_latents", "VAEEncode", pixels=scaled, vae=vae)


def from_input_folder(name: str) -> Show:
    """A picture that lies in ComfyUI's input folder."""
    return lambda add, key: add(key, "LoadImage", image=name)


def literally(say: Callable[..., Link]) -> Callable[..., Link]:
    """For prompts whose parentheses are no weights."""
    return lambda add, key, text, clip: say(add, key, escaped(text), clip)
