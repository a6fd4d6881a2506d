"""A LoRA on ComfyUI's own CLIP through a real server: the file, the samples, resuming, sweeps, refusals."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from .graphs import data, node, picture, prompt, toy, train
from .programs import run_inside
from .test_preview_model import folder, network, sample
from .test_sweep import swept
from .test_training import pixels

pytestmark = pytest.mark.comfyui
KINDS = {"sd1": {"lora_te"}, "sd2": {"lora_te"}, "sdxl": {"lora_te1", "lora_te2"}}


@pytest.fixture(scope="module")
def found():
    return run_inside("text_training", *KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shadow_of_a_clip_reads_texts_as_comfyui_does(found, kind):
    case = found[kind]
    assert case["texts"] == 0, "also with weights, several chunks and clip skip, bit for bit"
    assert case["copied"] == 0, "bytes"
    assert case["targets"] == {"sd1": 18, "sd2": 12, "sdxl": 12 + 18}[kind]
    assert case["skipped"] < case["targets"], "clip skip leaves a layer out"
    assert case["gradient"] < 1e-2, "of a central difference in fp32"


def clip_of(kind):
    return {"class_type": "LoomTestClip", "inputs": {"kind": kind}}


def base_of(kind):
    graph = toy(kind)
    graph["text"] = clip_of(kind)
    return {**graph, "sources": {**graph["sources"], "clip": ["text", 0]}}


def trained(base, name, **changes):
    """A run that trains the CLIP too, with samples at step 0 and at its end."""
    sources = base["sources"]
    options = {"learning_rate": 0.02, "steps": 4, "save_every": 2, "lora_dtype": "float32", "clip": sources["clip"], "text_learning_rate": 0.05}  # fmt: skip
    graph = train(data(base), name, **{**options, **changes})
    graph["validation"] = node("LoomValidation", vae=sources["vae"], clip=sources["clip"], prompts="a red thing", every=4, steps=2, cfg=3.0, width=64, height=64)  # fmt: skip
    graph["train"]["inputs"]["validation"] = ["validation", 0]
    return graph


def keys(server, name):
    return {key.split(".")[0] for key in load_file(folder(server, name) / "loras" / f"{name}.safetensors")}


@pytest.fixture(scope="module", params=KINDS)
def done(request, server):
    kind = request.param
    server.run(prompt(trained(base_of(kind), f"text-{kind}")))
    return kind, base_of(kind), f"text-{kind}"


def said(server, base, lora=None, salt=0):
    graph = dict(base)
    clip = base["sources"]["clip"]
    if lora:
        graph["lora"] = node("LoraLoader", model=base["sources"]["model"], clip=clip, lora_name=f"lora_loom/{lora}/{lora}.safetensors", strength_model=1.0, strength_clip=1.0)  # fmt: skip
        clip = ["lora", 1]
    graph["said"] = node("LoomTestText", clip=clip, text="a red thing", salt=salt)
    return np.array(json.loads(server.run(prompt(graph))["outputs"]["said"]["text"][0]))


def test_the_file_loads_whole_and_moves_what_the_text_says(server, done):
    kind, base, name = done
    log = (folder(server, name) / "log.txt").read_text()
    assert "0 keys unmatched" in log
    assert "warning: the CLIP of LoomTrain" not in log
    record = json.loads((folder(server, name) / "run.json").read_text())
    assert record["max_relative_error"] < 5e-3
    assert {key.split("_text_model")[0] for key in keys(server, name) if key.startswith("lora_te")} == KINDS[kind]
    assert "diffusion_model" in keys(server, name)
    plain = said(server, base, salt=1)
    with_lora = said(server, base, name)
    assert np.abs(with_lora - plain).max() > 1e-2
    assert np.array_equal(said(server, base, salt=2), plain), "the CLIP itself is as it was"
    assert "lora key not loaded" not in (server.base / "server.log").read_text()


def test_the_samples_are_those_of_the_file(server, done):
    """At step 0 those of the base; at the end those of a run that begins with the file on both."""
    kind, base, name = done
    plain = trained(base, f"unread-{kind}", steps=1, save_every=1)
    del plain["train"]["inputs"]["clip"]
    server.run(prompt(plain))
    assert np.abs(sample(server, name, 0) - sample(server, f"unread-{kind}", 0)).max() <= 1
    again = trained(base, f"again-{kind}", steps=1, save_every=1)
    again["network"] = network("lora", init_from=f"lora_loom/{name}/{name}.safetensors")
    again["train"]["inputs"]["network"] = ["network", 0]
    server.run(prompt(again))
    assert np.abs(sample(server, name, 4) - sample(server, f"again-{kind}", 0)).max() <= 1
    assert np.abs(sample(server, name, 4) - sample(server, name, 0)).max() > 1


def test_a_text_encoder_alone_moves_the_samples_as_its_file_does(server, done):
    kind, base, _ = done
    name = f"alone-{kind}"
    server.run(prompt(trained(base, name, text_alone=True)))
    assert {key.split("_text_model")[0] for key in keys(server, name)} == KINDS[kind]
    plain = trained(base, f"alone-read-{kind}", steps=1, save_every=1)
    plain["lora"] = node("LoraLoader", model=base["sources"]["model"], clip=base["sources"]["clip"], lora_name=f"lora_loom/{name}/{name}.safetensors", strength_model=1.0, strength_clip=1.0)  # fmt: skip
    plain["validation"]["inputs"]["clip"] = ["lora", 1]
    del plain["train"]["inputs"]["clip"]
    server.run(prompt(plain))
    assert np.abs(sample(server, name, 4) - sample(server, f"alone-read-{kind}", 0)).max() <= 1
    assert np.abs(sample(server, name, 4) - sample(server, name, 0)).max() > 1


def test_a_lora_in_the_clip_is_a_base_lora(server, done):
    """It is on in samples, and the file holds the new one alone, which belongs on top of it: at step 0 the samples are those of the CLIP
    with the LoRA, at the end those of the CLIP with both."""
    kind, base, below = done
    name = f"on-lora-{kind}"
    graph = trained(base, name, text_alone=True)
    loader = node("LoraLoader", model=base["sources"]["model"], clip=base["sources"]["clip"], lora_name=f"lora_loom/{below}/{below}.safetensors", strength_model=1.0, strength_clip=0.7)  # fmt: skip
    graph["lora"] = loader
    graph["train"]["inputs"]["clip"] = ["lora", 1]
    plain = said(server, base, salt=3)
    server.run(prompt(graph))
    assert np.array_equal(said(server, base, salt=4), plain), "the CLIP itself is as it was"
    [one] = json.loads((folder(server, name) / "run.json").read_text())["base_loras"]
    assert (one["file"], one["use"], one["on_clip"]) == (f"{below}.safetensors at 0.7", "always", True)
    assert {key.split("_text_model")[0] for key in keys(server, name)} == KINDS[kind]
    for step, loras in ((0, []), (4, [name])):
        shown = trained(base, f"on-lora-{step}-{kind}", steps=1, save_every=1)
        shown["lora"] = loader
        if loras:
            shown["new"] = node("LoraLoader", model=base["sources"]["model"], clip=["lora", 1], lora_name=f"lora_loom/{name}/{name}.safetensors", strength_model=1.0, strength_clip=1.0)  # fmt: skip
        shown["validation"]["inputs"]["clip"] = ["new" if loras else "lora", 1]
        del shown["train"]["inputs"]["clip"]
        server.run(prompt(shown))
        assert np.abs(sample(server, name, step) - sample(server, f"on-lora-{step}-{kind}", 0)).max() <= 1
    assert np.abs(sample(server, name, 4) - sample(server, name, 0)).max() > 1


def test_a_run_goes_on_as_if_it_had_not_stopped(server, done):
    kind, base, name = done
    server.run(prompt(trained(base, f"parts-{kind}", steps=2)))
    server.run(prompt(trained(base, f"parts-{kind}")))
    files = [folder(server, run) / "checkpoints/step-000004/adapter.safetensors" for run in (name, f"parts-{kind}")]
    assert files[0].read_bytes() == files[1].read_bytes()
    message = server.fail(prompt(trained(base, f"parts-{kind}", text_learning_rate=0.01)))
    assert "text.learning_rate" in message


def test_one_of_two_encoders(server):
    server.run(prompt(trained(base_of("sdxl"), "second", text_learning_rate=0.0, text_learning_rate_2=0.05)))
    texts = {key.split("_text_model")[0] for key in keys(server, "second") if key.startswith("lora_te")}
    assert texts == {"lora_te2"}


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_cells_of_a_sweep_read_their_prompts_through_the_lora(server, kind):
    base, name = base_of(kind), f"swept-text-{kind}"
    options = {"prompts": "a red thing", "strengths": "1", "seeds": "1", "height": 64, "steps": 3}
    guide = {"guide": node("LoomGuidance", label="", method="cfg", cfg=3.0, eta=0.0, norm_threshold=0.0, momentum=0.0)}  # fmt: skip
    graph = {**swept(base, name, guidance=["guide", 0], **options), **guide}
    graph["train"]["inputs"] |= {"clip": base["sources"]["clip"], "text_learning_rate": 0.05}
    graph["both"] = node("LoraLoader", model=base["sources"]["model"], clip=base["sources"]["clip"], lora_name=["train", 1], strength_model=1.0, strength_clip=1.0)  # fmt: skip
    with_text = {**graph, "sources": {**base["sources"], "clip": ["both", 1]}}
    record = server.run(prompt(picture(with_text, model=["both", 0])))
    last = server.base / "output" / record["outputs"]["cells"]["images"][-1]["filename"]
    drawn = np.asarray(Image.open(last), dtype=np.float32)
    assert np.abs(drawn - pixels(server, record, "picture")).max() <= 1
    [sheet] = (folder(server, name) / "strips").glob("sheet-*.json")
    cell = json.loads(sheet.read_text())["cells"][-1]
    with Image.open(sheet.parent / "cells" / cell["image"]) as image:
        own = json.loads(image.info["prompt"])
    assert np.abs(pixels(server, server.run(own), "cell_save") - drawn).max() <= 1, "a cell's own graph loads it too"


def test_what_cannot_be_trained_is_refused_before_the_run_has_a_folder(server, done):
    kind, base, _ = done
    refused = {}
    refused["text_alone is on and no clip is linked"] = trained(base, "no", text_alone=True)
    del refused["text_alone is on and no clip is linked"]["train"]["inputs"]["clip"]
    refused["text_learning_rate is 0"] = trained(base, "no", text_learning_rate=0.0)
    other = {"sd1": "sdxl", "sd2": "sdxl", "sdxl": "sd1"}[kind]
    graph = trained(base, "no")
    graph["other"] = clip_of(other)
    graph["train"]["inputs"]["clip"] = ["other", 0]
    refused["does not belong to a"] = graph
    graph = trained(base, "no")
    graph["validation"]["inputs"]["preview_model"] = base["sources"]["model"]
    refused["does not go with clip of LoomTrain"] = graph
    refused["are not trained, only those of SD 1, SD 2 and SDXL"] = train(data(toy("sd3")), "no", clip=["model", 1])
    if kind == "sd1":
        for message, graph in refused.items():
            assert message in server.fail(prompt(graph)), message
        assert not folder(server, "no").exists()
