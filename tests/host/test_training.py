"""Training through a real server: wait and background mode, the saved file, the untouched base, refusals."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from .graphs import base_hash, data, hold, node, picture, prompt, toy, train

pytestmark = pytest.mark.comfyui
FAMILIES = ("sd1", "sd3", "flux")


def pixels(server, record, key):
    image = record["outputs"][key]["images"][0]
    path = server.base / "output" / image["subfolder"] / image["filename"]
    return np.asarray(Image.open(path), dtype=np.float32)


def shown(server, image):
    """What the page loads for a picture."""
    return np.asarray(Image.open(io.BytesIO(server.http.get("/view", params=image).content)), dtype=np.float32)


def digest(server, base, salt):
    return server.run(base_hash(base, salt))["outputs"]["hash"]["text"][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_wait_mode_trains_saves_and_leaves_the_base_as_it_was(server, bases, family):
    base, name = bases[family], f"wait-{family}"
    before = digest(server, base, 1)
    graph = train(base, name, accumulation=2)
    graph["dataset"]["inputs"]["trigger"] = "zib"
    graph = picture(graph, key="plain")
    graph["patched"] = node("LoraLoaderModelOnly", model=base["sources"]["model"], lora_name=["train", 1], strength_model=1.0)  # fmt: skip
    graph = picture(graph, model=["patched", 0], key="with-lora")
    record = server.run(prompt(graph))
    assert digest(server, base, 2) == before
    run = server.run_state(name)
    assert (run["state"], run["step"]) == ("finished", 6)
    log = (server.base / "output" / "lora_loom" / name / "log.txt").read_text()
    assert "0 keys unmatched" in log
    with safe_open(server.base / "output" / "lora_loom" / name / "loras" / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["modelspec.trigger_phrase"], metadata["ss_gradient_accumulation_steps"]) == ("zib", "2")
    assert "lora key not loaded" not in (server.base / "server.log").read_text()
    assert np.abs(pixels(server, record, "plain") - pixels(server, record, "with-lora")).max() > 0
    listed = server.http.get("/object_info/LoraLoaderModelOnly").json()["LoraLoaderModelOnly"]["input"]["required"]
    names = listed["lora_name"][0] if isinstance(listed["lora_name"][0], list) else listed["lora_name"][1]["options"]
    assert f"lora_loom/{name}/{name}.safetensors" in names
    assert f"lora_loom/{name}/{name}-000003.safetensors" in names


@pytest.mark.parametrize("family", FAMILIES)
def test_background_mode_lets_other_prompts_run_and_goes_on(server, bases, family):
    base, name = bases[family], f"background-{family}"
    server.run(prompt(train(base, name, mode="background", steps=40, save_every=20)))
    assert server.run_state(name)["state"] in ("running", "queued", "yielding")
    server.wait_step(name, 1)
    other = server.queue(hold(f"go on {family}"))
    held = server.wait_state(name, "yielding")["step"]
    assert held < 40
    assert server.history(other) is None
    assert server.run_state(name)["step"] == held
    server.release(f"go on {family}")
    server.finish(other)
    run = server.wait_state(name, "finished")
    assert run["step"] == 40
    assert run["checkpoints"] == [20, 40]


def test_the_loss_curve_is_a_picture(server, bases):
    graph = train(bases["sd3"], "curve", steps=8)
    graph["save"] = node("SaveImage", images=["train", 2], filename_prefix="curve")
    record = server.run(prompt(graph))
    assert pixels(server, record, "save").std() > 5


def test_metrics_by_route(server, bases):
    server.run(prompt(train(bases["sd3"], "metrics")))
    lines = server.http.get("/lora_loom/runs/metrics/metrics?since=4").json()["metrics"]
    assert [line["step"] for line in lines if "loss" in line] == [5, 6]


def test_the_original_weights_are_used_while_another_lora_is_patched_in(server, bases):
    """The same run, once with the base as loaded and once after a prompt that left a LoRA on it, is the same bit for bit."""
    base = bases["sd3"]
    server.run(prompt(train(base, "plain-base", learning_rate=0.05)))
    patch = dict(base)
    patch["patched"] = node("LoraLoaderModelOnly", model=["model", 0], lora_name="lora_loom/plain-base/plain-base.safetensors", strength_model=1.0)  # fmt: skip
    server.run(prompt(picture(patch, model=["patched", 0])))
    server.run(prompt(train(base, "patched-base", learning_rate=0.05)))
    runs = server.base / "output" / "lora_loom"
    files = [runs / name / "checkpoints" / "step-000006" / "adapter.safetensors" for name in ("plain-base", "patched-base")]  # fmt: skip
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", ["sd2", "sdxl", "lumina2", "qwen", "flux-schnell"])
def test_other_families_train_too(server, name):
    server.run(prompt(train(toy(name), f"other-{name}")))
    run = json.loads((server.base / "output" / "lora_loom" / f"other-{name}" / "run.json").read_text())
    assert run["state"] == "finished"
    assert run["max_relative_error"] < 5e-3


@pytest.mark.parametrize("name", ["aura", "wan"])
def test_a_model_that_nobody_described_trains_by_its_structure_and_says_so(server, name):
    """One of the two has video-shaped latents. The file goes back through the stock loader and moves the picture."""
    graph = train(toy(name), f"unknown-{name}", learning_rate=0.02)
    server.run(prompt(graph))
    folder = server.base / "output" / "lora_loom" / f"unknown-{name}"
    log = (folder / "log.txt").read_text()
    assert "its layers found by their structure" in log
    assert "layers: trains" in log
    assert "modulation is told by its name" not in log, "it was probed"
    run = json.loads((folder / "run.json").read_text())
    assert run["layers"]["trained"]["attention"] > 0
    assert run["base_model"]["told_by"] == {"wan": "nothing"}.get(name, "")
    assert run["state"] == "finished"
    assert run["max_relative_error"] < 5e-3
    moved = dict(toy(name))
    file = f"lora_loom/unknown-{name}/unknown-{name}.safetensors"
    moved["patched"] = node("LoraLoaderModelOnly", model=["model", 0], lora_name=file, strength_model=1.0)
    hashes = []
    for salt, source in enumerate((["model", 0], ["patched", 0])):
        moved["hash"] = node("LoomTestHash", model=source, salt=salt)
        hashes.append(server.run(prompt(moved))["outputs"]["hash"]["text"][0])
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(("precision", "quantize"), [("bfloat16", "none"), ("float32", "int8")])
def test_other_number_formats(server, bases, family, precision, quantize, checkpointing):
    graph = train(bases[family], f"{family}-{precision}-{quantize}-{checkpointing}")
    graph["memory"] = node("LoomMemory", gradient_checkpointing=checkpointing, precision=precision, quantize=quantize, yield_max_s=0.0)  # fmt: skip
    graph["train"]["inputs"]["memory"] = ["memory", 0]
    server.run(prompt(graph))


def test_sampling_nodes_are_honoured(server, bases):
    """ModelSamplingSD3 changes the shift, and with it the run's identity."""
    graph = train(data(bases["sd3"]), "shifted")
    graph["shift"] = node("ModelSamplingSD3", model=["model", 0], shift=7.0)
    graph["train"]["inputs"]["model"] = ["shift", 0]
    server.run(prompt(graph))
    assert "exists with another configuration" in server.fail(prompt(train(bases["sd3"], "shifted")))


