"""Edit models in the graph: what the text encoder and the network are shown, from the data set to the cell of a sweep.

Qwen-Image's own tokenizer and classes over toy weights. References of one colour, where two ways of resizing agree.
"""

import json

import numpy as np
import pytest
from PIL import Image

from .graphs import data, node, prompt, toy, train
from .test_training import pixels
from .test_workflows import graph

pytestmark = pytest.mark.comfyui
SIZE = {"width": 64, "height": 64, "steps": 2, "sampler": "euler", "scheduler": "normal"}
PLUS, FIRST = "qwen-image-edit-plus", "qwen-image-edit"


@pytest.fixture(scope="module")
def shown(server):
    """Two folders of references for the pictures, and two single images."""
    for number, folder in enumerate(("before", "style")):
        (server.base / "input" / folder).mkdir()
        for index in range(4):
            colour = (60 * index, 200 - 40 * index, 250 * number)
            Image.new("RGB", (64, 64), colour).save(server.base / "input" / folder / f"{index}.png")
    for name, colour in (("red.png", (220, 30, 20)), ("blue.png", (10, 40, 230))):
        Image.new("RGB", (64, 64), colour).save(server.base / "input" / name)


def edit_base(variant="qwen-edit-plus"):
    base = toy(variant)
    base["sources"] |= {"clip": ["text", 0]}
    return {
        **base,
        "text": node("LoomTestQwenText"),
        "red": node("LoadImage", image="red.png"),
        "blue": node("LoadImage", image="blue.png"),
    }


def run_of(name, references, edit_prompts="auto", **options):
    flow = data(edit_base())
    flow["dataset"]["inputs"]["references"] = references
    flow["cache"]["inputs"]["edit_prompts"] = edit_prompts
    flow["said"] = node("PreviewAny", source=["cache", 1])
    return train(flow, name, steps=2, save_every=2, **options)


def losses(server, name):
    lines = (server.base / "output" / "lora_loom" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]


def test_training_reads_captions_beside_the_references(server, shown):
    """Another reading of the text is another loss; reading alone is what the network alone sees; the report says which."""
    found = {}
    for asked in ("auto", PLUS, FIRST, "captions alone"):
        record = server.run(prompt(run_of(f"edit-{asked[-5:].strip('-')}", "before", asked)))
        told = record["outputs"]["said"]["text"][0]
        assert ("with the reference images, as for qwen-image-edit" in told) == (asked != "captions alone")
        found[asked] = losses(server, f"edit-{asked[-5:].strip('-')}")
    assert found["auto"] == found[PLUS]
    assert len({tuple(values) for values in found.values()}) == 3
    record = server.run(prompt(run_of("edit-two", "before; style")))
    assert losses(server, "edit-two") not in found.values()


def test_a_run_goes_on_only_with_the_same_reading(server, shown):
    server.run(prompt(run_of("edit-kept", "before", PLUS)))
    message = server.fail(prompt(run_of("edit-kept", "before", FIRST)))
    assert "exists with another configuration: " in message
    assert "beside 384 px" in message


@pytest.mark.parametrize(
    ("asked", "links"),
    [(PLUS, {"reference": ["red", 0], "reference_2": ["blue", 0]}), (FIRST, {"reference": ["red", 0]})],
)
def test_a_cells_own_graph_makes_the_same_picture(server, shown, asked, links):
    """ComfyUI's node for edit prompts and its ReferenceLatent, against the sweep's cell."""
    name = f"cell-{asked}"
    flow = run_of(name, "before", asked, learning_rate=0.02)
    flow["checkpoints"] = node("LoomCheckpoints", run=["train", 0], include_base=True, pick="all", n=1)
    sources = {name: flow["sources"][name] for name in ("model", "clip", "vae")}
    options = {"prompts": "a red thing", "strengths": "1", "seeds": "1", **SIZE, "edit_prompts": asked}
    flow["sweep"] = node("LoomSweep", checkpoints=["checkpoints", 0], **sources, **options, **links)
    flow["strip"] = node("LoomStrip", sheet=["sweep", 0], layout="grid", columns="checkpoint", rows="reference", title="")  # fmt: skip
    server.run(prompt(flow))
    [sheet] = (server.base / "output" / "lora_loom" / name / "strips").glob("sheet-*.json")
    cells = json.loads(sheet.read_text())["cells"]
    assert {cell["reference"] for cell in cells} == {" + ".join(f"{key.replace('_', ' ')} 1.png" for key in links)}
    made = []
    for cell in cells:
        with Image.open(sheet.parent / "cells" / cell["image"]) as image:
            own, picture = json.loads(image.info["prompt"]), np.asarray(image.convert("RGB")).astype(int)
        record = server.run(own)
        assert np.abs(pixels(server, record, "cell_save") - picture).max() <= 1
        made.append(picture)
    assert np.abs(made[0] - made[1]).max() > 1
    kinds = {value["class_type"] for value in own.values()}
    assert ("TextEncodeQwenImageEditPlus" in kinds) == (asked == PLUS)


