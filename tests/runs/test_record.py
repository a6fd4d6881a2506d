"""A run of ComfyUI in the command line's hands: its record in both shapes, sweep, score, strip and inspect."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.cli.main import app
from lora_loom.trainer.config.run import ModelConfig, NetworkConfig, OptimizerConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.lora.patch import patched
from lora_loom.trainer.lora_tools.layouts import Formats
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.runs.modules import modules_of_run
from lora_loom.trainer.runs.record import recorded_tables, run_config, training_images
from lora_loom.trainer.runs.run_folder import RunFolder
from tests.conftest import SilentHost, make_config, pictures, tiny_folder
from tests.nodes.records import OLD_GRAPH_RUN


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def graph_run(tmp_path_factory):
    """The folder that LoomTrain leaves: a run whose record names a cache, and neither a base model nor a dataset."""
    root = tmp_path_factory.mktemp("graph")
    config = make_config(
        "sd3",
        root,
        name="cat",
        data={"resolution": 64, "bucket_step": 32, "validation_split": 0.34},
        training={"steps": 4, "save_every": 2},
        output={"dtype": "float32"},
    )
    train(config, SilentHost())
    folder = run_folder(config)
    images = sorted(pictures().glob("*.png"))
    listing = [{"path": str(path), "role": "train" if i < 4 else "held_out"} for i, path in enumerate(images)]
    (root / "cache" / "sets").mkdir(parents=True)
    (root / "cache" / "sets" / "of-cats.json").write_text(json.dumps(listing))
    tables = folder.read()["config"]
    for name in ("dataset", "dataset_files", "data", "text", "sweep"):
        del tables[name]
    cache = {"folder": str(root / "cache"), "listing": "sets/of-cats.json", "resolution": 64, "trigger": "zib"}
    folder.update(config={**tables, "model": {"quantize": "none"}, "cache": cache})
    return folder


SWEPT = ("--set", "sweep.prompts=['a zib']", "--set", "sweep.steps=2", "--set", "sweep.seeds=0,1")


def test_the_record_of_a_graph_run_as_a_configuration(graph_run):
    config = run_config(graph_run, [f"model.base={tiny_folder('sd3')}", "sweep.steps=7"])
    assert (config.name, config.data.resolution, config.sweep.steps) == ("cat", 64, 7)
    assert (config.network.rank, config.training.steps, config.dataset) == (2, 4, ())
    assert run_folder(config).path == graph_run.path, "wherever it was moved to"
    assert training_images(graph_run) == sorted(pictures().glob("*.png"))[:4]
    with pytest.raises(ConfigError, match=r"run cat was trained in ComfyUI.*give --set model\.base=PATH"):
        run_config(graph_run)


def test_the_record_of_a_graph_run_of_version_0_1(tmp_path):
    folder = RunFolder(tmp_path / "graph-run")
    folder.update(**OLD_GRAPH_RUN)
    config = run_config(folder, ["model.base=base"])
    assert config.network == NetworkConfig(
        rank=2, target_modules="attention", exclude_modules="x", init_from="first/start.safetensors"
    )
    assert config.optimizer == OptimizerConfig(learning_rate=1e-3, max_grad_norm=0.5)
    assert (config.model.quantize, config.training.gradient_accumulation_steps) == ("int8", 2)
    cache = {"folder": str(tmp_path / "cache"), "listing": "sets/0123.json"}
    assert recorded_tables(folder)["cache"] == cache


def test_the_record_of_the_command_lines_own_run(tmp_path):
    config = make_config("sd3", tmp_path, training={"steps": 1}, objective={"timestep_spread": "even"})
    train(config, SilentHost())
    moved = tmp_path / "elsewhere"
    shutil.copytree(run_folder(config).path, moved / "run")
    read = run_config(RunFolder(moved / "run"))
    assert {**vars(read), "output": config.output} == vars(config)
    assert read.output.directory == str(moved)
    assert training_images(RunFolder(moved / "run")) == []


def test_a_graph_run_is_swept_scored_drawn_and_inspected(graph_run):
    refused = run("sweep", graph_run.path, *SWEPT)
    assert refused.exit_code != 0
    assert "give --set model.base=PATH" in refused.stderr
    swept = run("sweep", graph_run.path, *SWEPT, "--set", f"model.base={tiny_folder('sd3')}", "--json")
    assert swept.exit_code == 0, swept.output
    strips = graph_run.path / "strips"
    assert len(json.loads((strips / "sheet.json").read_text())["cells"]) == (1 + 2) * 2
    (strips / "sheet.json").rename(strips / "sheet-0123456789abcdef.json")  # the name that LoomSweep gives
    drawn = run("strip", strips, "--columns", "checkpoint", "--rows", "seed", "--json")
    assert drawn.exit_code == 0, drawn.output
    scored = run("score", strips, "--json")
    assert scored.exit_code == 0, scored.output
    made = json.loads(scored.stdout.splitlines()[-1])["score"]
    assert [row["step"] for row in made["rows"]] == [0, 2, 4]
    lines = {line["step"]: line["held_out"] for line in graph_run.read_metrics() if "held_out" in line}
    for row in made["rows"]:
        assert row["values"]["held_out"]["mean"] == pytest.approx(lines[row["step"]], rel=1e-4)
        assert "training_likeness" in row["values"], "the cache's listing names the training images"
    assert not any("drift not measured: name the trained word" in note for note in made["notes"]), "the cache has it"
    inspected = run("inspect", graph_run.lora_file(None), "--json")
    assert inspected.exit_code == 0, inspected.output


def test_the_newest_sheet_of_a_folder_or_the_one_that_is_named(graph_run):
    strips = graph_run.path / "strips"
    if not list(strips.glob("sheet*.json")):
        run("sweep", graph_run.path, *SWEPT, "--set", f"model.base={tiny_folder('sd3')}")
    [first] = strips.glob("sheet*.json")
    other = strips / "sheet-other.json"
    data = json.loads(first.read_text())
    other.write_text(json.dumps({**data, "cells": data["cells"][:1]}))
    assert run("strip", strips, "--columns", "checkpoint", "--rows", "seed").exit_code == 0
    newest = json.loads((strips / "strip.json").read_text())
    assert run("strip", first, "--columns", "checkpoint", "--rows", "seed").exit_code == 0
    named = json.loads((strips / "strip.json").read_text())
    assert json.dumps(newest).count('"image"') < json.dumps(named).count('"image"')
    other.unlink()
    missing = run("strip", graph_run.path / "loras")
    assert missing.exit_code != 0
    assert "holds no finished sheet" in missing.stderr


def test_modules_of_a_run_that_fits_the_network_are_kept_and_others_found_anew(tmp_path):
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1), "b": torch.nn.Linear(1, 1)})
    folder = RunFolder(tmp_path / "run")

    def found():
        return modules_of_run(folder, network, lambda: ["b"])

    assert found() == ["b"], "a new run"
    folder.start({}, {}, {}, ["a"])
    assert found() == ["b"], "begins again, for it has kept nothing"
    (folder.checkpoints / "step-000001").mkdir(parents=True)
    assert found() == ["a"], "whatever the preset means now"
    folder.start({}, {}, {}, ["a", "c"])
    assert found() == ["b"], "of another base, which the comparison of settings then names"


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("sd3", "diffusion_model.joint_blocks.0.x_block.attn.qkv"),
        ("flux", "diffusion_model.double_blocks.0.img_attn.qkv"),
    ],
)
def test_a_lora_of_the_graph_acts_on_the_command_lines_network(family, key):
    """ComfyUI has q, k and v in one weight where diffusers has three."""
    config = ModelConfig(base=str(tiny_folder(family)), device="cpu")
    base = open_base(config)
    denoiser = base.load_denoiser(config, "float32")
    parts = [denoiser.module.get_submodule(f"transformer_blocks.0.attn.to_{name}") for name in "qkv"]
    rows, columns = parts[0].weight.shape
    down, up = torch.randn(2, columns), torch.randn(3 * rows, 2)
    file = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.alpha": torch.tensor(4.0)}
    before = torch.cat([part.weight for part in parts])
    with patched(denoiser, Formats(family=base.family, denoiser=denoiser).native(file), 0.5):
        changed = torch.cat([part.weight for part in parts])
    torch.testing.assert_close(changed, before + 0.5 * (4.0 / 2) * up @ down)
