"""Checkpoints, sweep, strip and APG through a real server."""

import json

import numpy as np
import pytest
from PIL import Image

from .graphs import data, node, picture, prompt, train
from .test_training import FAMILIES, pixels

pytestmark = pytest.mark.comfyui


def swept(base, name, guidance=None, **changes):
    """train -> checkpoints -> sweep -> strip."""
    graph = train(data(base), name, steps=4, save_every=2, learning_rate=0.02)
    graph["checkpoints"] = node("LoomCheckpoints", run=["train", 0], include_base=True, pick="all", n=1)
    options = {"prompts": "a red thing\nanother thing", "strengths": "0.5,1", "seeds": "1,2", "width": 64, "height": 48, "steps": 2, "sampler": "euler", "scheduler": "normal"}  # fmt: skip
    links = {"guidance": guidance} if guidance else {}
    sources = {name: base["sources"][name] for name in ("model", "clip", "vae")}
    graph["sweep"] = node("LoomSweep", checkpoints=["checkpoints", 0], **sources, **{**options, **changes}, **links)
    graph["strip"] = node("LoomStrip", sheet=["sweep", 0], layout="grid", columns="checkpoint, strength", rows="prompt, seed", title="")  # fmt: skip
    graph["cells"] = node("SaveImage", images=["sweep", 1], filename_prefix="cells")
    return graph


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sweep_renders_every_cell_and_the_strip_shows_them(server, bases, family):
    name = f"sweep-{family}"
    record = server.run(prompt(swept(bases[family], name)))
    cells = record["outputs"]["cells"]["images"]
    assert len(cells) == 2 * 2 + 2 * 2 * 2 * 2  # base once per prompt and seed; two checkpoints at two strengths
    [strip] = record["outputs"]["strip"]["images"]
    path = server.base / "output" / strip["subfolder"] / strip["filename"]
    with Image.open(path) as image:
        assert image.width > 5 * 160
    folder = server.base / "output" / "lora_loom" / name / "strips"
    first = {cell.name: cell.stat().st_mtime_ns for cell in (folder / "cells").iterdir()}
    server.run(prompt(swept(bases[family], name, seeds="2,3")))  # seed 2 is there already
    again = {cell.name: cell.stat().st_mtime_ns for cell in (folder / "cells").iterdir()}
    assert all(again[cell] == first[cell] for cell in first)
    assert len(again) == len(first) + 10
    assert len(list(folder.glob("sheet-*.json"))) == 2


def scored(base, name, **links):
    """A sweep with images set aside, scored before the strip."""
    graph = swept(base, name, prompts="a red thing", strengths="1", height=64)
    graph["cache"]["inputs"]["held_out_share"] = 0.34
    graph["score"] = node("LoomScore", sheet=["sweep", 0], cache=["cache", 0], trigger="nothing like it", **links)
    graph["strip"]["inputs"]["sheet"] = ["score", 0]
    graph["table"] = node("PreviewAny", source=["score", 1])
    graph["plot"] = node("SaveImage", images=["score", 2], filename_prefix="plot")
    return graph


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_from_the_record_and_from_the_model_agree(server, bases, family):
    """The same losses, whether the run wrote them down or the files are measured on the loaded model; all files appear."""
    base, name = bases[family], f"scored-{family}"
    folder = server.base / "output" / "lora_loom" / name / "strips"
    losses = []
    for links in ({}, {"model": base["sources"]["model"]}):
        record = server.run(prompt(scored(base, name, **links)))
        assert len(record["outputs"]["plot"]["images"]) == 1
        shown = record["outputs"]["score"]
        assert shown["text"] == record["outputs"]["table"]["text"]
        assert (pixels(server, record, "score")[..., :3] == pixels(server, record, "plot")).all()
        [path] = folder.glob("scores-*.json")
        data = json.loads(path.read_text())
        assert data["recommendation"]["runner_up"]
        assert any(("measured now" if links else "recorded during training") in note for note in data["notes"]), data[
            "notes"
        ]
        losses.append({row["label"]: row["values"]["held_out"]["mean"] for row in data["rows"]})
    recorded, measured = losses
    assert list(recorded) == ["base", "step 2", "step 4"]
    assert measured == pytest.approx(recorded, rel=2e-2)
    [strip] = record["outputs"]["strip"]["images"]
    shown = folder / strip["filename"]
    assert all(shown.with_suffix(kind).stat().st_size > 100 for kind in (".png", ".html", ".csv", ".json"))


