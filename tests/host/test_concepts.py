"""Several concepts in one run, the base as their teacher, and sliders, through a real ComfyUI."""

import json

import pytest
from PIL import Image

from .graphs import data, node, prompt, train

pytestmark = pytest.mark.comfyui

COLOURS = {"zib": (220, 30, 30), "zab": (30, 30, 220)}


def two_sets(server, base, **options):
    """A data set of two concepts, each with a trigger and a class prompt of its own; `options` are inputs of both."""
    graph, previous = data(base, held_out_share=0.34), None
    for word, colour in COLOURS.items():
        folder = server.base / "input" / word
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(3):
            Image.new("RGB", (64, 64), tuple(value + 5 * number for value in colour)).save(folder / f"{number}.png")
        chain = {"previous": [previous, 0]} if previous else {}
        graph[word] = node(
            "LoomDataset", folder=word, captions="fixed", caption="a pot", trigger=word, class_prompt="a thing",
            **options, **chain,
        )  # fmt: skip
        previous = word
    graph["cache"]["inputs"]["dataset"] = [previous, 0]
    del graph["dataset"]
    return graph


def metrics(server, name):
    path = server.base / "output" / "lora_loom" / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_triggers_are_held_to_the_base_and_scored_for_bleed(server, bases):
    """teacher = base is one input; drift is measured while training and is lower with it; the file names both triggers."""
    base, drifts = bases["sd3"], {}
    for name, options in (("free", {}), ("held", {"teacher": "base", "teacher_weight": 10.0})):
        graph = train(two_sets(server, base, **options), name, steps=12, save_every=12, learning_rate=1e-2)
        if name == "held":
            sources = {part: base["sources"][part] for part in ("model", "clip", "vae")}
            graph["checkpoints"] = node("LoomCheckpoints", run=["train", 0], include_base=True, pick="all", n=1)
            graph["sweep"] = node(
                "LoomSweep", checkpoints=["checkpoints", 0], **sources, prompts="zib, a pot\nzab, a pot\na thing", strengths="1",
                seeds="1,2", width=64, height=64, steps=1, sampler="euler", scheduler="normal",
            )  # fmt: skip
            graph["score"] = node("LoomScore", sheet=["sweep", 0], cache=["cache", 0])
            graph["table"] = node("PreviewAny", source=["score", 1])
        record = server.run(prompt(graph))
        lines = metrics(server, name)
        drifts[name] = {line["step"]: line["drift"] for line in lines if "drift" in line}
        assert any("preservation" in line for line in lines) == (name == "held")
    assert drifts["free"][0] == drifts["held"][0] == 0
    assert 0 < drifts["held"][12] < drifts["free"][12]
    assert "bleed between triggers" in record["outputs"]["table"]["text"][0]
    [path] = (server.base / "output" / "lora_loom" / "held" / "strips").glob("scores-*.json")
    rows = json.loads(path.read_text())["rows"]
    assert all(row["values"]["bleed"]["low"] <= row["values"]["bleed"]["high"] for row in rows)
    with (server.base / "output" / "lora_loom" / "held" / "loras" / "held.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    assert all(word in json.dumps(header) for word in COLOURS)


def test_a_slider_of_two_prompts_learns_their_difference_times_its_scale(server, bases):
    """Before the first step the LoRA does nothing, so that the loss of docs/sliders.md is scale^2 |f(c+) - f(c-)|^2."""
    losses = {}
    for scale in (1.0, 3.0):
        name = f"slider-{scale:g}"
        graph = train(data(bases["sd3"]), name, steps=2, save_every=2, learning_rate=1e-3)
        graph["dataset"]["inputs"] |= {
            "slider_positive": "a red circle", "slider_negative": "a blue square", "slider_scale": scale
        }  # fmt: skip
        server.run(prompt(graph))
        losses[scale] = next(line["loss"] for line in metrics(server, name) if "loss" in line)
    assert losses[1.0] > 1e-5
    assert losses[3.0] == pytest.approx(9 * losses[1.0], rel=1e-3)
