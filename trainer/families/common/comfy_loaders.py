"""Nodes that load a base in ComfyUI and encode its prompts: parts of the graphs that sample images carry."""

from collections.abc import Callable, Sequence

from ...types import Json, Size, reference_name
from .family import ComfyModel, EditPrompt, PromptEncoding
from .source import Source
from .text.prompt_weights import escaped

Link = list[str | int]
"""[node id, output number]."""
Nodes = dict[str, Json]
"""{node id: class and inputs}."""
Show = Callable[[Callable[..., Link], str], Link]

OWN_VAE = ("first_stage_model.", "vae.")
"""How a whole checkpoint calls its VAE's tensors."""


def loaders(source: Source, comfy: ComfyModel, reading: PromptEncoding) -> tuple[Nodes, dict[str, Link]]:
    """Nodes that load a base, and {"model", "clip", "vae": the output that holds it}."""
    name = source.path.name if source.path.is_file() else f"{source.path.name}.safetensors"
    if source.path.is_dir() and comfy.loads_folders:
        nodes, links = _whole("DiffusersLoader", model_path=source.path.name)
    elif any(key.startswith(OWN_VAE) for shapes in source.headers.values() for key in shapes):
        nodes, links = _whole("CheckpointLoaderSimple", ckpt_name=name)
    else:
        nodes = {
            "model": _node("UNETLoader", unet_name=name, weight_dtype="default"),
            "clip": _node(comfy.clip_loader, **comfy.clip_inputs),
            "vae": _node("VAELoader", vae_name=comfy.vae_name),
        }
        links = {key: [key, 0] for key in nodes}
    if source.vae is not None:
        nodes["vae"] = _node("VAELoader", vae_name=source.vae.name)
        links["vae"] = ["vae", 0]
    if reading.clip_skip:
        nodes["skip"] = _node("CLIPSetLastLayer", clip=links["clip"], stop_at_clip_layer=-reading.clip_skip)
        links["clip"] = ["skip", 0]
    if reading.t5_attention_mask:  # texts without padding
        nodes["t5"] = _node("T5TokenizerOptions", clip=links["clip"], min_padding=0, min_length=0)
        links["clip"] = ["t5", 0]
    return nodes, links


def _whole(kind: str, **inputs: object) -> tuple[Nodes, dict[str, Link]]:
    return {"model": _node(kind, **inputs)}, {
        name: ["model", output] for output, name in enumerate(("model", "clip", "vae"))
    }


def _node(kind: str, **inputs: object) -> Json:
    return {"class_type": kind, "inputs": inputs}


def prompt_nodes(
    vae: Link,
    references: Sequence[tuple[Show, Size]],
    edit: EditPrompt | None = None,
    wording: Callable[[str], str] = str,
) -> Callable[..., Link]:
    """How a prompt becomes a conditioning, as `cell_graph` asks for it.

    `references` holds for each image the function that adds the node it comes out of, and the size in pixels that it is
    brought to for the network. With `edit` the text encoder sees the images too; otherwise it is given `wording` of the prompt.
    """

    def say(add: Callable[..., Link], key: str, text: str, clip: Link) -> Link:
        if not references:
            return add(key, "CLIPTextEncode", clip=clip, text=wording(text))
        images = [show(add, reference_name(i)) for i, (show, _) in enumerate(references)]
        if edit is not None:
            places = dict(zip(edit.image_inputs, images, strict=False))
            said = add(f"{key}_text", edit.node, clip=clip, prompt=text, **places)
        else:
            said = add(f"{key}_text", "CLIPTextEncode", clip=clip, text=wording(text))
        for i, (image, (_, size)) in enumerate(zip(images, references, strict=True)):
            last = i == len(images) - 1
            said = add(
                key if last else f"{key}_{reference_name(i)}", "ReferenceLatent", conditioning=said,
                latent=_encoded(add, reference_name(i), image, size, vae),
            )  # fmt: skip
        return said

    return say


def _encoded(add: Callable[..., Link], name: str, image: Link, size: Size, vae: Link) -> Link:
    """An image's latents, of this size in pixels."""
    width, height = size
    scaled = add(
        f"{name}_scaled",
        "ImageScale",
        image=image,
        upscale_method="lanczos",
        width=width,
        height=height,
        crop="disabled",
    )
    return add(f"{name}_latents", "VAEEncode", pixels=scaled, vae=vae)


def from_input_folder(name: str) -> Show:
    """An image that lies in ComfyUI's input folder."""
    return lambda add, key: add(key, "LoadImage", image=name)


def literally(say: Callable[..., Link]) -> Callable[..., Link]:
    """Wraps the function for prompts whose parentheses are text, not weights."""
    return lambda add, key, text, clip: say(add, key, escaped(text), clip)