def test_every_image_of_a_batch_is_a_value_of_the_axis(server, shown):
    """And its pictures while training are those that the run shows."""
    flow = run_of("batch", "before")
    flow["both"] = node("ImageBatch", image1=["red", 0], image2=["blue", 0])
    flow["validation"] = node(
        "LoomValidation", vae=flow["sources"]["vae"], clip=["text", 0], prompts="a thing", every=2, steps=1, width=64,
        height=64, reference=["both", 0],
    )  # fmt: skip
    flow["train"]["inputs"]["validation"] = ["validation", 0]
    flow["checkpoints"] = node("LoomCheckpoints", run=["train", 0], include_base=False, pick="all", n=1)
    sources = {name: flow["sources"][name] for name in ("model", "clip", "vae")}
    options = {"prompts": "a red thing", "strengths": "1", "seeds": "1", **SIZE}
    flow["sweep"] = node("LoomSweep", checkpoints=["checkpoints", 0], **sources, **options, reference=["both", 0])
    flow["cells"] = node("SaveImage", images=["sweep", 1], filename_prefix="cells")
    record = server.run(prompt(flow))
    assert len(record["outputs"]["cells"]["images"]) == 2
    [sheet] = (server.base / "output" / "lora_loom" / "batch" / "strips").glob("sheet-*.json")
    assert [cell["reference"] for cell in json.loads(sheet.read_text())["cells"]] == [
        "reference 1.png",
        "reference 2.png",
    ]
    samples = sorted((server.base / "output" / "lora_loom" / "batch" / "samples").glob("step-000002-?.png"))
    assert len({path.read_bytes() for path in samples}) == len(samples) == 2


def test_images_from_the_graph_may_have_references(server, shown):
    flow = run_of("from-graph", "")
    flow["both"] = node("ImageBatch", image1=["red", 0], image2=["blue", 0])
    flow["dataset"] = node(
        "LoomDatasetImages", images=["both", 0], captions="a\nb", references=["blue", 0], references_2=["both", 0]
    )
    record = server.run(prompt(flow))
    assert PLUS in record["outputs"]["said"]["text"][0]
    flow["both3"] = node("ImageBatch", image1=["both", 0], image2=["blue", 0])
    flow["dataset"]["inputs"]["references"] = ["both3", 0]
    assert "3 reference images for 2 images" in server.fail(prompt(flow))


def test_readings_that_cannot_be(server, shown):
    assert "there are no reference images" in server.fail(prompt(run_of("none", "", PLUS)))
    assert "accepts 1 at most" in server.fail(prompt(run_of("two", "before; style", FIRST)))
    flow = run_of("other", "before", PLUS)
    flow["cache"]["inputs"]["clip"] = ["model", 1]
    assert "(ToyTokenizer) takes no images" in server.fail(prompt(flow))


def test_models_that_look_at_no_references(server, shown, bases):
    """Said by every node that is given some."""
    message = "this MODEL (SD3) does not accept reference images: take them out, or load an edit model"
    base = {**bases["sd3"], "red": node("LoadImage", image="red.png")}
    flow = data(base)
    flow["dataset"]["inputs"]["references"] = "before"
    assert message in server.fail(prompt(train(flow, "blind", steps=2)))
    sources = base["sources"]
    flow = train(data(base), "blind-pictures", steps=2, save_every=2)
    flow["validation"] = node(
        "LoomValidation", vae=sources["vae"], clip=sources["clip"], prompts="a", every=2, width=64, height=64, reference=["red", 0]
    )  # fmt: skip
    flow["train"]["inputs"]["validation"] = ["validation", 0]
    assert message in server.fail(prompt(flow))
    flow = train(data(base), "blind-sweep", steps=2, save_every=2)
    flow["checkpoints"] = node("LoomCheckpoints", run=["train", 0], include_base=True, pick="all", n=1)
    flow["sweep"] = node("LoomSweep", checkpoints=["checkpoints", 0], **sources, prompts="a", strengths="1", seeds="1", **SIZE, reference=["red", 0])  # fmt: skip
    flow["strip"] = node("LoomStrip", sheet=["sweep", 0], layout="grid", columns="checkpoint", rows="prompt", title="")
    assert message in server.fail(prompt(flow))


def test_the_shipped_graph(server, shown):
    """example_workflows/api/train_qwen_edit.json: train, sweep over a picture to edit, strip."""
    changes = {"name": "shipped", "references": "before", "image": "red.png"}
    record = server.run(graph("train_qwen_edit", edit_base(), **changes), timeout=300)
    cells = list((server.base / "output" / "lora_loom" / "shipped" / "strips" / "cells").glob("*.png"))
    assert len(cells) == 2 * 3, "two seeds of the base and two checkpoints"
    assert len([image for output in record["outputs"].values() for image in output.get("images", [])]) >= 1
