"""The layers of a base model by name: all of them, with the presets that train them, by the names that patterns find."""

import json
import re

import pytest
from torch import nn
from typer.testing import CliRunner

from lora_loom.trainer import families
from lora_loom.trainer.cli.main import app
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.lora_tools.base_layers import layers_table, listed_layers
from tests.conftest import FAMILIES, tiny_folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_listed_once_with_its_presets(family):
    denoiser = families.get(family).tiny().denoiser
    presets = denoiser.target_presets
    layers = listed_layers(denoiser.module, presets)
    paths = [path for path, part in denoiser.module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    assert sum(one.count for one in layers) == len(paths)
    for name in presets:
        trained = [path for path in paths if presets[name].hold(path)]
        named = {re.sub(r"(?<=\.)\d+(?=\.|$)", "N", path, count=1) for path in trained}
        assert named <= {one.name for one in layers if name in one.presets}, name
    for one in layers:  # what is printed is found by a pattern of the same name
        pattern = "^" + re.sub(r"\\\.N(?=\\|$)", r"\\.\\d+", re.escape(one.name)) + "$"
        assert len(resolve_targets(denoiser.module, presets, f"regex:{pattern}")) == one.count


def test_the_command_lists_a_base_and_goes_on_reading_loras(tmp_path):
    run = CliRunner().invoke
    result = run(app, ["inspect", str(tiny_folder("flux"))])
    assert result.exit_code == 0
    assert "flux: flux dev" in result.output
    assert re.search(r"transformer_blocks\.N\.attn\.to_q +2 +N 0-1 .*default, attention", result.output)
    found = json.loads(run(app, ["inspect", str(tiny_folder("sd")), "--json"]).output.splitlines()[-1])
    assert (found["family"], found["variant"]) == ("sd", "sd1")
    assert {"name", "count", "blocks", "shape", "presets"} <= set(found["layers"][0])
    (tmp_path / "notes.txt").write_text("no model")
    assert run(app, ["inspect", str(tmp_path / "notes.txt")]).exit_code == 4


def test_a_network_without_presets_is_listed_too():
    denoiser = families.get("sd3").tiny().denoiser
    text = layers_table("the connected model", listed_layers(denoiser.module, {}), {})
    assert "presets:" not in text
    assert "transformer_blocks.N.attn.to_q" in text
