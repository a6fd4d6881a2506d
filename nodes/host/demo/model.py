"""The demo base as ComfyUI's MODEL, CLIP and VAE: its network and autoencoder by the host's own classes, its text encoder by ours."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ....trainer.config.run import DatasetConfig
from ....trainer.config.toml import parse
from ....trainer.errors import ModelFileError
from ....trainer.storage.atomic import write_bytes
from ...sockets.values import DatasetValue
from ..comfy_types import Clip, ModelPatcher, Vae
from ..paths import cache_folder
from .clip import DemoClip

COMPLETE = "complete"
"""Name of a file that marks a folder whose images are all written."""


def load_demo(folder: Path | None = None) -> tuple[ModelPatcher, Clip, Vae]:
    """Returns (MODEL, CLIP, VAE) of a diffusers folder laid out as the demo base. Raises ModelFileError if it is not there."""
    folder = folder or _assets()
    parts = [name for name in ("transformer", "text_encoder", "tokenizer", "vae") if not (folder / name).is_dir()]
    if parts:
        raise ModelFileError(f"{folder} lacks {', '.join(parts)}: install the whole repository of LoRA Loom again")
    return load_network(str(folder)), load_clip(folder), load_vae(folder)


def _assets() -> Path:
    from ....trainer.demo.demo import ASSETS

    return ASSETS


def demo_data() -> DatasetValue:
    """The images of the demo, drawn once: a new concept, scenes that the base model knows, and validation images."""
    from ....trainer.demo.demo import write_data

    folder = cache_folder() / "demo"
    if not (folder / COMPLETE).is_file():
        write_data(folder, seed=0)
        write_bytes(folder / COMPLETE, b"")
    sets: dict[str, dict[str, object]] = {
        "images": {"caption_dropout": 0.1},
        "scenes": {"role": "regularisation"},
        "held_out": {"role": "validation"},
    }
    configs = (parse({"folder": str(folder / name), **options}, DatasetConfig) for name, options in sets.items())
    return DatasetValue(sets=tuple(configs))


def load_network(folder: str, **options: object) -> ModelPatcher:
    """A ModelPatcher through ComfyUI's own loader. `options` are its own, which differ by version."""
    import comfy.sd

    from ....trainer.families import detect
    from ....trainer.families.common.family import WritesOriginal
    from ....trainer.families.common.keymap import to_native
    from ....trainer.families.common.source import open_source

    source = open_source(folder)
    family, _ = detect(source.shapes, folder)
    if not isinstance(family, WritesOriginal):
        raise ModelFileError(f"{folder} is a {family.name} model, whose folders cannot be given to ComfyUI from here")
    original = to_native(source.tensors(), family.original_keys(source.config or {}, source.shapes))
    model = comfy.sd.load_diffusion_model_state_dict(original, **options)
    if model is None:
        raise ModelFileError(f"this version of ComfyUI does not recognise the network in {folder}")
    model.cached_patcher_init = (load_network, (folder,))  # how newer hosts make a copy of their own
    return model


def load_clip(folder: Path) -> DemoClip:
    """The text encoder of the demo."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    network = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", use_safetensors=True).float()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    return DemoClip.of(network.requires_grad_(False).eval(), tokenizer)


def load_vae(folder: Path) -> Vae:
    """The VAE of the demo, by ComfyUI's own class. Raises ModelFileError for another kind of VAE."""
    import comfy.sd
    from safetensors.torch import load_file

    config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    if config["_class_name"] != "AutoencoderTiny":
        raise ModelFileError(f"{folder / 'vae'} is a {config['_class_name']}, not an AutoencoderTiny")
    [file] = sorted((folder / "vae").glob("*.safetensors"))
    unscaled = {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}  # the model's latent format does it
    return comfy.sd.VAE(sd={**taesd_keys(load_file(file)), **unscaled})


def taesd_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps diffusers' names of a TAESD to ComfyUI's, whose decoder counts its clamp as layer 0."""
    renamed = {}
    for key, tensor in tensors.items():
        side, _, rest = key.partition(".layers.")
        number, _, name = rest.partition(".")
        renamed[f"taesd_{side}.{int(number) + (side == 'decoder')}.{name}"] = tensor
    return renamed
