"""Runs whose sets come from files, and what is refused before anything is loaded."""

import pytest

from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.headless import prepare, train
from tests.conftest import SilentHost, make_config, pictures


@pytest.fixture
def sets(tmp_path):
    """A file as kohya's with two sets, one of them taught by the base."""
    path = tmp_path / "kohya.toml"
    path.write_text(
        f"""
[[datasets]]
resolution = 64
batch_size = 4
bucket_reso_steps = 32
[[datasets.subsets]]
image_dir = "{pictures()}"
num_repeats = 2
shuffle_caption = true
caption_separator = " "
[[datasets.subsets]]
image_dir = "{pictures()}"
custom_attributes = {{ diff_output_preservation = true }}
"""
    )
    return str(path)


def test_a_run_from_a_file_of_another_trainer(tmp_path, sets):
    host = SilentHost()
    config = make_config("sd", tmp_path, dataset=[], dataset_files=[sets], training={"steps": 3, "batch_size": 3})
    assert train(config, host).state == "finished"
    text = "\n".join(host.text)
    assert "kohya.toml: datasets 1, subset 1: batch_size = 4 is ignored; set training.batch_size" in text
    assert "6 train, 6 regularisation images" in text
    assert "per epoch: 18 images in 6 batches = 6 steps" in text
    assert "can take more forms than caption_variants = 16" in text


def test_a_base_that_is_split_over_devices_cannot_teach(tmp_path, sets):
    from lora_loom.trainer.data.sets.dataset_file import gather_sets
    from lora_loom.trainer.distributed.sharding import check_teachers

    check_teachers(gather_sets([], [sets]).sets, sharded=False)
    with pytest.raises(ConfigError, match=r"dataset\.teacher = 'base' does not go with memory\.shard"):
        check_teachers(gather_sets([], [sets]).sets, sharded=True)


@pytest.mark.parametrize("step", [24, 8])
def test_a_step_of_a_set_that_the_network_cannot_take(tmp_path, step):
    folder = str(pictures())
    config = make_config("sd", tmp_path, dataset=[{"folder": folder}, {"folder": folder, "bucket_step": step}])
    with pytest.raises(ConfigError, match=rf"dataset\.bucket_step = {step}: use a multiple of 16"):
        prepare(config, SilentHost())