def test_an_unchanged_data_set_encodes_nothing_and_one_caption_encodes_one(server, bases):
    from .conftest import add_pictures

    folder = server.base / "input" / "edited"
    add_pictures(folder, count=3, seed=5)
    server.run(prompt(data(bases["sd3"])))
    cached = data(bases["sd3"], folder="edited")
    first = server.run(prompt(cached))["outputs"]["cache"]["text"][0]
    assert ", 6 encoded" in first  # three images, three captions; the empty caption is there from other tests
    Path(folder / "1.txt").write_text("another caption altogether")
    second = server.run(prompt(cached))["outputs"]["cache"]["text"][0]
    assert ", 1 encoded" in second
    (folder / "1.png").touch()  # a new time, the same content
    third = server.run(prompt(cached))["outputs"]["cache"]["text"][0]
    assert ", 0 encoded" in third


def test_the_cache_shows_its_report_and_the_crops(server, bases):
    """A picture to enlarge, one to crop, one that is none: each is in the report, and the crop is drawn on the sheet."""
    from lora_loom.trainer.data.contact_sheet import CROP

    folder = server.base / "input" / "odd"
    folder.mkdir()
    Image.linear_gradient("L").resize((160, 64)).convert("RGB").save(folder / "wide.png")
    Image.new("RGB", (32, 32), "teal").save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"no picture")
    for name in ("wide", "small", "broken"):
        (folder / f"{name}.txt").write_text(f"the {name} one")
    graph = data(bases["sd3"], folder="odd", buckets="off")
    graph["dataset"]["inputs"]["crop"] = "saliency"
    graph["sheet"] = node("SaveImage", images=["cache", 2], filename_prefix="sheet")
    record = server.run(prompt(graph))
    report = record["outputs"]["cache"]["text"][0]
    assert (pixels(server, record, "sheet") == shown(server, record["outputs"]["cache"]["images"][0])).all()
    assert "2 train images" in report
    assert "broken.png" in report
    assert "smaller than their bucket and are upscaled: small.png" in report
    assert "encoded" in report
    sheet = pixels(server, record, "sheet")
    frame = (sheet == np.array(CROP)).all(-1)
    assert frame.sum() > 100, "the crop of the wide picture is framed"
    refused = data(bases["sd3"], folder="odd", buckets="off", strict=True)
    assert "strict in Loom Cache" in server.fail(prompt(refused))


