"""The wizard's server side: what a model file is by its header, what it needs, and the graph that is made of it."""

import json
import struct

import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.trainer.errors import ConfigError, ModelFileError
from lora_loom.trainer.known_models.row import tell
from lora_loom.trainer.known_models.rows import ROWS
from scripts.write_workflows import STOCK, form, is_widget

STOCK_TEXT = {**STOCK, "TripleCLIPLoader": ({}, ["CLIP"]), "QuadrupleCLIPLoader": ({}, ["CLIP"])}


def write_file(host, name, metadata=None):
    path = host.base / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": metadata or {}}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)


@pytest.fixture
def wizard(host, monkeypatch):
    """The module, in a ComfyUI whose detection answers by the file's metadata."""
    made = host("new_run.wizard")
    monkeypatch.setattr(
        host("new_run.models"), "detected", lambda shapes, metadata: (metadata["class"], json.loads(metadata["config"]))
    )
    (host.base / "input" / "cats").mkdir()
    (host.base / "input" / "before").mkdir()
    for kind, names in {
        "text_encoders": ("clip_l", "qwen_3_4b", "qwen_3_8b", "t5xxl_fp16", "umt5_xxl_fp8"), "vae": ("ae", "flux2-vae", "qwen_image_vae"),
        "loras": ("zimage_turbo_training_adapter_v2",),
    }.items():  # fmt: skip
        for name in names:
            write_file(host, f"{kind}/{name}.safetensors")
    return made


def model(host, name, model_class, config=None):
    write_file(host, name, {"class": model_class, "config": json.dumps(config or {})})
    return name


Z_IMAGE = {"z_image_modulation": True}


def wish(base, /, **changed):
    return {
        "model": base,
        "goal": "character",
        "name": "cat",
        "trigger": "ohwx",
        "folder": "cats",
        "parts": [],
        **changed,
    }


def check(graph):
    """Every required input is there, every link leads to an output of its type, every choice is one."""
    for node in graph.values():
        kind = node["class_type"]
        if kind in STOCK_TEXT:
            continue
        groups = NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
        known = {**groups.get("required", {}), **groups.get("optional", {})}
        assert set(groups.get("required", {})) <= set(node["inputs"]) <= set(known), kind
        for name, value in node["inputs"].items():
            entry = known[name]
            if isinstance(value, list):
                source = graph[value[0]]["class_type"]
                outputs = STOCK_TEXT[source][1] if source in STOCK_TEXT else form(source)[1]
                assert outputs[value[1]] == entry[0], (kind, name)
            elif isinstance(entry[0], list) and (kind, name) != ("LoomBaseLora", "lora"):
                assert value in entry[0], (kind, name)
            else:
                assert is_widget(entry)
                assert entry[1].get("min", value) <= value <= entry[1].get("max", value)


def nodes(graph, kind):
    return [node["inputs"] for node in graph.values() if node["class_type"] == kind]


def test_models_are_those_that_comfyui_lists_and_the_demo(wizard, host):
    model(host, "checkpoints/sdxl.safetensors", "SDXL")
    model(host, "diffusion_models/z.safetensors", "Lumina2", Z_IMAGE)
    assert wizard.choices()["models"] == ["checkpoints/sdxl.safetensors", "diffusion_models/z.safetensors", "demo"]
    assert wizard.choices()["name"] == "my-lora"
    host("paths").run_folder("my-lora").start({}, {}, {})
    assert wizard.choices()["name"] == "my-lora-2"


def test_a_checkpoint_needs_no_other_file(wizard, host):
    name = model(host, "checkpoints/photo.safetensors", "SDXL")
    facts = wizard.facts(name)
    assert (facts["title"], facts["resolution"], facts["rank"], facts["parts"]) == ("SDXL", 1024, 32, [])
    made = wizard.new_graph(wish(name))
    check(made["graph"])
    assert nodes(made["graph"], "CheckpointLoaderSimple") == [{"ckpt_name": "photo.safetensors"}]
    [train] = nodes(made["graph"], "LoomTrain")
    assert (train["rank"], train["rate"], train["length"], train["existing_run"]) == (32, "auto", "character", "new")
    assert nodes(made["graph"], "LoomDataset")[0]["trigger"] == "ohwx"
    assert nodes(made["graph"], "LoomValidation")[0]["prompts"].startswith("ohwx, ")


