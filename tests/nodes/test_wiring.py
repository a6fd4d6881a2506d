"""Links of a graph that cannot work are refused by LoomCache, before anything is encoded."""

import pytest

from lora_loom.trainer.errors import ConfigError


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