def test_graph_images_become_a_data_set(server, bases):
    base = bases["sd3"]
    graph = {
        **base,
        "image": node("EmptyImage", width=64, height=64, batch_size=2, color=0x3366AA),
        "dataset": node("LoomDatasetImages", images=["image", 0], captions="a blue wall", trigger="", repeats=1, role="train"),
        "cache": node("LoomCache", dataset=["dataset", 0], vae=base["sources"]["vae"], clip=base["sources"]["clip"], resolution=64, buckets="off", bucket_step=16),
    }  # fmt: skip
    server.run(prompt(train(graph, "from-images")))
    assert server.run_state("from-images")["state"] == "finished"


def test_a_file_of_another_trainer_trains(server, bases):
    """kohya's TOML with tags shuffled, a mirrored set and a set that the base teaches; what was not taken is reported."""
    (server.base / "input" / "kohya.toml").write_text(
        """
[general]
shuffle_caption = true
caption_separator = " "
[[datasets]]
resolution = 64
batch_size = 4
[[datasets.subsets]]
image_dir = "pics"
num_repeats = 2
flip_aug = true
[[datasets.subsets]]
image_dir = "pics"
custom_attributes = { diff_output_preservation = true }
"""
    )
    base = bases["sd3"]
    graph = data(base)
    graph["dataset"] = node("LoomDatasetFile", path="kohya.toml")
    graph["report"] = node("PreviewAny", source=["dataset", 2])
    outputs = server.run(prompt(graph))["outputs"]
    assert "batch_size = 4 is ignored; set batch_size in Loom Train LoRA" in json.dumps(outputs["report"])
    assert "4 train, 4 regularisation images" in outputs["cache"]["text"][0]
    assert "can take more forms than caption_variants = 16" in outputs["cache"]["text"][0]
    server.run(prompt(train(graph, "kohya", batch_size=2)))
    assert server.run_state("kohya")["state"] == "finished"
    del graph["report"]
    graph["dataset"] = node("LoomDatasetFile", path="../../etc/kohya.toml")
    assert "is outside" in server.fail(prompt(train(graph, "kohya-bad")))


def test_bad_values_are_refused_before_anything_runs(server, bases):
    errors = server.refused(prompt(train(bases["sd3"], "bad", rank=0)))
    assert "rank" in json.dumps(errors)
    errors = server.refused(prompt(train(bases["sd3"], "../bad")))  # already when the graph is queued
    assert "name = '../bad'" in json.dumps(errors)
    message = server.fail(prompt(train(data(bases["sd3"], folder="../../etc"), "bad")))
    assert "is outside" in message
