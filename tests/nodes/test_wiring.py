"""Links of a graph that cannot work are refused by LoomCache, before anything is encoded."""

import pytest

from lora_loom.trainer.errors import ConfigError, ModelFileError


def graph(mode="background", reader=("train", 1), name="cat"):
    return {
        "cache": {"class_type": "LoomCache", "inputs": {}},
        "train": {"class_type": "LoomTrain", "inputs": {"cache": ["cache", 0], "mode": mode, "name": name}},
        "wait": {"class_type": "LoomWait", "inputs": {"run": ["train", 0]}},
        "loader": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": list(reader)}},
    }


def test_a_loader_that_would_run_before_the_file_exists_is_refused(host):
    refuse = host("runs.wiring").refuse_early_loaders
    with pytest.raises(ConfigError, match=r"LoraLoaderModelOnly \(node loader\) reads lora_name .* Loom Wait for Run"):
        refuse(graph(), "cache")
    for fine in (graph("wait"), graph(reader=("wait", 1)), graph(reader=("other", 1))):
        refuse(fine, "cache")
    refuse(graph(), "another cache")
    refuse(None, None)


def test_a_run_that_has_finished_has_its_file(host):
    folder = host("paths").run_folder("cat")
    folder.start({}, {}, {})
    refuse = host("runs.wiring").refuse_early_loaders
    with pytest.raises(ConfigError):
        refuse(graph(), "cache")
    folder.update(state="finished")
    refuse(graph(), "cache")
    with pytest.raises(ConfigError):
        refuse(graph(name=["text", 0]), "cache")


class Patched:
    """A MODEL with a patch of its attention, and what is read of it."""

    patches, model_options = {}, {"transformer_options": {"patches": {"attn2_output_patch": [len]}}}
    model = object()


def patched_graph():
    made = graph("wait")
    made["unet"] = {"class_type": "UNETLoader", "inputs": {"unet_name": "a.safetensors"}}
    made["freeu"] = {"class_type": "FreeU", "inputs": {"model": ["unet", 0]}}
    made["tiles"] = {"class_type": "HyperTile", "inputs": {"model": ["freeu", 0]}}
    made["cache"]["inputs"]["model"] = made["train"]["inputs"]["model"] = ["tiles", 0]
    return made


def test_a_patched_model_is_refused_with_the_nodes_it_came_through(host):
    wiring = host("runs.wiring")
    words = r"attention or block patches \(it came through FreeU \(node freeu\), HyperTile \(node tiles\)\)"
    with pytest.raises(ModelFileError, match=words):
        wiring.models_to_train(patched_graph(), "cache", Patched())
    assert wiring.way_of(patched_graph(), ["unet", 0]) == ""


def test_a_model_is_known_by_the_file_of_its_loader_where_none_is_linked(host, monkeypatch):
    wiring, made, read = host("runs.wiring"), patched_graph(), []
    monkeypatch.setattr(wiring, "_read", lambda inputs: read.append(inputs) or "the model")
    del made["cache"]["inputs"]["model"]
    assert wiring.models_to_train(made, "cache", None) == ["the model"]
    assert read == [{"unet_name": "a.safetensors"}]
    made["cache"]["inputs"]["model"] = ["unet", 0]
    plain = type("Plain", (Patched,), {"model_options": {}})()
    assert wiring.models_to_train(made, "cache", plain) == [plain.model]  # of the same loader: nothing is read
    assert len(read) == 1


def test_a_file_that_cannot_be_read_is_left_to_its_loader(host):
    assert (
        host("runs.wiring").models_to_train(
            patched_graph() | {"cache": {"class_type": "LoomCache", "inputs": {}}}, "cache", None
        )
        == []
    )
