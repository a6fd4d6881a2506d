"""Sides that a network has no positions for are refused before anything is encoded."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from torch import nn

from lora_loom.trainer.config.run import TrainConfig
from lora_loom.trainer.config.toml import parse
from lora_loom.trainer.errors import ConfigError, DataError
from lora_loom.trainer.families.common.positions import positions_per_side
from lora_loom.trainer.runs.headless import build_cache, prepare
from tests.conftest import SilentHost

DEMO = Path(__file__).parents[3] / "assets" / "demo"


def config(tmp_path, size, **more):
    folder = tmp_path / "d"
    folder.mkdir()
    Image.new("RGB", size).save(folder / "pano.png")
    (folder / "pano.txt").write_text("x")
    data = {
        "name": "t",
        "model": {"base": str(DEMO), "device": "cpu"},
        "dataset": [{"folder": str(folder)}],
        "data": {"resolution": 128},
        "output": {"directory": str(tmp_path / "out")},
        **more,
    }
    return parse(data, TrainConfig)


@pytest.mark.parametrize("size", [(3000, 120), (120, 3000)])
def test_a_panorama_is_named_with_the_remedy(tmp_path, size):
    message = r"1 images have a bucket with a side above 512 pixels, where the positions of sd3 end: pano\.png \(\d+ x \d+\): crop them"
    with pytest.raises(DataError, match=message) as error:
        prepare(config(tmp_path, size), SilentHost())
    assert "dataset.max_aspect = " in str(error.value)


def test_the_longest_side_that_fits_is_taken(tmp_path):
    prepared = prepare(config(tmp_path, (2048, 128)), SilentHost())  # 512 x 32
    assert prepared.dataset.examples[0].geometry.target == (512, 32)
    table = json.loads((DEMO / "transformer" / "config.json").read_text())["pos_embed_max_size"]
    assert positions_per_side(prepared.base.skeleton().module) == table == 32


def test_comfyuis_network_says_so_too_and_others_have_no_end():
    module = nn.Module()
    module.pos_embed_max_size = 192
    module.register_buffer("pos_embed", None)
    assert positions_per_side(module) == 0, "it computes its positions"
    assert positions_per_side(SimpleNamespace(pos_embed=object(), pos_embed_max_size=192)) == 192
    assert positions_per_side(nn.Linear(1, 1)) == 0


def test_tiles_that_the_vae_does_not_have_are_refused_before_caching(tmp_path):
    prepared = prepare(config(tmp_path, (128, 128), memory={"vae_tiling": True}), SilentHost())
    with pytest.raises(
        ConfigError, match=r"memory\.vae_tiling = true: the VAE of this base \(AutoencoderTiny\) has no tiles"
    ):
        build_cache(prepared, SilentHost())