def test_a_turbo_gets_its_loaders_its_adapter_and_few_steps(wizard, host):
    name = model(host, "diffusion_models/z_image_turbo_bf16.safetensors", "Lumina2", Z_IMAGE)
    facts = wizard.facts(name)
    assert facts["title"] == "Z-Image Turbo"
    assert [part["value"] for part in facts["parts"]] == ["qwen_3_4b.safetensors", "ae.safetensors"]
    assert facts["adapter"] == "zimage_turbo_training_adapter_v2.safetensors"
    assert facts["warning"] == "", "with its adapter it can be trained"
    made = wizard.new_graph(wish(name, parts=[part["value"] for part in facts["parts"]]))
    check(made["graph"])
    assert nodes(made["graph"], "CLIPLoader") == [{"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"}]
    assert nodes(made["graph"], "LoomBaseLora")[0]["use"] == "training"
    assert nodes(made["graph"], "LoomValidation")[0]["steps"] == 8
    assert nodes(made["graph"], "LoomCache")[0]["bucket_step"] == 16


def test_a_base_can_be_looked_at_through_its_turbo(wizard, host):
    base = model(host, "diffusion_models/z_image_bf16.safetensors", "Lumina2", Z_IMAGE)
    turbo = model(host, "diffusion_models/z_image_turbo_bf16.safetensors", "Lumina2", Z_IMAGE)
    model(host, "diffusion_models/z_image_deturbo.safetensors", "Lumina2", Z_IMAGE)
    model(host, "diffusion_models/wide_turbo.safetensors", "Lumina2", {**Z_IMAGE, "dim": 5})
    model(host, "diffusion_models/krea2_turbo.safetensors", "Krea2")
    damaged = host.base / "models" / "diffusion_models" / "turbo_damaged.safetensors"
    damaged.write_bytes(b"damaged")
    facts = wizard.facts(base)
    assert facts["previews"] == [turbo]
    assert wizard.facts(turbo)["previews"] == []
    parts = [part["value"] for part in facts["parts"]]
    made = wizard.new_graph(wish(base, parts=parts, preview=turbo))
    check(made["graph"])
    [samples] = nodes(made["graph"], "LoomValidation")
    assert made["graph"][samples["preview_model"][0]]["inputs"]["unet_name"] == "z_image_turbo_bf16.safetensors"
    [train] = nodes(made["graph"], "LoomTrain")
    assert made["graph"][train["model"][0]]["inputs"]["unet_name"] == "z_image_bf16.safetensors"
    assert samples["steps"] == 8
    assert "preview_model" not in nodes(wizard.new_graph(wish(base, parts=parts))["graph"], "LoomValidation")[0]
    for refused in (base, "diffusion_models/krea2_turbo.safetensors", "x", 3):
        with pytest.raises(ConfigError, match="preview"):
            wizard.new_graph(wish(base, parts=parts, preview=refused))
    with pytest.raises(ConfigError, match="has no samples"):
        wizard.new_graph(wish(base, parts=parts, preview=turbo, goal="edit", references="before"))


@pytest.mark.parametrize(("width", "text"), [(7680, "qwen_3_4b"), (12288, "qwen_3_8b")])
def test_kleins_text_encoder_goes_by_its_width(wizard, host, width, text):
    name = model(
        host, "diffusion_models/klein.safetensors", "Flux2", {"guidance_embed": False, "context_in_dim": width}
    )
    facts = wizard.facts(name)
    assert [part["value"] for part in facts["parts"]] == [f"{text}.safetensors", "flux2-vae.safetensors"]
    assert "distilled" in facts["warning"]


def test_a_file_that_is_not_found_is_asked_for(wizard, host):
    name = model(host, "diffusion_models/flux.safetensors", "Flux", {"guidance_embed": True})
    (host.base / "models" / "text_encoders" / "t5xxl_fp16.safetensors").unlink()
    facts = wizard.facts(name)
    assert [part["value"] for part in facts["parts"]] == ["clip_l.safetensors", "", "ae.safetensors"], (
        "umt5 is another encoder"
    )
    for parts in ([], ["clip_l.safetensors", "", "ae.safetensors"], ["../x", "a", "b"], "abc", [1, 2, 3]):
        with pytest.raises(ConfigError):
            wizard.new_graph(wish(name, parts=parts))


def test_a_distilled_guidance_gets_the_guided_loss(wizard, host):
    name = model(host, "checkpoints/hidream_i1_dev.safetensors", "HiDream")
    made = wizard.new_graph(wish(name))
    check(made["graph"])
    assert nodes(made["graph"], "LoomObjective")[0]["guided_loss"] == "target"


