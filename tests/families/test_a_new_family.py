"""A family is one file: put into the folder while this runs, it is trained, swept, recognised and known in ComfyUI's graph."""

import importlib
import json
import sys

import pytest
from PIL import Image
from torch import nn

from lora_loom.trainer import families
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.families.common.tiny import save_folder
from lora_loom.trainer.lora_tools.base_keys import recognise
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.sweep.run import sweep
from lora_loom.trainer.weights.frozen import FrozenLinear
from tests.conftest import SilentHost, make_config
from tests.nodes.stubs import stubbed

SOURCE = '''
"""A network of joint attention whose text is 40 wide."""
from dataclasses import replace

from ..diffusion.denoiser import Targets
from .common.family import ComfyModel
from .common.keymap import Part
from .common.lora_names import LoraNames
from .sd3 import FAMILY as RELATIVE

NAME = "made_up"
VARIANTS = {"made-up": replace(RELATIVE.variants["sd3"], training_shift=1.7)}
TARGETS = {"default": Targets(r"attn\\\\.to_[qk]$", "query and key"), "attention": Targets(r"attn\\\\.to_[qkv]$", "all but the output")}


class MadeUp(type(RELATIVE)):
    name = NAME
    variants = VARIANTS
    comfy = ComfyModel(
        model_classes=("MadeUpModel",),
        block_classes=("MadeUpBlock",),
        clip_loader="MadeUpLoader",
        clip_inputs={"clip_name": "made_up.safetensors"},
        vae_name="made_up_vae.safetensors",
    )
    lora_names = LoraNames(prefixes=("made_up.",), diffusers=r"transformer_blocks\\\\.\\\\d+\\\\.attn\\\\.to_[qkv]", native=r"stem\\\\.\\\\d+\\\\.qkv", sizes={})

    def target_presets(self, paths):
        return TARGETS

    def detect(self, shapes):
        text = shapes.get("context_embedder.weight", (0, 0))
        return "made-up" if text[1] == 40 or "stem.0.qkv.weight" in shapes else None

    def key_map(self, shapes):
        rows = {"q": (0, 8), "k": (8, 16), "v": (16, 24)}
        return {
            f"transformer_blocks.{i}.attn.to_{x}.weight": Part(f"stem.{i}.qkv.weight", rows[x]) for i in (0, 1) for x in rows
        }

    def load_denoiser(self, source, variant, loading):
        return self._renamed(super().load_denoiser(source, "sd3", loading))

    def load_encoders(self, source, variant, *rest):
        return super().load_encoders(source, "sd3", *rest)

    def tiny(self, seed=0):
        from diffusers import SD3Transformer2DModel

        from .common.tiny import random_network, tiny_clip

        made = RELATIVE.tiny(seed)
        config = {**made.denoiser.module.config, "joint_attention_dim": 40, "pooled_projection_dim": 32}
        made.denoiser.module = random_network(SD3Transformer2DModel, config, seed)
        made.text_parts = {"text_encoder": tiny_clip(seed, projection=True)}
        return made

    def _renamed(self, denoiser):
        denoiser.family, denoiser.target_presets = NAME, TARGETS
        denoiser.file_key = lambda path: f"made_up.{path}"
        return denoiser


FAMILY = MadeUp()
'''.replace("\\\\", "\\")


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Its folder of toy weights."""
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "made_up.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder)])
    families.all_families.cache_clear()
    yield save_folder(families.get("made_up").tiny(), tmp_path / "base")
    families.all_families.cache_clear()
    sys.modules.pop(f"{families.__name__}.made_up", None)


def test_it_is_trained_swept_and_recognised(made_up, tmp_path):
    config = make_config(
        "sd3", tmp_path, model={"base": str(made_up)}, training={"steps": 2, "save_every": 2}, network={"target_modules": "default"},
        sweep={"prompts": ["a cat"], "steps": 1},
        output={"directory": str(tmp_path), "cache": str(tmp_path / "cache"), "loras": str(tmp_path / "loras")},
    )  # fmt: skip
    train(config, SilentHost())
    lora = next((tmp_path / "loras").rglob("*.safetensors"))
    assert recognise(lora).families == ("made_up",)
    assert recognise(lora).unmatched == ()
    *_, cell = sweep(config, SilentHost()).cells
    with Image.open(cell.image) as image:
        graph = json.loads(image.info["prompt"])
    assert graph["clip"]["class_type"] == "MadeUpLoader"
    assert graph["vae"]["inputs"]["vae_name"] == "made_up_vae.safetensors"


def test_its_name_is_known_where_names_are_checked(made_up):
    assert "made_up" in families.all_families()
    with pytest.raises(ConfigError, match="did you mean 'made_up'"):
        families.get("made_upp")


@pytest.fixture
def loaded_backend(made_up, tmp_path):

    with stubbed(tmp_path):
        yield importlib.import_module("lora_loom.nodes.host.backend.families")


def test_the_graph_knows_it_by_comfyuis_class(loaded_backend):
    network = nn.Module()
    network.stem = nn.ModuleList([nn.ModuleDict({"qkv": FrozenLinear(8, 24)}) for _ in range(2)])
    row = loaded_backend.described("MadeUpModel", network)
    assert row.targets["attention"].paths == {f"stem.{i}.qkv.to_{x}" for i in (0, 1) for x in "qkv"}
    assert row.targets["default"].paths == {f"stem.{i}.qkv.to_{x}" for i in (0, 1) for x in "qk"}
    assert row.file_keys["stem.0.qkv.to_q"] == "transformer.transformer_blocks.0.attn.to_q"
    assert row.training_shift == 1.7
    assert row.blocks == ("MadeUpBlock",)
