"""Base LoRAs in a real ComfyUI: what a MODEL with a LoRA and LoomBaseLora compute, against ComfyUI's own patched weights; sweeps; refusals."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .graphs import data, node, picture, prompt, train
from .programs import run_inside
from .test_sweep import swept
from .test_training import pixels

pytestmark = pytest.mark.comfyui
NAMES = ("sd1", "sd3", "flux-dev", "lumina2")


@pytest.fixture(scope="module")
def found():
    return run_inside("base_loras", *NAMES)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("name", NAMES)
def test_a_shadow_computes_what_the_hosts_patched_weights_compute(found, name, kind):
    case = found[name][kind]
    assert case["moved"] > 1e-3
    assert case["model"] < 1e-5
    assert case["gradient"] < 1e-5
    assert case["file"] == 0, "a file of LoomBaseLora is the same LoRA, bit for bit"


@pytest.fixture(scope="module", params=["sd3", "flux"])
def below(request, server, bases):
    """(family, name of a LoRA that moves it)."""
    name = f"below-{request.param}"
    server.run(prompt(train(bases[request.param], name, learning_rate=0.03)))
    return request.param, f"lora_loom/{name}/{name}.safetensors"


def on_model(base, name, lora, strength=0.8, **changes):
    graph = data(base)
    graph["below"] = node("LoraLoaderModelOnly", model=base["sources"]["model"], lora_name=lora, strength_model=strength)  # fmt: skip
    graph = train(graph, name, learning_rate=0.02, **changes)
    graph["train"]["inputs"]["model"] = ["below", 0]
    return graph


def on_file(base, name, lora, strength=0.8, use="always", **changes):
    graph = train(data(base), name, learning_rate=0.02, **changes)
    graph["below"] = node("LoomBaseLora", lora=lora, strength=strength, use=use)
    graph["train"]["inputs"]["base_loras"] = ["below", 0]
    return graph


def adapter(server, name):
    return (server.base / "output/lora_loom" / name / "checkpoints/step-000006/adapter.safetensors").read_bytes()


def test_a_lora_in_the_model_and_one_of_the_node_train_the_same(server, bases, below):
    family, lora = below
    server.run(prompt(on_model(bases[family], f"on-model-{family}", lora)))
    server.run(prompt(on_file(bases[family], f"on-file-{family}", lora)))
    server.run(prompt(train(bases[family], f"plain-{family}", learning_rate=0.02)))
    assert adapter(server, f"on-model-{family}") == adapter(server, f"on-file-{family}")
    assert adapter(server, f"on-model-{family}") != adapter(server, f"plain-{family}")
    runs = server.base / "output/lora_loom"
    for name in (f"on-model-{family}", f"on-file-{family}"):
        record = json.loads((runs / name / "run.json").read_text())
        [one] = record["base_loras"]
        assert one["file"].startswith(f"below-{family}.safetensors")
        assert one["use"] == "always"
        file = runs / name / "loras" / f"{name}.safetensors"
        with safe_open(file, "pt") as opened:
            assert json.loads(opened.metadata()["loom.base_loras"]) == [one]
        assert load_file(file).keys() == load_file(runs / f"plain-{family}/loras/plain-{family}.safetensors").keys()
        assert "load it, at this strength, with every LoRA of this run" in (runs / name / "log.txt").read_text()
    message = server.fail(prompt(on_file(bases[family], f"on-file-{family}", lora, strength=0.5)))
    assert "facts.base_loras" in message


def test_cells_of_a_sweep_have_the_base_lora_on(server, bases, below):
    """The base's cell is what KSampler makes with the LoRA loader; whether the node or the MODEL brings it."""
    family, lora = below
    base, name = bases[family], f"swept-{family}"
    options = {"prompts": "a red thing", "strengths": "1", "seeds": "1", "height": 64, "steps": 3}
    guide = {"guide": node("LoomGuidance", label="", method="cfg", cfg=3.0, eta=0.0, norm_threshold=0.0, momentum=0.0)}  # fmt: skip
    graph = {**swept(base, name, guidance=["guide", 0], **options), **guide}
    graph["below"] = node("LoomBaseLora", lora=lora, strength=0.8, use="always")
    graph["train"]["inputs"]["base_loras"] = ["below", 0]
    graph["patched"] = node("LoraLoaderModelOnly", model=base["sources"]["model"], lora_name=lora, strength_model=0.8)
    graph["both"] = node("LoraLoaderModelOnly", model=["patched", 0], lora_name=["train", 1], strength_model=1.0)
    graph = picture(picture(graph, model=["patched", 0], key="plain"), model=["both", 0], key="with-lora")
    record = server.run(prompt(graph))
    cells = [np.asarray(Image.open(server.base / "output" / image["filename"])) for image in record["outputs"]["cells"]["images"]]  # fmt: skip
    assert np.abs(cells[0] - pixels(server, record, "plain")).max() <= 1
    assert np.abs(cells[2] - pixels(server, record, "with-lora")).max() <= 1
    assert np.abs(cells[0].astype(float) - cells[2]).max() > 1
    [sheet] = (server.base / "output/lora_loom" / name / "strips").glob("sheet-*.json")
    cell = json.loads(sheet.read_text())["cells"][-1]
    with Image.open(sheet.parent / "cells" / cell["image"]) as image:
        own, drawn = json.loads(image.info["prompt"]), np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels(server, server.run(own), "cell_save") - drawn).max() <= 1, "a cell's own graph loads it too"
    twice = {**graph, "sweep": {**graph["sweep"], "inputs": {**graph["sweep"]["inputs"], "model": ["patched", 0]}}}
    again = server.run(prompt(twice))
    others = [np.asarray(Image.open(server.base / "output" / image["filename"])) for image in again["outputs"]["cells"]["images"]]  # fmt: skip
    assert all(np.abs(one.astype(int) - other).max() <= 1 for one, other in zip(cells, others, strict=True)), (
        "a MODEL that has it already does not get it twice"
    )


