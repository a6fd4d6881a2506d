"""LoomImportSettings and LoomDatasetFile take configurations of other trainers, and look only at what a workflow may name."""

import json

import pytest
from PIL import Image

from lora_loom.nodes.dataset import LoomDatasetFile
from lora_loom.nodes.importing import LoomImportSettings
from lora_loom.trainer.errors import ConfigError, DataError

CONFIG = {
    "model_family": "sd3", "model_type": "lora", "lora_rank": 12, "lora_alpha": 6, "learning_rate": "2e-4", "max_train_steps": 700,
    "num_train_epochs": 0, "train_batch_size": 2, "data_backend_config": "config/multidatabackend.json", "flow_schedule_shift": 2.0,
    "base_model_precision": "int8-quanto", "lr_scheduler": "polynomial", "no_such_thing": 1,
}  # fmt: skip


@pytest.fixture
def config(host):
    """config/config.json and config/multidatabackend.json in the input directory, with the images beside config/."""
    root = host.base / "input"
    (root / "cats").mkdir()
    Image.new("RGB", (8, 8)).save(root / "cats" / "a.png")
    (root / "cats" / "a.txt").write_text("a cat")
    (root / "config").mkdir()
    entry = {"id": "cats", "type": "local", "instance_data_dir": "cats", "caption_strategy": "textfile", "repeats": 2}
    (root / "config" / "multidatabackend.json").write_text(json.dumps([entry]))
    path = root / "config" / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def reached_from_outside(host):
    import comfy.cli_args

    comfy.cli_args.args.listen = "0.0.0.0"
    yield
    comfy.cli_args.args.listen = "127.0.0.1"


def test_the_settings_of_another_trainers_file_reach_the_sockets(config):
    network, optimizer, objective, memory, rank, rate, steps, epochs, batch, every, report = LoomImportSettings().run(
        "config/config.json"
    )
    assert (network.network.alpha, network.network.dropout, rank) == (6, 0.1, 12)
    assert (optimizer.schedule.kind, optimizer.schedule.power, rate) == ("polynomial", 0.8, 2e-4)
    assert (objective.objective.shift, memory.quantize, memory.precision) == (2.0, "int8", "bfloat16")
    assert (steps, epochs, batch, every) == (700, 0.0, 2, 500)
    assert "no_such_thing = 1: SimpleTuner has no such option that is known here" in report


def test_the_datasets_of_another_trainers_file_are_taken(config):
    value, _, report = LoomDatasetFile().run("config/config.json")
    (one,) = value.sets
    assert (one.folder, one.repeats) == (str(config.parents[1] / "cats"), 3)
    assert report.splitlines()[0] == "1 images"
    before = LoomDatasetFile.IS_CHANGED("config/config.json")
    (config.parents[1] / "cats" / "a.txt").write_text("another cat")
    assert LoomDatasetFile.IS_CHANGED("config/config.json") != before


def test_a_file_of_lora_loom_is_a_preset_too(host):
    (host.base / "input" / "mine.toml").write_text(
        'name = "x"\n[model]\nbase = "b"\n[network]\nrank = 5\n[[dataset]]\nfolder = "f"\n'
    )
    assert LoomImportSettings().run("mine.toml")[4] == 5


def test_a_full_fine_tune_is_refused_with_the_way_to_it(config):
    config.write_text(json.dumps({**CONFIG, "model_type": "full"}))
    with pytest.raises(ConfigError, match="train from the command line"):
        LoomImportSettings().run("config/config.json")


def test_nothing_outside_is_looked_at_while_the_server_is_reached_from_outside(config, reached_from_outside, tmp_path):
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "data.json").write_text(json.dumps([{"id": "a", "type": "local", "instance_data_dir": str(outside)}]))
    config.write_text(json.dumps({**CONFIG, "data_backend_config": str(outside / "data.json")}))
    with pytest.raises(DataError, match="is not there or may not be used"):
        LoomDatasetFile().run("config/config.json")
    (config.parent / "multidatabackend.json").write_text((outside / "data.json").read_text())
    config.write_text(json.dumps(CONFIG))
    with pytest.raises(ConfigError, match="absolute paths outside the folders of ComfyUI are refused"):
        LoomDatasetFile().run("config/config.json")
    with pytest.raises(ConfigError, match="absolute paths outside"):
        LoomImportSettings().run(str(outside / "data.json"))


def test_a_schedule_of_an_unknown_library_is_refused(host):
    text = "--network_module networks.lora --lr_scheduler_type my_own.Schedule"
    (host.base / "input" / "run.txt").write_text(text)
    with pytest.raises(
        ConfigError, match=r"schedule = my_own\.Schedule in Loom Optimizer: a workflow may name classes of torch"
    ):
        LoomImportSettings().run("run.txt")


def test_the_node_runs_again_when_the_file_changes(config):
    before = LoomImportSettings.IS_CHANGED("config/config.json")
    config.write_text(json.dumps({**CONFIG, "lora_rank": 13}))
    assert LoomImportSettings.IS_CHANGED("config/config.json") != before
