"""Samples of another MODEL than the one that is trained, in a real ComfyUI: against runs that train on that MODEL itself."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from .graphs import base_hash, data, node, prompt, toy, train

pytestmark = pytest.mark.comfyui
FAMILIES = ("sd1", "sd3", "flux")


@pytest.fixture(scope="module")
def others(server, bases, checkpoints):
    """{family: graph nodes of the loader of another member: the same network with other weights}."""
    source, found = torch.Generator().manual_seed(9), {}
    for family in FAMILIES:
        file = f"{family}-other.safetensors"
        weights = load_file(checkpoints / f"{family}.safetensors")
        save_file({k: t + 0.02 * torch.randn(t.shape, generator=source).to(t) for k, t in weights.items()}, checkpoints / file)  # fmt: skip
        found[family] = node("UNETLoader", unet_name=file, weight_dtype="default")
    return found


def looked_at(base, name, model=None, **changes):
    """A run with samples at step 0 and at its end, of the node `other` if `model` is given."""
    sources = base["sources"]
    graph = train(data(base), name, **{"learning_rate": 0.02, "steps": 4, "save_every": 4, "lora_dtype": "float32", **changes})  # fmt: skip
    graph["validation"] = node("LoomValidation", vae=sources["vae"], clip=sources["clip"], prompts="a red thing", every=4, steps=2, cfg=3.0, width=64, height=64)  # fmt: skip
    graph["train"]["inputs"]["validation"] = ["validation", 0]
    if model:
        graph["other"] = model
        graph["validation"]["inputs"]["preview_model"] = ["other", 0]
    return graph


def network(kind, **options):
    return {"class_type": "LoomNetwork", "inputs": {"kind": kind, "alpha": 0.0, "targets": "default", **options}}


def folder(server, name):
    return server.base / "output/lora_loom" / name


def sample(server, name, step):
    with Image.open(folder(server, name) / f"samples/step-{step:06d}-0.png") as image:
        return np.asarray(image, dtype=np.float32)


def digest(server, base, model, salt):
    return server.run(base_hash({**base, "model": model, "sources": {"model": ["model", 0]}}, salt))["outputs"]["hash"]["text"][0]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_those_of_the_other_model_and_training_is_as_without(server, bases, others, family):
    base, other = bases[family], others[family]
    if base["model"]["class_type"] != "UNETLoader":
        pytest.skip("this version of ComfyUI does not load the toy file")
    before = digest(server, base, other, 21)
    server.run(prompt(looked_at(base, f"seen-{family}", other)))
    assert digest(server, base, other, 22) == before
    server.run(prompt(looked_at(base, f"unseen-{family}")))
    files = [folder(server, f"{kind}-{family}") / "checkpoints/step-000004/adapter.safetensors" for kind in ("seen", "unseen")]  # fmt: skip
    assert files[0].read_bytes() == files[1].read_bytes()
    record = json.loads((folder(server, f"seen-{family}") / "run.json").read_text())
    assert record["config"]["validation"]["model"].startswith(f"{family}-other")
    on_other = {**base, "model": other}
    server.run(prompt(looked_at(on_other, f"there-{family}", steps=1, save_every=1)))
    assert np.abs(sample(server, f"seen-{family}", 0) - sample(server, f"there-{family}", 0)).max() <= 1
    graph = looked_at(on_other, f"loaded-{family}", steps=1, save_every=1)
    graph["network"] = network("lora", init_from=f"lora_loom/seen-{family}/seen-{family}.safetensors")  # fmt: skip
    graph["train"]["inputs"]["network"] = ["network", 0]
    server.run(prompt(graph))
    assert np.abs(sample(server, f"seen-{family}", 4) - sample(server, f"loaded-{family}", 0)).max() <= 1
    assert np.abs(sample(server, f"seen-{family}", 4) - sample(server, f"seen-{family}", 0)).max() > 1
    assert np.abs(sample(server, f"seen-{family}", 4) - sample(server, f"unseen-{family}", 4)).max() > 1


def test_a_lora_that_is_loaded_into_it_is_computed(server, bases, others):
    graph = looked_at(bases["sd3"], "with-style", others["sd3"])
    server.run(prompt(graph))
    graph = looked_at(bases["sd3"], "on-style", others["sd3"])
    graph["style"] = node("LoraLoaderModelOnly", model=["other", 0], lora_name="lora_loom/with-style/with-style.safetensors", strength_model=1.0)  # fmt: skip
    graph["validation"]["inputs"]["preview_model"] = ["style", 0]
    server.run(prompt(graph))
    assert np.abs(sample(server, "with-style", 4) - sample(server, "on-style", 0)).max() <= 1


def test_what_cannot_work_is_refused_before_the_run_has_a_folder(server, bases, others):
    base = bases["sd3"]
    foreign = toy("sd1")["model"]
    refused = {"is a BaseModel model, and a SD3 model is trained": looked_at(base, "refused", foreign)}
    refused["samples need a model of the same family and size"] = looked_at(bases["sd1"], "refused", foreign)
    graph = looked_at(base, "refused", others["sd3"])
    graph["network"] = network("dora")
    graph["train"]["inputs"]["network"] = ["network", 0]
    refused["does not go with network.kind = 'dora'"] = graph
    graph = looked_at(base, "refused", others["sd3"])
    graph["memory"] = node("LoomMemory", gradient_checkpointing=True, precision="auto", quantize="none", yield_max_s=0.0, base="stream")  # fmt: skip
    graph["train"]["inputs"]["memory"] = ["memory", 0]
    refused["does not go with a streamed base"] = graph
    for message, graph in refused.items():
        assert message in server.fail(prompt(graph)), message
    assert not folder(server, "refused").exists()