def test_pictures_are_compared_by_a_connected_clip_vision(server, bases):
    """Likeness and drift come from ComfyUI's own image encoder, whose cosines the test computes again from its features."""
    name = "by-vision"
    graph = scored(bases["sd3"], name, clip_vision=["vision", 0])
    graph["vision"] = node("LoomTestVision")
    graph["score"]["inputs"]["trigger"] = "thing"
    record = server.run(prompt(graph))
    assert "CLIPVisionModelProjection" in record["outputs"]["table"]["text"][0]
    folder = server.base / "output" / "lora_loom" / name / "strips"
    [path] = folder.glob("scores-*.json")
    rows = {row["label"]: row["values"] for row in json.loads(path.read_text())["rows"]}
    [sheet] = [json.loads(path.read_text()) for path in folder.glob("sheet-*.json") if "scored" not in path.name]
    assert set(rows) == {"base", "step 2", "step 4"}
    pictures = sorted((server.base / "input" / "pics").glob("*.png"))
    embedded = embeddings(server, [*pictures, *(folder / "cells" / cell["image"] for cell in sheet["cells"])])
    alike = embedded[len(pictures) :] @ embedded[: len(pictures)].T  # cosines: cells x pictures

    def likeness(label, held_out):
        cells = [number for number, cell in enumerate(sheet["cells"]) if cell["checkpoint"] == label]
        return alike[cells][:, [number for number in range(len(pictures)) if number != held_out]].mean()

    found = {label: values["training_likeness"]["mean"] for label, values in rows.items()}
    assert any(  # one of the four pictures is set aside
        found == pytest.approx({label: likeness(label, held_out) for label in rows}, abs=1e-4) for held_out in range(4)
    )


def test_samples_are_compared_while_training_and_the_page_gets_the_curve(server, bases):
    """The run's shadow of a CLIP_VISION gives the cosines of ComfyUI's own; the sweep's curve stands beside it after a score."""
    name, base = "likeness", bases["sd3"]
    graph = scored(base, name, clip_vision=["vision", 0])
    graph["vision"] = node("LoomTestVision")
    sources = {part: base["sources"][part] for part in ("vae", "clip")}
    graph["validation"] = node("LoomValidation", **sources, prompts="a red thing\na blue thing", every=2, steps=1, width=64, height=64, clip_vision=["vision", 0])  # fmt: skip
    graph["train"]["inputs"]["validation"] = ["validation", 0]
    server.run(prompt(graph))
    details = server.run_state(name)
    assert [(point["step"], point["source"]) for point in details["likeness"]] == [
        (step, source) for source in ("samples", "sweep") for step in (0, 2, 4)
    ]
    assert all(-1 <= point["low"] <= point["likeness"] <= point["high"] <= 1 for point in details["likeness"])
    assert {point["by"] for point in details["likeness"]} == {"the connected CLIP_VISION (CLIPVisionModelProjection)"}
    pictures = sorted((server.base / "input" / "pics").glob("*.png"))
    folder = server.base / "output" / "lora_loom" / name
    embedded = embeddings(server, [*pictures, *(folder / path for path in details["samples"])])
    alike = embedded[len(pictures) :] @ embedded[: len(pictures)].T
    for number, point in enumerate(details["likeness"][:3]):  # two samples a step; one of the pictures is set aside
        means = [np.delete(alike[2 * number : 2 * number + 2], left, axis=1).mean() for left in range(len(pictures))]
        assert min(abs(point["likeness"] - mean) for mean in means) < 2e-4
    best = json.loads((folder / "run.json").read_text())["best"]
    assert best["likeness"]["step"] == best["lowest"]
    assert "image similarity of the samples" in best["reason"]


