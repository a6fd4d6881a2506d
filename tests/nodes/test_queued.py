"""What LoomCache sees in the queued graph before it encodes: a LoomTrain that ComfyUI has dropped, inputs that hold nothing."""

import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.nodes.node import refuse_hollow
from lora_loom.nodes.queued import refuse_dropped, text_of
from lora_loom.trainer.errors import ConfigError

REQUIRED = {
    "model": ["loader", 0], "cache": ["cache", 0], "name": "cat", "steps": 10, "learning_rate": 1e-4, "rank": 4, "batch_size": 1,
    "save_every": 0, "seed": 0, "mode": "wait", "existing_run": "new",
}  # fmt: skip


def graph(**changes):
    return {
        "loader": {"class_type": "UNETLoader", "inputs": {"unet_name": "a.safetensors"}},
        "cache": {"class_type": "LoomCache", "inputs": {}},
        "text": {"class_type": "PrimitiveString", "inputs": {"value": "a/b"}},
        "network": {"class_type": "LoomBaseLora", "inputs": {}},
        "train": {"class_type": "LoomTrain", "inputs": {**REQUIRED, **changes}},
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "a/b"}, r"name = 'a/b': use letters"),
        ({"name": ["text", 0]}, r"name = 'a/b': use letters"),
        ({"steps": 0}, "steps = 0: at least 1"),
        ({"rank": 4096}, "rank = 4096: at most 1024"),
        ({"steps": "ten"}, "steps = 'ten': a number"),
        ({"mode": "later"}, "mode = 'later': one of background, wait"),
        ({"base_loras": ["network", 0]}, r"is missing \(Loom Base LoRA, node network\)"),
    ],
)
def test_nothing_is_encoded_for_a_node_that_comfyui_has_dropped(change, words):
    with pytest.raises(ConfigError, match=f"^nothing is encoded, .*{words}"):
        refuse_dropped(graph(**change), "cache")


def test_a_missing_input_is_named():
    broken = graph()
    del broken["train"]["inputs"]["rank"]
    with pytest.raises(ConfigError, match=r"rank is missing \(Loom Train LoRA, node train\)"):
        refuse_dropped(broken, "cache")


def test_what_comfyui_takes_is_taken():
    for fine in (graph(), graph(rank="16"), graph(name=["elsewhere", 0]), graph(steps=["loader", 0])):
        refuse_dropped(fine, "cache")
    refuse_dropped(graph(rank=0), "another cache")
    refuse_dropped(None, None)


def test_one_of_two_runs_is_enough_to_encode():
    both = graph()
    both["second"] = {"class_type": "LoomTrain", "inputs": {**REQUIRED, "rank": 0}}
    refuse_dropped(both, "cache")


def test_a_former_role_of_a_dataset_is_no_mistake():
    old = graph()
    old["data"] = {"class_type": "LoomDataset", "inputs": {"folder": "a", "captions": "auto", "role": "held_out"}}
    old["train"]["inputs"]["validation"] = ["data", 0]
    refuse_dropped(old, "cache")


def test_a_text_that_only_a_node_can_say_is_not_known():
    assert text_of(graph(), "x") == "x"
    assert text_of(graph(), ["text", 0]) == "a/b"
    assert text_of(graph(), ["loader", 0]) is None


class HollowVae:
    first_stage_model = None


@pytest.mark.parametrize(
    ("node", "given", "words"),
    [
        ("LoomCache", {"clip": None}, "clip of Loom Cache holds no text encoder"),
        ("LoomCache", {"vae": HollowVae()}, "vae of Loom Cache holds no VAE"),
        ("LoomTrain", {"clip": None}, "clip of Loom Train LoRA holds no text encoder"),
        ("LoomValidation", {"clip": None}, "holds no text encoder"),
        ("LoomSweep", {"vae": None}, "holds no VAE"),
    ],
)
def test_a_link_behind_which_nothing_is_has_its_remedy(node, given, words):
    with pytest.raises(ConfigError, match=words):
        refuse_hollow(NODE_CLASS_MAPPINGS[node](), given)


def test_an_empty_text_is_no_hollow_link():
    refuse_hollow(NODE_CLASS_MAPPINGS["LoomTrain"](), {"prompt": None, "network": None, "vae": object()})
