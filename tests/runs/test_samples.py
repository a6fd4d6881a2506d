"""Pictures while training: the same as a sweep draws of the saved files, and the run is what it is without them."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lora_loom.trainer.errors import ConfigError, DataError, StoppedError
from lora_loom.trainer.runs.headless import prepare, train
from lora_loom.trainer.sweep.run import sweep
from tests.conftest import SilentHost, make_config, pictures, tiny_folder

HOW = {"sample_steps": 2, "guidance_scale": 3.0, "seed": 5, "negative_prompt": "blurred"}
SWEPT = {"steps": 2, "guidance": [{"scale": 3.0}], "negative_prompt": "blurred"}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def config_of(family, root, *, variant="auto", references=(), prompts=("a cat", "a dog"), **sections):
    shown = [str(path) for path in references]
    dataset = {"folder": str(pictures()), **({"references": str(pictures())} if shown else {})}
    sections = {
        "model": {"base": str(tiny_folder(family)), "variant": variant},
        "dataset": [dataset],
        "training": {"steps": 4, "save_every": 2, "batch_size": 2},
        "output": {"directory": str(root), "dtype": "float32", "cache": str(root / "cache")},
        "optimizer": {"learning_rate": 0.02},
        "validation": {**HOW, "prompts": list(prompts), "references": shown},
        "sweep": {**SWEPT, "prompts": list(prompts), "references": shown, "seeds": "5"},
        **sections,
    }
    return make_config(family, root, **sections)


@pytest.mark.parametrize(
    ("family", "variant", "shown"),
    [("sd", "auto", False), ("sd3", "auto", False), ("flux", "kontext", True), ("qwen_image", "qwen-image-edit", True)],
)
def test_they_are_what_a_sweep_draws(family, variant, shown, tmp_path):
    references = [pictures() / "1.png"] if shown else []
    config = config_of(family, tmp_path, variant=variant, references=references)
    host = SilentHost()
    train(config, host)
    samples = tmp_path / "run" / "samples"
    assert sorted(path.name for path in samples.iterdir()) == [
        f"step-{s:06d}-{n}.png" for s in (0, 2, 4) for n in (0, 1)
    ]
    assert [path for path in host.files if path.suffix == ".png"] == sorted(samples.iterdir())
    cells = {(cell.checkpoint, cell.prompt): cell.image for cell in sweep(config, SilentHost()).cells}
    for step, label in ((0, "base"), (2, "step 2"), (4, "step 4")):  # the first picture's seed is the sweep's
        drawn = pixels(samples / f"step-{step:06d}-0.png")
        assert np.abs(drawn - pixels(cells[label, "a cat"])).max() <= 1
    assert np.abs(pixels(samples / "step-000000-0.png") - pixels(samples / "step-000004-0.png")).max() > 2
    if shown:
        assert np.abs(pixels(samples / "step-000000-0.png") - pixels(samples / "step-000000-1.png")).max() > 0


def test_sizes_samplers_and_prompts_with_options_are_what_a_sweep_draws(tmp_path):
    library = tmp_path / "prompts.txt"
    library.write_text("a dog --w 64 --h 128 --s 3 --l 2 --d 9 --n dark\n")
    how = {
        **HOW, "prompts": ["a cat"], "sizes": "64x64, 128x64", "sampler": "dpmpp_2m", "scheduler": "karras", "guidance_rescale": 0.7,
        "prompt_library": str(library),
    }  # fmt: skip
    guidance = [{"scale": 3.0, "rescale": 0.7}]
    swept = {
        "steps": 2,
        "guidance": guidance,
        "negative_prompt": "blurred",
        "sampler": "dpmpp_2m",
        "scheduler": "karras",
    }
    swept |= {"prompts": ["a cat"], "seeds": "5", "sizes": "64x64, 128x64"}
    training = {"steps": 1, "save_every": 1, "batch_size": 2}
    config = config_of("sd", tmp_path, validation=how, sweep=swept, training=training)
    train(config, SilentHost())
    samples = tmp_path / "run" / "samples"
    cells = [cell for cell in sweep(config, SilentHost()).cells if cell.checkpoint == "base"]
    assert len(cells) == 2
    for number, cell in enumerate(sorted(cells, key=lambda cell: Image.open(cell.image).size)):
        assert np.abs(pixels(samples / f"step-000000-{number}.png") - pixels(cell.image)).max() <= 1
    with Image.open(samples / "step-000000-2.png") as own:
        assert own.size == (64, 128)
        assert own.text == {
            "prompt": "a dog", "step": "0", "weights": "current", "seed": "9", "sampling_steps": "3", "sampler": "dpmpp_2m",
            "scheduler": "karras", "guidance_scale": "2.0",
        }  # fmt: skip


def test_names_of_prompts_stand_in_the_names_of_samples(tmp_path):
    library = tmp_path / "prompts.json"
    library.write_text('{"<cat> no. 1": "a cat", "Äpfel": "apples"}', encoding="utf-8")
    config = config_of(
        "sd", tmp_path, prompts=(), validation={**HOW, "prompt_library": str(library), "sample_every": 4}
    )
    train(config, SilentHost())
    names = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert names == [f"step-{step:06d}-{name}.png" for step in (0, 4) for name in ("0-cat-no-1", "1-Äpfel")]


def test_text_encoders_that_are_trained_say_the_prompts(tmp_path):
    config = config_of("sd", tmp_path, text={"learning_rate": 0.01})
    train(config, SilentHost())
    cells = {(cell.checkpoint, cell.prompt): cell.image for cell in sweep(config, SilentHost()).cells}
    drawn = pixels(tmp_path / "run" / "samples" / "step-000004-0.png")
    assert np.abs(drawn - pixels(cells["step 4", "a cat"])).max() <= 1


def test_the_run_is_bit_for_bit_the_one_without(tmp_path):
    made = []
    for name, validation in (("with", {**HOW, "prompts": ["a cat"], "sample_every": 1}), ("without", {})):
        config = config_of("sd", tmp_path / name, validation=validation, network={"rank": 2, "dropout": 0.2})
        made.append(load_file(train(config, SilentHost()).lora))
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
    assert len(list((tmp_path / "with" / "run" / "samples").iterdir())) == 5


def test_the_average_is_rendered_too(tmp_path):
    config = config_of(
        "sd", tmp_path, training={"steps": 2, "save_every": 2, "batch_size": 2, "ema_decay": 0.5}, prompts=["a cat"]
    )
    train(config, SilentHost())
    names = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert names == ["step-000000-0.png", "step-000002-0-ema.png", "step-000002-0.png"]


@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        (
            {"prompts": ["a"], "references": ["x.png"]},
            ConfigError,
            r"validation\.references: sd sd1 does not accept reference",
        ),
        ({"prompts": ["a"], "width": 60}, ConfigError, r"validation\.width = 60: sd needs multiples of"),
        ({"sample_steps": 4}, ConfigError, r"validation\.sample_steps = 4 would do nothing: no prompt is rendered"),
        (
            {"prompt_library": "nowhere.json"},
            ConfigError,
            r"validation\.prompt_library = 'nowhere\.json' cannot be read",
        ),
    ],
)
def test_what_could_not_be_rendered_is_refused_first(validation, error, message, tmp_path):
    with pytest.raises(error, match=message):
        prepare(make_config("sd", tmp_path, validation=validation), SilentHost())


def test_a_reference_that_is_no_picture(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    config = config_of("flux", tmp_path, variant="kontext", references=[tmp_path / "x.png"])
    with pytest.raises(DataError, match=r"x\.png"):
        prepare(config, SilentHost())


class Interrupting(SilentHost):
    """Asks for a stop at the n-th question between passes."""

    def __init__(self, after):
        super().__init__()
        self.after, self.asked = after, 0

    def between_passes(self):
        self.asked += 1
        return self.asked >= self.after

    def should_stop(self):
        return self.asked >= self.after


def test_a_stop_ends_samples_between_their_steps_and_what_is_whole_is_kept(tmp_path):
    config = config_of("sd", tmp_path, training={"steps": 4, "save_every": 2, "batch_size": 1})
    host = Interrupting(after=config.validation.sample_steps + 1)  # in the second sample of the base
    with pytest.raises(StoppedError, match="before the first step"):
        train(config, host)
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["step-000000-0.png"]
    assert host.asked == host.after


def test_a_measurement_that_was_stopped_is_not_recorded_and_is_made_up_for(tmp_path):
    data = {"resolution": 64, "bucket_step": 32, "validation_split": 0.34}
    config = make_config("sd", tmp_path, data=data, training={"steps": 4, "save_every": 2, "batch_size": 1})
    with pytest.raises(StoppedError, match="before the first step"):
        train(config, Interrupting(after=3))
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert not metrics.exists() or "held_out" not in metrics.read_text()
    host = SilentHost()
    train(config, host)
    assert sorted(host.measures) == [0, 2, 4]