def embeddings(server, paths):
    """Unit vectors of pictures, by the test encoder through a node."""
    graph = {
        "vision": node("LoomTestVision"),
        "embed": node("LoomTestEmbed", clip_vision=["vision", 0], paths="\n".join(map(str, paths))),
    }
    rows = np.array(json.loads(server.run(graph)["outputs"]["embed"]["text"][0]))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_cell_is_what_ksampler_makes(server, bases):
    """Base and LoRA cells against KSampler with LoraLoaderModelOnly, pixel by pixel."""
    base = bases["sd3"]
    guidance = {"guide": node("LoomGuidance", label="", method="cfg", cfg=3.0, eta=0.0, norm_threshold=0.0, momentum=0.0)}  # fmt: skip
    graph = {**swept(base, "like-ksampler", guidance=["guide", 0], prompts="a red thing", strengths="1", seeds="1", height=64, steps=3), **guidance}  # fmt: skip
    graph["patched"] = node("LoraLoaderModelOnly", model=base["sources"]["model"], lora_name=["train", 1], strength_model=1.0)  # fmt: skip
    graph = picture(picture(graph, key="plain"), model=["patched", 0], key="with-lora")
    record = server.run(prompt(graph))
    cells = [np.asarray(Image.open(server.base / "output" / image["filename"])) for image in record["outputs"]["cells"]["images"]]  # fmt: skip
    assert np.abs(cells[0] - pixels(server, record, "plain")).max() <= 1
    assert np.abs(cells[2] - pixels(server, record, "with-lora")).max() <= 1
    assert np.abs(cells[0].astype(float) - cells[2]).max() > 1


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_cells_own_graph_makes_the_same_picture(server, bases, family):
    """What the page opens when a cell's PNG is dropped on it: stock nodes, and nothing of the sweep."""
    base, name = bases[family], f"own-graph-{family}"
    guide = node(
        "LoomGuidance", label="", method="apg", cfg=3.0, eta=0.2, norm_threshold=5.0, momentum=0.0, rescale=0.5
    )
    graph = {
        **swept(base, name, guidance=["guide", 0], prompts="a red thing", strengths="0.5", seeds="1"),
        "guide": guide,
    }
    server.run(prompt(graph))
    [sheet] = (server.base / "output" / "lora_loom" / name / "strips").glob("sheet-*.json")
    cell = json.loads(sheet.read_text())["cells"][-1]
    assert cell["checkpoint"] == "step 4"
    with Image.open(sheet.parent / "cells" / cell["image"]) as image:
        own = json.loads(image.info["prompt"])
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert not {value["class_type"] for value in own.values()} & {"LoomSweep", "LoomTrain", "LoomCheckpoints"}
    record = server.run(own)
    assert np.abs(pixels(server, record, "cell_save") - shown).max() <= 1


def test_sizes_steps_and_samplers_are_axes_of_the_node(server, bases):
    graph = swept(bases["sd3"], "more-axes", prompts="a", strengths="1", seeds="1", sizes="64x48, 64x64", step_counts="1,2", samplers="euler/normal, heun/simple")  # fmt: skip
    graph["strip"]["inputs"] |= {"columns": "steps, sampler", "rows": "size"}
    record = server.run(prompt(graph))
    assert len(record["outputs"]["cells"]["images"]) == 3 * 8
    assert len(record["outputs"]["strip"]["images"]) == 3, "one page per checkpoint"
    graph["sweep"]["inputs"]["samplers"] = "eular/normal"
    assert "did you mean 'euler'" in server.fail(prompt(graph))
    graph["sweep"]["inputs"] |= {"samplers": "", "seeds": "30-39 [10]", "max_cells": 4}
    assert "cells to render, about" in server.fail(prompt(graph))


def test_prompts_from_a_library(server, bases):
    """Named rows, the same cells as the bare prompts, run again when the file has changed; a path elsewhere is refused."""
    library = server.base / "input" / "prompts.json"
    library.write_text(json.dumps({"night": "a red thing at night", "day": "a red thing by day"}))
    graph = swept(bases["sd3"], "library", prompts="", prompt_library="prompts.json", strengths="1", seeds="1")
    record = server.run(prompt(graph))
    assert len(record["outputs"]["cells"]["images"]) == 3 * 2
    [sheet] = (server.base / "output" / "lora_loom" / "library" / "strips").glob("sheet-*.json")
    names = {cell["prompt_name"]: cell["prompt"] for cell in json.loads(sheet.read_text())["cells"]}
    assert names == {"night": "a red thing at night", "day": "a red thing by day"}
    library.write_text(json.dumps({"night": "a red thing at night"}))
    assert len(server.run(prompt(graph))["outputs"]["cells"]["images"]) == 3
    graph["sweep"]["inputs"]["prompt_library"] = "nowhere.json"
    assert "prompt_library" in server.fail(prompt(graph))


@pytest.mark.parametrize("family", ["sd3", "flux"])  # the SD1 toy draws nothing but full colours
def test_rescaling_at_cfg_1_changes_nothing_and_else_something(server, bases, family):
    base = bases[family]
    graph = {**base, "apg": node("LoomAPG", model=["model", 0], eta=1.0, norm_threshold=0.0, momentum=0.0, rescale=0.7)}
    for cfg, same in ((1.0, True), (6.0, False)):
        made = picture(picture(graph, key=f"plain{cfg}", cfg=cfg), model=["apg", 0], key=f"re{cfg}", cfg=cfg)
        record = server.run(prompt(made))
        assert np.array_equal(pixels(server, record, f"plain{cfg}"), pixels(server, record, f"re{cfg}")) == same


