"""The LoRA nodes in a real ComfyUI: their names link to LoraLoader, and its own key map judges the files."""

import pytest

from .graphs import data, node, picture, prompt, train

pytestmark = pytest.mark.comfyui
PLAIN = {"rank": 0, "method": "rank", "amount": 0.0, "dtype": "auto"}


def test_inspect_resize_merge_and_load(server, bases):
    base = bases["sd3"]
    server.run(prompt(train(data(base), "tooled")))
    graph = {
        **base,
        "run": node("LoomRun", name="tooled"),
        "wait": node("LoomWait", run=["run", 0]),
        "small": node("LoomLoraResize", lora_name=["wait", 1], save_as="tooled-small", **{**PLAIN, "rank": 2}),
        "both": node("LoomLoraMerge", lora_1=["small", 0], weight_1=0.5, lora_2="lora_loom/tooled/tooled.safetensors", weight_2=1.0, save_as="tooled-both", **PLAIN),
        "look": node("LoomLoraInspect", lora_name=["both", 0], model=base["sources"]["model"]),
        "kohya": node("LoomLoraConvert", lora_name=["both", 0], format="kohya", dtype="auto", save_as="tooled-kohya"),
        "look2": node("LoomLoraInspect", lora_name=["kohya", 0], model=base["sources"]["model"]),
        "patched": node("LoraLoaderModelOnly", model=base["sources"]["model"], lora_name=["both", 0], strength_model=1.0),
    }  # fmt: skip
    graph = picture(graph, model=["patched", 0])
    outputs = server.run(prompt(graph))["outputs"]
    [report] = outputs["look"]["text"]
    assert "rank 6" in report
    assert "in the connected model ComfyUI matches " in report
    assert "left out" not in report
    assert "left out" not in outputs["look2"]["text"][0]
    assert "energy is kept" in outputs["small"]["text"][0]
    assert (server.base / "models" / "loras" / "lora_loom" / "tooled-both.safetensors").is_file()
    loaders = server.http.get("/object_info/LoraLoader").json()["LoraLoader"]["input"]["required"]["lora_name"]
    offered = loaders[0] if isinstance(loaders[0], list) else loaders[1]["options"]
    assert "lora_loom/tooled-small.safetensors" in offered


def test_a_model_of_another_family_matches_nothing(server, bases):
    server.run(prompt(train(data(bases["sd3"]), "tooled")))
    base = bases["sd1"]
    graph = {**base, "look": node("LoomLoraInspect", lora_name="lora_loom/tooled/tooled.safetensors", model=base["sources"]["model"])}  # fmt: skip
    [report] = server.run(prompt(graph))["outputs"]["look"]["text"]
    assert "in the connected model ComfyUI matches 0 of " in report
    message = server.fail({"bad": node("LoomLoraResize", lora_name="lora_loom/tooled/tooled.safetensors", save_as="../x", **{**PLAIN, "rank": 2})})  # fmt: skip
    assert "name = '../x'" in message
