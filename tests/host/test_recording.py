"""Against a real ComfyUI: record the fixtures anew and compare. COMFYUI_PATH and COMFYUI_PYTHON say where it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig
from scripts.host_toys import HEADLESS, TOYS, toy_tensor
from scripts.record_host_gradients import NO_SWITCH
from tests.families.test_native_files import READERS

pytestmark = pytest.mark.comfyui

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "tests" / "fixtures" / "host"
COMFYUI = Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()


def record(script, target):
    """Run a recording script in the host's Python; pytest.skip with its words where that version cannot."""
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(ROOT / "scripts" / script), str(target)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "COMFYUI_PATH": str(COMFYUI)}
    )
    if NO_SWITCH in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    if not (COMFYUI / "comfy").is_dir():
        pytest.skip(f"no ComfyUI at {COMFYUI}: set COMFYUI_PATH")
    folder = tmp_path_factory.mktemp("recorded")
    record("record_host_keys.py", folder)
    record("record_host_texts.py", folder / "texts.safetensors")
    return folder


@pytest.fixture(scope="module")
def gradients(recorded):
    record("record_host_gradients.py", recorded / "gradients.safetensors")
    return recorded


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("name", [*HEADLESS, "qwen-edit-2511"])
def test_predictions_are_the_stored_ones(recorded, name):
    if not (recorded / f"{name}.safetensors").is_file():
        pytest.skip("this version does not know the clock of these references")
    fresh, stored = load_file(recorded / f"{name}.safetensors"), load_file(STORED / f"{name}.safetensors")
    assert torch.allclose(fresh["noisy"], stored["noisy"], rtol=1e-6)
    effect, expected = (f["noisy"] - f["denoised"] for f in (fresh, stored))
    assert (effect - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("name", HEADLESS)
def test_losses_and_gradients_are_the_stored_ones(gradients, name):
    fresh, stored = (load_file(folder / "gradients.safetensors") for folder in (gradients, STORED))
    assert torch.allclose(fresh[f"{name}.loss"], stored[f"{name}.loss"], rtol=1e-5)
    found, expected = fresh[f"{name}.gradients"], stored[f"{name}.gradients"]
    size = expected[:, :1].clamp_min(1e-4 * expected[:, 0].max())
    assert ((found - expected).abs() / size).max() < 1e-4


@pytest.mark.parametrize("name", HEADLESS)
def test_the_keys_we_write_land_on_the_same_rows(recorded, name, tmp_path):
    """For this version of the host too; other aliases may come and go."""
    fresh, stored = read(recorded, name), read(STORED, name)
    assert fresh["keys"].items() >= stored["keys"].items()  # an older version may have a layer more
    _, keymap = READERS[TOYS[name].family]({key: tuple(shape) for key, shape in stored["keys"].items()})
    file = tmp_path / "base.safetensors"
    save_file({key: toy_tensor(key, tuple(shape)) for key, shape in stored["keys"].items()}, file)
    skeleton = open_base(ModelConfig(base=str(file), family=TOYS[name].family)).skeleton()
    checked = 0
    for parameter in (name for name in keymap if name.endswith(".weight")):
        path = parameter.removesuffix(".weight")
        if not isinstance(skeleton.module.get_submodule(path), torch.nn.Linear | torch.nn.Conv2d):
            continue  # norms have no adapter
        key = skeleton.file_key(path)
        if key in stored["accepted"] and stored["accepted"][key][-1] != "other":
            assert fresh["accepted"][key] == stored["accepted"][key], key
            checked += 1
    assert checked > 30


@pytest.mark.parametrize("name", ["adapters", "texts"])
def test_adapters_and_texts_are_computed_as_stored(recorded, name):
    fresh, stored = (load_file(folder / f"{name}.safetensors") for folder in (recorded, STORED))
    assert fresh.keys() == stored.keys()
    same_version = read(recorded, "sd1")["comfyui"] == read(STORED, "sd1")["comfyui"]
    for key in fresh:
        if key.startswith("qwen.") and not same_version:
            continue  # ComfyUI changed how its Qwen2.5-VL reads a picture; ours reads as the stored version does
        assert torch.allclose(fresh[key], stored[key], rtol=1e-5, atol=1e-6), key


def test_the_same_version_records_the_same(recorded):
    for name in HEADLESS:
        if read(recorded, name)["comfyui"] != read(STORED, name)["comfyui"]:
            pytest.skip("another version than the stored one")
        assert read(recorded, name) == read(STORED, name)
    for name in ("names", "text_keys"):
        assert read(recorded / "unets", name) == read(STORED / "unets", name)
