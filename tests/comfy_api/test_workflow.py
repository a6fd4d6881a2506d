"""Workflow files without a server: formats, places, values, sweeps."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_loom.trainer.comfy_api.workflow import (
    axis_values,
    find_input,
    labels,
    load_workflow,
    plan_prompts,
    with_settings,
)
from lora_loom.trainer.errors import ConfigError
from tests.comfy_api.fake import GRAPH, KINDS

OFFERED = KINDS["LoraLoader"]["lora_name"]


def declared(kind):
    return KINDS.get(kind)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"nodes": [], "links": [], "version": 0.4}, "is a workflow of ComfyUI's frontend, .* Workflow > Export .API."),
        ([1], "is not a ComfyUI workflow in API format. In ComfyUI choose"),
        ({}, "is not a ComfyUI workflow"),
        ({"1": {"class_type": "A"}}, "is not a ComfyUI workflow"),
        ({"1": {"class_type": "A", "inputs": {"x": ["9", 0]}}}, 'node 1 "A": x comes from node 9, which the file does not have'),
    ],
)  # fmt: skip
def test_other_formats_are_refused_with_the_way_to_the_right_one(tmp_path, content, message):
    path = tmp_path / "w.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        load_workflow(path)


def test_unreadable_files_and_the_posted_form(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.json: No such file"):
        load_workflow(tmp_path / "nowhere.json")
    (tmp_path / "w.json").write_text("{")
    with pytest.raises(ConfigError, match="is not a JSON file"):
        load_workflow(tmp_path / "w.json")
    (tmp_path / "w.json").write_text(json.dumps({"prompt": GRAPH, "client_id": "x"}))
    assert load_workflow(tmp_path / "w.json") == GRAPH


@pytest.mark.parametrize("place", ["3.steps", "KSampler.steps", "steps"])
def test_a_node_by_id_title_class_or_its_only_input(place):
    found = find_input(GRAPH, place, declared)
    assert (found.node, found.name) == ("3", "steps")


def test_places_that_are_none_or_many():
    two = {**GRAPH, "9": {**GRAPH["2"], "_meta": {"title": "Negative"}}}
    assert find_input(two, "Negative.text", declared).node == "9"
    assert find_input(two, "lora", declared).name == "lora_name"
    for place, message in (
        ("CLIPTextEncode.text", "names 2 nodes .node 2 .Positive., node 9 .Negative..: use the id"),
        ("text", "could be 2.text, 9.text: write NODE.INPUT"),
        ("KSampler.step", "node 3 .KSampler. has no input 'step': did you mean 'steps'"),
        ("Ksampler.steps", "no node 'Ksampler': did you mean 'KSampler'"),
        ("strngth_model", "has an input 'strngth_model': did you mean 'strength_model'"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_input(two, place, declared)


def test_values_take_the_inputs_type_and_the_file_stays():
    changed = with_settings(GRAPH, ["2.text=12", "3.steps=7", "1.strength_model=0.5", "4.filename_prefix=a=b"], declared)  # fmt: skip
    assert changed["2"]["inputs"]["text"] == "12"
    assert changed["3"]["inputs"]["steps"] == 7
    assert changed["1"]["inputs"]["strength_model"] == 0.5
    assert changed["4"]["inputs"]["filename_prefix"] == "a=b"
    assert GRAPH["3"]["inputs"]["steps"] == 2
    with pytest.raises(ConfigError, match="write NODE.INPUT=VALUE"):
        with_settings(GRAPH, ["3.steps"], declared)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cat/*.safetensors", ["cat/cat-000100.safetensors", "cat/cat-000900.safetensors", "cat/cat-001000.safetensors"]),
        ("*0.safetensors", ["cat/cat-000100.safetensors", "cat/cat-000900.safetensors", "cat/cat-001000.safetensors"]),
        ("dog.safetensors, cat\\cat-000900.safetensors", ["dog.safetensors", "cat/cat-000900.safetensors"]),
    ],
)  # fmt: skip
def test_a_pattern_is_matched_with_what_the_server_lists(text, found):
    assert axis_values(text, "dog.safetensors", OFFERED, "lora") == found


def test_local_files_mean_the_entries_that_their_paths_end_in(tmp_path):
    (tmp_path / "loras" / "cat").mkdir(parents=True)
    for name in ("cat-000900", "cat-001000", "strange"):
        (tmp_path / "loras" / "cat" / f"{name}.safetensors").write_text("")
    values = axis_values(str(tmp_path / "loras" / "cat" / "*.safetensors"), "", OFFERED, "lora")
    assert values == ["cat/cat-000900.safetensors", "cat/cat-001000.safetensors"]
    with pytest.raises(ConfigError, match=r"does not list strange\.safetensors .*put them into its models folder"):
        axis_values(str(tmp_path / "loras" / "cat" / "str*"), "", OFFERED, "lora")
    with pytest.raises(ConfigError, match="matches none of the 4 options that the server offers"):
        axis_values("bird*", "", OFFERED, "lora")


def test_a_sweep_is_the_product_and_repeats_add_up():
    planned = plan_prompts(GRAPH, ["KSampler.seed=1,2", "text=a cat, sleeping", "text=a dog"], declared)
    assert [(p.values["3.seed"], p.values["2.text"]) for p in planned] == [(1, "a cat, sleeping"), (1, "a dog"), (2, "a cat, sleeping"), (2, "a dog")]  # fmt: skip
    assert [p.label for p in planned] == ["1_a-cat-sleeping", "1_a-dog", "2_a-cat-sleeping", "2_a-dog"]
    assert len({p.key for p in planned}) == 4
    assert plan_prompts(GRAPH, [], declared)[0].label == ""
    assert [p.values["3.sampler_name"] for p in plan_prompts(GRAPH, ["3.sampler_name=euler,heun"], declared)] == ["euler", "heun"]  # fmt: skip


@settings(max_examples=40)
@given(st.lists(st.text(max_size=9), min_size=1, max_size=4, unique=True))
def test_labels_are_different_file_names(values):
    words = labels(values)
    assert len(set(words)) == len(values)
    assert all(word and "/" not in word and "\\" not in word and "\0" not in word and len(word) < 80 for word in words)
    assert all(word not in (".", "..") for word in words)
