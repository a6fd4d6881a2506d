"""A MODEL's row in the graph: what it is called, what the row changes, and that a run goes on as it was begun."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_loom.trainer.diffusion.timesteps import ResolutionShift
from lora_loom.trainer.runs.run_folder import RunFolder


@pytest.fixture
def rows(host):
    return host("backend.model_rows")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkvo"})
        self.adaln_modulation_mlp = nn.Linear(8, 24)


def network():
    made = nn.Module()
    made.blocks = nn.ModuleList(Block() for _ in range(3))
    return made


def patcher(model_class, config=None, file=None):
    model = type(model_class, (), {})()
    model.model_config = SimpleNamespace(unet_config=config or {})
    made = SimpleNamespace(model=model)
    if file is not None:
        made.cached_patcher_init = (None, (str(file), {}))
    return made


def test_a_model_is_called_by_its_file_and_its_metadata(rows, tmp_path):
    file = tmp_path / "turbo" / "renamed.safetensors"
    file.parent.mkdir()
    save_file({"w": torch.zeros(1)}, file, metadata={"modelspec.title": "Z-Image-Turbo", "modelspec.author": "base"})
    assert rows.names_of(patcher("Lumina2", file=file)) == ["renamed", "Z-Image-Turbo"]
    assert rows.names_of(patcher("Lumina2", file=tmp_path / "gone.safetensors")) == ["gone"]
    assert rows.names_of(patcher("Lumina2")) == [], "an older ComfyUI keeps no path"
    told = rows.told_of(patcher("Lumina2", {"z_image_modulation": True}, file))
    assert (told.row.name, told.by) == ("Z-Image Turbo", "name")


def test_a_row_gives_shift_and_guidance_and_leaves_modules_out(rows, host):
    plain = host("backend.families").told_by_structure(network())
    anima = rows.with_row(plain, rows.told_of(patcher("Anima", file="anima-base-v1.0.safetensors")), network())
    assert anima.training_shift == 3.0
    assert {path for path in plain.targets["default"].paths if "adaln" in path}, "the structure alone would train them"
    for preset in anima.targets.values():
        assert preset.paths
        assert not [path for path in preset.paths if "adaln" in path]
    flux2 = rows.with_row(plain, rows.told_of(patcher("Flux2", {"guidance_embed": True})), network())
    assert flux2.training_shift == ResolutionShift(patch=1)
    assert flux2.conditions == {"guidance": 1.0}
    assert rows.with_row(plain, None, network()) is plain


def test_a_run_goes_on_with_the_shift_and_the_guidance_that_it_began_with(rows, host, tmp_path):
    plain = host("backend.families").told_by_structure(network())
    row = rows.with_row(plain, rows.told_of(patcher("Flux2", {"guidance_embed": True})), network())
    folder = RunFolder(tmp_path / "run")
    assert rows.as_begun(folder, row, plain) is row, "a new run"
    folder.start({}, {}, {}, ["a"], {"base_model": rows.record_of(row)})
    (folder.path / "loras").mkdir()
    (folder.path / "loras" / "run.safetensors").touch()
    begun = rows.as_begun(folder, plain, plain)
    assert (begun.training_shift, begun.conditions) == (row.training_shift, row.conditions)
    earlier = RunFolder(tmp_path / "earlier")
    earlier.start({}, {}, {}, ["a"])
    (earlier.path / "loras").mkdir()
    (earlier.path / "loras" / "earlier.safetensors").touch()
    before = rows.as_begun(earlier, row, plain)
    assert (before.training_shift, before.conditions) == (None, {}), "what versions without the table trained with"


def test_a_risky_choice_is_said(rows):
    turbo = patcher("Lumina2", {"z_image_modulation": True}, "z_image_turbo_bf16.safetensors")
    (said,) = rows.warnings(rows.told_of(turbo), turbo, "flow")
    assert "distilled" in said
    noob = patcher("SDXL", {}, "NoobAI-XL-Vpred-v1.0.safetensors")
    (said,) = rows.warnings(rows.told_of(noob), noob, "epsilon")
    assert "ModelSamplingDiscrete" in said
    assert not rows.warnings(rows.told_of(noob), noob, "v")


@pytest.mark.parametrize(
    ("model_class", "config", "scale"),
    [
        ("SD15", None, 4.0),  # no row: as before
        ("Flux", None, 1.0),  # its guidance is an input
        ("Flux2", {"guidance_embed": True}, 1.0),
        ("QwenImage", None, 4.0),
    ],
)
def test_samples_have_the_usual_scale_of_the_model(rows, model_class, config, scale):
    made = patcher(model_class, config)
    assert rows.usual_cfg(rows.told_of(made), model_class) == scale