def test_the_hosts_own_apg_has_an_effective_scale_of_one_more(server, bases):
    """Eta 1 and no threshold make APG plain CFG: ours of the sampler's scale, the host's of that scale plus 1."""
    options = {"eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0}
    base = bases["sd3"]
    graph = {
        **base,
        "ours": node("LoomAPG", model=["model", 0], **options),
        "hosts": node("APG", model=["model", 0], **options),
    }
    for key, model, cfg in (("plain3", ["model", 0], 3.0), ("plain4", ["model", 0], 4.0), ("ours3", ["ours", 0], 3.0), ("hosts3", ["hosts", 0], 3.0)):  # fmt: skip
        graph = picture(graph, model=model, key=key, cfg=cfg)
    record = server.run(prompt(graph))
    made = {key: pixels(server, record, key).astype(int) for key in ("plain3", "plain4", "ours3", "hosts3")}
    assert np.abs(made["ours3"] - made["plain3"]).max() <= 1
    assert np.abs(made["hosts3"] - made["plain4"]).max() <= 1
    assert np.abs(made["plain3"] - made["plain4"]).max() > 1


def test_panels_of_base_lora_and_apg(server, bases):
    base = bases["sd3"]
    plain = node("LoomGuidance", label="", method="cfg", cfg=3.0, eta=0.0, norm_threshold=0.0, momentum=0.0)
    apg = node("LoomGuidance", label="", method="apg", cfg=3.0, eta=0.0, norm_threshold=5.0, momentum=-0.5, previous=["plain", 0])  # fmt: skip
    graph = {**swept(base, "panels", guidance=["apg", 0]), "plain": plain, "apg": apg}
    graph["strip"]["inputs"] |= {"layout": "panels", "title": "Three <script>alert(1)</script>"}
    server.run(prompt(graph))
    [sheet] = (server.base / "output" / "lora_loom" / "panels" / "strips").glob("sheet-*.json")
    assert {cell["guidance"] for cell in json.loads(sheet.read_text())["cells"]} == {"CFG 3", "APG 3"}
    graph["sweep"]["inputs"]["guidance"] = ["plain", 0]
    assert "guidance of both kinds" in server.fail(prompt(graph))


@pytest.mark.parametrize(("changes", "same"), [({"eta": 1.0}, True), ({"eta": 0.0}, False)])
def test_apg_with_eta_one_is_cfg_and_otherwise_not(server, bases, changes, same):
    base = bases["sd3"]
    graph = {**base, "apg": node("LoomAPG", model=["model", 0], **{"norm_threshold": 0.0, "momentum": 0.0, **changes})}
    graph = picture(picture(graph, key="plain"), model=["apg", 0], key="apg-picture")
    record = server.run(prompt(graph))
    difference = np.abs(pixels(server, record, "plain") - pixels(server, record, "apg-picture")).max()
    assert (difference <= 1) == same


@pytest.mark.parametrize("family", FAMILIES)
def test_apg_changes_nothing_at_cfg_1(server, bases, family):
    base = bases[family]
    graph = {**base, "apg": node("LoomAPG", model=["model", 0], eta=0.0, norm_threshold=2.0, momentum=-0.5)}
    graph = picture(picture(graph, key="plain", cfg=1.0), model=["apg", 0], key="apg-picture", cfg=1.0)
    record = server.run(prompt(graph))
    assert np.array_equal(pixels(server, record, "plain"), pixels(server, record, "apg-picture"))


def test_bad_sweeps_say_what_to_do(server, bases):
    base = bases["sd3"]
    graph = swept(base, "bad-sweep", prompts="")
    assert "prompts in Loom Sweep is empty" in server.fail(prompt(graph))
    graph = swept(base, "bad-sweep", width=60)
    assert "multiples of 8" in server.fail(prompt(graph)) or "width" in json.dumps(server.refused(prompt(graph)))
    graph = swept(base, "bad-sweep")
    graph["strip"]["inputs"]["columns"] = "checkpont"
    assert "'checkpont' is not an axis" in server.fail(prompt(graph))
    graph = swept(base, "bad-sweep")
    graph["checkpoints"]["inputs"] |= {"files": "../../secrets*"}
    assert "and a connected run" in server.fail(prompt(graph))
    del graph["checkpoints"]["inputs"]["run"]
    assert "matches nothing" in server.fail(prompt(graph))


def test_lora_files_by_pattern(server, bases):
    server.run(prompt(train(bases["sd3"], "by-pattern")))
    graph = swept(bases["sd3"], "unused", prompts="x", strengths="1", seeds="1")
    del graph["train"]
    graph["checkpoints"]["inputs"] = {
        "files": "lora_loom/by-pattern/*",
        "include_base": False,
        "pick": "last n",
        "n": 2,
    }
    record = server.run(prompt(graph))
    assert len(record["outputs"]["cells"]["images"]) == 2
