"""What many tests share: tiny base models on disk, captioned pictures, a silent host, a ready configuration."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing may reach for the network
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("LORA_LOOM_PLAN", "0")  # half a second a run: tests of the prediction switch it on
os.environ.setdefault(
    "LORA_LOOM_TRIAL", "0"
)  # the dtype of runs in ComfyUI must not depend on the machine: a test switches it on

import functools
import random
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("here", deadline=None, max_examples=60)  # shared machines: a slow example is no failure
settings.load_profile("here")
torch.set_num_threads(1)

HOST_FIXTURES = Path(__file__).parent / "fixtures" / "host"
"""What a real ComfyUI answered, recorded by scripts/record_host_*.py."""

FAMILIES = ("chroma", "flux", "flux2", "krea2", "lumina2", "qwen_image", "qwen_image21", "sd", "sd3", "sdxl", "z_image")


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="lora-loom-tests-")


@functools.cache
def tiny_folder(family: str) -> Path:
    """The family's tiny base as a diffusers folder, made once."""
    from lora_loom.trainer import families
    from lora_loom.trainer.families.common.tiny import save_folder

    return save_folder(families.get(family).tiny(), Path(_scratch().name) / family)


@functools.cache
def pictures() -> Path:
    """Six small captioned pictures in two shapes."""
    from lora_loom.trainer.demo.scenes import random_scene

    folder, rng = Path(_scratch().name) / "pictures", random.Random(0)
    folder.mkdir()
    for number in range(6):
        scene = random_scene(rng)
        scene.draw().resize((96 if number % 2 else 64, 64)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(scene.caption)
        os.utime(folder / f"{number}.png", (0, 0))  # a file written this moment is read again the next time
    return folder


class SilentHost:
    """Records what it is told; stops when `stop_at` steps are done."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.steps, self.measures, self.files, self.text = stop_at, [], {}, [], []

    def stage(self, name, done, total):
        pass

    def step(self, result, total):
        self.steps.append(result)

    def log(self, text):
        self.text.append(text)

    def measured(self, step, values):
        self.measures[step] = dict(values)

    def saved(self, step, lora):
        self.files.append(lora)

    def sampled(self, step, pictures):
        self.files += pictures

    def between_steps(self):
        pass

    def between_passes(self):
        return False

    def should_save(self):
        return False

    def should_sample(self):
        return False

    def should_stop(self):
        return self.stop_at is not None and bool(self.steps) and self.steps[-1].step >= self.stop_at


def eject(adapter):
    """Put the base model's own modules back, to compare a file with what was trained."""
    from lora_loom.trainer.weights.frozen import replace_module

    for path, layer in adapter.layers.items():
        replace_module(adapter.root, path, layer.get_base_layer())


def make_config(family: str, root: Path, **sections):
    """A quick run of a tiny base; `sections` are merged into the tables."""
    from lora_loom.trainer.config.run import TrainConfig
    from lora_loom.trainer.config.toml import parse

    tables = {
        "name": "run",
        "model": {"base": str(tiny_folder(family))},
        "dataset": [{"folder": str(pictures())}],
        "data": {"resolution": 64, "bucket_step": 32},
        "network": {"rank": 2, "target_modules": "attention"},
        "optimizer": {"learning_rate": 1e-3},
        "training": {"steps": 6, "batch_size": 2, "save_every": 3},
        "memory": {"gradient_checkpointing": False},
        # One cache for all tests of a family: its keys say what made them, so sharing it is safe.
        "output": {"directory": str(root), "cache": str(Path(_scratch().name) / f"cache-{family}")},
    }
    for name, section in sections.items():
        tables[name] = {**tables.get(name, {}), **section} if isinstance(section, dict) else section
    return parse(tables, TrainConfig)


@pytest.fixture
def host():
    return SilentHost()


@pytest.fixture(autouse=True)
def _no_global_randomness_left_behind():
    """Tests that seed torch do not reach into each other."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
