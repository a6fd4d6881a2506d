"""How long a run is that names no number of steps, and whose LoRA its file is."""

from dataclasses import replace

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from lora_loom.trainer.config.run import PASSES, TrainingConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.headless import prepare, run_folder, train
from lora_loom.trainer.runs.run_folder import RunFolder
from lora_loom.trainer.runs.settled import with_length
from lora_loom.trainer.training.epochs import in_steps
from tests.conftest import SilentHost, make_config
from tests.runs.test_early_stopping import HELD_OUT, watched


@pytest.mark.parametrize(
    ("images", "settings", "processes", "steps"),
    [
        (4, {}, 1, 2000),
        (30, {}, 1, 3000),
        (30, {"batch_size": 4, "gradient_accumulation_steps": 2}, 1, 375),
        (30, {"batch_size": 4, "gradient_accumulation_steps": 2}, 2, 188),
        (500, {}, 1, 7000),
        (30, {"goal": "style"}, 1, 8000),
        (90, {"goal": "style"}, 1, 9000),
        (500, {"goal": "style", "batch_size": 8}, 1, 1500),
    ],
)
def test_each_image_is_used_about_a_hundred_times_within_what_is_usual(images, settings, processes, steps):
    said = []
    training = in_steps(TrainingConfig(**settings), lambda epochs: epochs * images, images, processes, said.append)
    assert training.steps == steps
    assert str(steps) in said[0]
    assert str(images) in said[0]
    least, most = PASSES[training.goal]
    seen = steps * training.batch_size * training.gradient_accumulation_steps * processes
    assert least <= seen < most + training.batch_size * training.gradient_accumulation_steps * processes


def test_steps_and_epochs_go_before():
    def ten(epochs):
        return 10 * epochs

    assert in_steps(TrainingConfig(steps=5), ten, 10, 1, print).steps == 5
    assert in_steps(TrainingConfig(epochs=3), ten, 10, 1, print).steps == 30
    with pytest.raises(ConfigError, match=r"training\.steps = -1: use 0 \(by the number of images\) or more"):
        TrainingConfig(steps=-1)


def test_a_run_that_names_no_steps_knows_them_before_it_starts(tmp_path):
    host = SilentHost()
    prepared = prepare(make_config("sd3", tmp_path, training={"steps": 0, "batch_size": 2}), host)
    assert prepared.config.training.steps == 1000
    assert any("training.steps: 1000, as usual for a character with 6 images" in line for line in host.text)


def test_an_earlier_run_keeps_its_length(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert with_length(TrainingConfig(), folder).steps == 0
    folder.update(config={"training": {"steps": 1000}}, fixed={})
    (folder.checkpoints / "step-000250").mkdir(parents=True)
    assert with_length(TrainingConfig(), folder).steps == 1000
    assert with_length(TrainingConfig(steps=1500), folder).steps == 1500
    assert with_length(TrainingConfig(epochs=2), folder).steps == 0


def step_of(path):
    with safe_open(path, "pt") as file:
        return int(file.metadata()["ss_steps"])


def test_the_runs_file_is_the_best_lora(tmp_path, monkeypatch):
    """By the planted losses step 2 is the lowest of the first four."""
    config = watched(tmp_path, monkeypatch)
    validation = replace(config.validation, patience=0)
    training = replace(config.training, steps=4, save_every=4, keep_best=True)
    host = SilentHost()
    outcome = train(replace(config, validation=validation, training=training), host)
    folder = run_folder(config)
    assert outcome.best["step"] == 2
    best, last, run = (load_file(folder.lora_file(step)) for step in (2, 4, None))
    assert all((run[name] == best[name]).all() for name in best)
    assert any((run[name] != last[name]).any() for name in best)
    assert step_of(outcome.lora) == 2
    assert any("is the LoRA of step 2 (training.keep_best)" in line for line in host.text)
    plain = train(replace(config, validation=validation, training=replace(training, keep_best=False)), SilentHost())
    assert step_of(plain.lora) == 4, "it may change when a run is continued"


def test_the_best_needs_a_validation_loss(tmp_path):
    config = make_config("sd3", tmp_path, training={"keep_best": True})
    with pytest.raises(ConfigError, match=r"training\.keep_best = true needs a validation loss: set images aside"):
        prepare(config, SilentHost())
    prepare(make_config("sd3", tmp_path, training={"keep_best": True}, data=HELD_OUT), SilentHost())