def test_one_for_training_is_off_in_samples(server, bases, below):
    """The samples of step 0 are those of the plain base; those of a run on top of it are not."""
    family, lora = below
    made = {}
    for use in ("training", "always", ""):
        name = f"samples-{family}-{use or 'plain'}"
        graph = on_file(bases[family], name, lora, use=use or "always", steps=2, save_every=2)
        if not use:
            graph["train"]["inputs"].pop("base_loras")
        graph["validation"] = node("LoomValidation", vae=bases[family]["sources"]["vae"], clip=bases[family]["sources"]["clip"], prompts="a red thing", every=2, steps=2, width=64, height=64)  # fmt: skip
        graph["train"]["inputs"]["validation"] = ["validation", 0]
        server.run(prompt(graph))
        folder = server.base / "output/lora_loom" / name
        made[use] = (folder / "samples/step-000000-0.png").read_bytes()
        if use == "training":
            assert "is not known to be distilled" in (folder / "log.txt").read_text() or family == "flux"
    assert made["training"] == made[""]
    assert made["always"] != made[""]


def test_one_of_another_model_is_refused_by_name(server, bases, below):
    family, lora = below
    other = {"sd3": "flux", "flux": "sd3"}[family]
    message = server.fail(prompt(on_file(bases[other], "of-another", lora)))
    assert "base LoRA below-" in message
    assert "it was made for another model" in message
    assert not (server.base / "output/lora_loom/of-another").exists()


def variant_of(server, lora, name, change):
    """A changed copy of a LoRA among ComfyUI's, by its name there."""
    tensors = load_file(server.base / "models/loras" / lora)
    save_file({key: tensor.contiguous() for key, tensor in change(tensors).items()}, server.base / "models/loras" / name)  # fmt: skip
    return name


def one_module(tensors):
    key = next(key for key in tensors if key.endswith("lora_A.weight"))
    stem = key.removesuffix(".lora_A.weight")
    return stem, {k: v for k, v in tensors.items() if k.startswith(f"{stem}.")}


def test_of_two_that_claim_a_layer_the_one_with_another_shape_is_refused(server, bases, below):
    family, lora = below

    def wider(tensors):
        stem, parts = one_module(tensors)
        return {**parts, f"{stem}.lora_A.weight": parts[f"{stem}.lora_A.weight"].repeat(1, 2)}

    graph = on_file(bases[family], "two-shapes", lora)
    graph["second"] = node("LoomBaseLora", lora=variant_of(server, lora, f"wide-{family}.safetensors", wider), strength=1.0, use="always", previous=["below", 0])  # fmt: skip
    graph["train"]["inputs"]["base_loras"] = ["second", 0]
    message = server.fail(prompt(graph))
    assert f"base LoRA wide-{family}.safetensors" in message
    assert "this model's layer" in message
    assert not (server.base / "output/lora_loom/two-shapes").exists()


def test_two_of_different_ranks_on_a_layer_add_up(server, bases, below):
    """Half of it, and another half in twice as many ranks of which half are empty, are the whole of it."""
    family, lora = below

    def wider(tensors):
        return {
            key: torch.cat([tensor, torch.zeros_like(tensor)], 0 if "lora_A" in key else 1)
            if tensor.ndim > 1
            else tensor * 2
            for key, tensor in tensors.items()
        }

    server.run(prompt(on_file(bases[family], f"one-{family}", lora, strength=1.0, steps=2, save_every=2)))
    graph = on_file(bases[family], f"two-{family}", lora, steps=2, save_every=2)
    graph["below"]["inputs"]["strength"] = 0.5
    graph["second"] = node("LoomBaseLora", lora=variant_of(server, lora, f"empty-{family}.safetensors", wider), strength=0.5, use="always", previous=["below", 0])  # fmt: skip
    graph["train"]["inputs"]["base_loras"] = ["second", 0]
    server.run(prompt(graph))
    losses = []
    for name in ("one", "two"):
        lines = (server.base / f"output/lora_loom/{name}-{family}/metrics.jsonl").read_text().splitlines()
        losses.append([line["loss"] for line in map(json.loads, lines) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["DoRA", "diff"])
def test_what_cannot_be_computed_next_to_the_weights_is_refused_by_name(server, bases, below, kind):
    """As ComfyUI's own loader puts it into the MODEL."""
    family, lora = below

    def changed(tensors):
        stem, parts = one_module(tensors)
        rows, columns = parts[f"{stem}.lora_B.weight"].shape[0], parts[f"{stem}.lora_A.weight"].shape[1]
        if kind == "DoRA":
            return {**parts, f"{stem}.dora_scale": torch.ones(rows, 1)}
        return {f"{stem}.diff": torch.ones(rows, columns)}

    name = variant_of(server, lora, f"{kind}-{family}.safetensors", changed)
    message = server.fail(prompt(on_model(bases[family], f"kind-{kind}", name)))
    assert f"this MODEL carries {kind}" in message
    assert not (server.base / f"output/lora_loom/kind-{kind}").exists()
