"""The graphs in example_workflows/: the page's form belongs to the API form, and every one runs on toys."""

import json

import pytest

from scripts.write_workflows import LAYOUTS, api_graph

from .graphs import file, prompt, toy, train
from .server import ROOT

pytestmark = pytest.mark.comfyui
RENAMED = {"folder": "pics", "name": "workflow"}
SMALL = {"steps": 4, "length": "value", "save_every": 2, "resolution": 64, "width": 64, "height": 64, "vae_batch": 1}


def graph(workflow, base, /, **changes):
    """An API file with its loaders replaced by toys, and small numbers."""
    nodes = api_graph(workflow)
    made = dict(nodes)
    replaced = {}
    for key, value in nodes.items():
        outputs = {"CheckpointLoaderSimple": ("model", "clip", "vae"), "UNETLoader": ("model",), "CLIPLoader": ("clip",), "DualCLIPLoader": ("clip",), "VAELoader": ("vae",)}.get(value["class_type"])  # fmt: skip
        if outputs:
            del made[key]
            replaced |= {(key, slot): base["sources"][output] for slot, output in enumerate(outputs)}
    for key, value in made.items():
        inputs = {
            name: replaced.get(tuple(given), given) if isinstance(given, list) else SMALL.get(name, given)
            for name, given in value["inputs"].items()
        }
        made[key] = {**value, "inputs": {**inputs, **{k: v for k, v in {**RENAMED, **changes}.items() if k in inputs}}}
    return {**prompt(base), **made}


def pictures(record):
    return [image for output in record["outputs"].values() for image in output.get("images", [])]


@pytest.mark.parametrize(("name", "family"), [("train_sd", "sd1"), ("train_flux", "flux")])
def test_training(server, bases, name, family):
    server.run(graph(name, bases[family], name=f"workflow-{family}"))
    run = server.wait_state(f"workflow-{family}", "finished", "failed")
    assert (run["state"], run["step"]) == ("finished", 4)


TOYS = {
    "train_klein": "flux2-klein", "train_krea2": "krea2", "train_sdxl": "sdxl", "train_slider": "sdxl", "train_z_image_turbo": "z-image",
}  # fmt: skip
"""Templates whose models no version's own loader makes small, and the toys in their place."""


@pytest.mark.parametrize("name", TOYS)
def test_a_template_is_queued_and_completes(server, name):
    """With samples, another model for samples, a LoRA under the one in training, and a sweep, as the template has them."""
    base, changes = toy(TOYS[name]), {"name": name.replace("_", "-")}
    made = graph(name, base, **changes)
    if any(node["class_type"] == "LoomBaseLora" for node in made.values()):
        server.run(prompt(train(base, "under", steps=2, save_every=2)))
        made = graph(name, base, **changes, lora="lora_loom/under/under.safetensors")
    server.run(made, timeout=300)
    run = server.wait_state(changes["name"], "finished", "failed")
    assert (run["state"], run["step"]) == ("finished", 4), run.get("error")
    kinds = {node["class_type"] for node in made.values()}
    assert bool(run["samples"]) == ("LoomValidation" in kinds)
    cells = server.base / "output" / "lora_loom" / changes["name"] / "strips" / "cells"
    assert len(list(cells.glob("*.png"))) == (2 * 5 if "LoomSweep" in kinds else 0), (
        "two seeds: the base, four strengths"
    )


def test_every_template_runs_somewhere():
    """The edit model's is in test_edit_models.py, for its text encoder."""
    here = {"demo", "train_sd", "train_flux", "train_wan22", "strip", "apg_compare", "train_qwen_edit"}
    assert here | TOYS.keys() == LAYOUTS.keys()


def test_both_experts_train_one_after_the_other(server):
    """Two runs of one graph on one cache, each with its own noise levels."""
    base = toy("wan")
    made = graph("train_wan22", base)
    names = {key: f"wan-{key}" for key, value in made.items() if value["class_type"] == "LoomTrain"}
    for key, name in names.items():
        made[key]["inputs"]["name"] = name
    server.run(made)
    configs = []
    for name in names.values():
        run = server.wait_state(name, "finished", "failed")
        assert (run["state"], run["step"]) == ("finished", 4)
        record = json.loads((server.base / "output" / "lora_loom" / name / "run.json").read_text())
        configs.append(record["config"]["objective"])
    assert sorted((one["min_timestep"], one["max_timestep"]) for one in configs) == [(0.0, 0.7), (0.7, 1.0)]


@pytest.mark.parametrize(("name", "cells"), [("strip", 2 * 2 * 3), ("apg_compare", 2 * 2 * 4)])
def test_comparing(server, bases, name, cells):
    server.run(prompt(train(file("sd1"), f"for-{name}", steps=4, save_every=2)))
    record = server.run(graph(name, bases["sd1"], name=f"for-{name}"))
    folder = server.base / "output" / "lora_loom" / f"for-{name}" / "strips"
    assert len(list((folder / "cells").glob("*.png"))) == cells
    [strip] = pictures(record)
    assert (server.base / "output" / strip["subfolder"] / strip["filename"]).is_file()


def test_the_demo(server):
    """As it is shipped, but for the number of steps: no model file, no data set, no download."""
    if not (ROOT / "assets" / "demo" / "transformer").is_dir():
        pytest.skip("the demo base is not in assets/demo")
    made = api_graph("demo")
    next(n for n in made.values() if n["class_type"] == "LoomTrain")["inputs"] |= {"steps": 4, "save_every": 2, "batch_size": 2}  # fmt: skip
    next(n for n in made.values() if n["class_type"] == "LoomSweep")["inputs"] |= {"steps": 2}
    record = server.run(made, timeout=300)
    kinds = {made[key]["class_type"]: output for key, output in record["outputs"].items()}
    for shown in ("LoomCache", "LoomStrip", "LoomScore"):
        assert len(kinds[shown]["images"]) == 1, f"{shown}: the crops, the strip, the plot of the scores"
    [scores] = (server.base / "output" / "lora_loom" / "demo" / "strips").glob("scores-*.json")
    assert json.loads(scores.read_text())["rows"]
    run = server.run_state("demo")
    assert run["state"] == "finished"
    assert run["samples"] == ["samples/step-000000-0.png"]


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_server_knows_every_node_and_input(server, name):
    """Names, ranges and lists as this version of the host declares them; file names are the user's own."""
    for value in api_graph(name).values():
        kind = value["class_type"]
        declared = server.http.get(f"/object_info/{kind}").json()[kind]["input"]
        known = {**declared.get("required", {}), **declared.get("optional", {})}
        assert value["inputs"].keys() <= known.keys(), kind
        assert declared.get("required", {}).keys() <= value["inputs"].keys(), kind