@pytest.mark.parametrize(("goal", "length"), [("character", "character"), ("style", "style"), ("object", "character")])
def test_the_goal_sets_the_length_and_what_samples_show(wizard, host, goal, length):
    made = wizard.new_graph(wish(model(host, "checkpoints/a.safetensors", "BaseModel"), goal=goal, trigger=""))
    check(made["graph"])
    assert nodes(made["graph"], "LoomTrain")[0]["length"] == length
    assert nodes(made["graph"], "LoomCache")[0]["resolution"] == 512
    assert not nodes(made["graph"], "LoomValidation")[0]["prompts"].startswith(",")


def test_an_edit_has_images_before_and_after(wizard, host):
    name = model(host, "checkpoints/edit.safetensors", "QwenImage")
    with pytest.raises(ConfigError, match="references"):
        wizard.new_graph(wish(name, goal="edit", references="nothing"))
    made = wizard.new_graph(wish(name, goal="edit", references="before"))
    check(made["graph"])
    assert nodes(made["graph"], "LoomDataset")[0]["references"] == "before"
    assert not nodes(made["graph"], "LoomValidation")


def test_the_demo_needs_nothing(wizard):
    made = wizard.new_graph(wish("demo", folder=""))
    check(made["graph"])
    assert nodes(made["graph"], "LoomDemoModel") == [{}]
    assert not nodes(made["graph"], "LoomDataset")
    check(wizard.new_graph(wish("demo", folder="cats"))["graph"])


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("z_image.safetensors", []),
        ("z_image_turbo.safetensors", ["Training adapter"]),
        ("z_image_base.safetensors", ["Samples come from"]),
    ],
)
def test_no_two_nodes_lie_on_each_other_each_is_in_a_group_and_all_fit_a_small_screen(wizard, host, file, extras):
    name = model(host, f"diffusion_models/{file}", "Lumina2", Z_IMAGE)
    turbo = model(host, "diffusion_models/other_turbo.safetensors", "Lumina2", Z_IMAGE)
    parts = ["qwen_3_4b.safetensors", "ae.safetensors"]
    made = wizard.new_graph(wish(name, parts=parts, preview=turbo if "base" in file else ""))
    assert set(made["places"]) == set(made["graph"])
    assert set(made["groups"]) == {"1  Model", "2  Your images", "3  Cache and samples", "4  Train", *extras}
    for boxes in (list(made["places"].values()), list(made["groups"].values())):
        for i, (x, y, w, h) in enumerate(boxes):
            for x2, y2, w2, h2 in boxes[i + 1 :]:
                assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    for x, y, w, h in made["places"].values():
        assert any(
            gx <= x and gy <= y and x + w <= gx + gw and y + h <= gy + gh for gx, gy, gw, gh in made["groups"].values()
        )
    edges = [(gx, gy, gx + gw, gy + gh) for gx, gy, gw, gh in made["groups"].values()]
    width = max(edge[2] for edge in edges) - min(edge[0] for edge in edges)
    height = max(edge[3] for edge in edges) - min(edge[1] for edge in edges)
    most = host("new_run.graphs").SCREEN
    assert width <= most[0]
    assert height <= most[1] + 170 * len(extras)


@pytest.mark.parametrize(
    "changed",
    [{"goal": "x"}, {"name": "a/b"}, {"name": ""}, {"folder": "/nowhere"}, {"folder": ""}, {"folder": "../../x"}, {"trigger": 3}, {"model": "x"}],
)  # fmt: skip
def test_what_cannot_be_is_refused(wizard, host, changed):
    name = model(host, "checkpoints/a.safetensors", "SDXL")
    with pytest.raises(ConfigError):
        wizard.new_graph(wish(name, **changed))


def test_unknown_and_damaged_files_are_said(wizard, host, monkeypatch):
    def fails(shapes, metadata):
        raise KeyError("x_embedder.weight")

    name = model(host, "diffusion_models/odd.safetensors", "Odd")
    assert wizard.facts(name)["title"] == "Odd"
    monkeypatch.setattr(host("new_run.models"), "detected", fails)
    facts = wizard.facts(name)
    assert (facts["title"], facts["rank"]) == ("", None)
    assert [part["value"] for part in facts["parts"]] == ["", ""]
    (host.base / "models" / "diffusion_models" / "odd.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelFileError):
        wizard.facts(name)


def test_every_row_with_text_encoders_has_its_loaders(host):
    loaders = host("new_run.loaders")
    without = {row.model_class for row in ROWS if loaders.loaders_for(row.model_class, row.config) is loaders.UNKNOWN}
    assert without <= {"HiDreamO1", "QwenImage21"}, "classes without a rule"
    assert tell(ROWS, "Lumina2", Z_IMAGE, ["z_image_turbo"]).row.name in host("new_run.wizard").ADAPTERS
    assert set(host("new_run.wizard").ADAPTERS) <= {row.name for row in ROWS}
