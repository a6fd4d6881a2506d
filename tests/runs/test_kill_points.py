"""A save is one transaction: whatever a kill leaves undone of it is done by the next start, bit for bit.

The process is not killed once per point: before every file operation of one save the run's folder is copied as it then
stands, which is what kill -9 at that moment leaves (the kernel keeps what was written). Writes are cut in half too. Each
distinct copy is then resumed and compared with the unbroken run.
"""

import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.storage.atomic import TEMPORARY
from tests.conftest import SilentHost, make_config

OPERATIONS = ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink")
"""Of the module os: pathlib and shutil come down to them."""


class HalfWritten:
    """A file whose every write is done in two halves with a kill point between them."""

    def __init__(self, file, point):
        self.file, self.point = file, point

    def write(self, content):
        self.point("write")
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.point("half a write")
        return self.file.write(content[len(content) // 2 :])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


class KillPoints:
    """Copies `root` before every operation on a file below it while `recording`."""

    def __init__(self, root, copies):
        self.root, self.copies = root, copies
        self.recording, self.seen, self.states = False, [], {}

    def __call__(self, operation):
        if not self.recording:
            return
        self.recording = False  # copying is no part of the save
        state = contents(self.root)
        key = hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()
        if key not in self.states:
            self.states[key] = self.copies / str(len(self.states))
            shutil.copytree(self.root, self.states[key])
        self.seen.append(operation)
        self.recording = True

    @contextmanager
    def installed(self, monkeypatch):
        with monkeypatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(os, name, self._before(name, getattr(os, name)))
            opened = Path.open

            def open_file(path, mode="r", *args, **kwargs):
                if mode == "r" or self.root not in path.parents:
                    return opened(path, mode, *args, **kwargs)
                self(f"open {mode}")
                return HalfWritten(opened(path, mode, *args, **kwargs), self)

            patch.setattr(Path, "open", open_file)
            yield

    def _before(self, name, real):
        def operation(*args, **kwargs):
            self(name)
            return real(*args, **kwargs)

        return operation


class Save(SilentHost):
    """Records kill points from the end of step 2 to the end of step 3: one save with all that belongs to it."""

    def __init__(self, points):
        super().__init__()
        self.points = points

    def step(self, result, total):
        super().step(result, total)
        self.points.recording = result.step == 2


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def comparable(root):
    """What a run left, without the times of day and durations in it."""
    return {name: _timeless(root / name, content) for name, content in contents(root).items()}


def _timeless(path, content):
    if path.name == "run.json":
        varying = ("created", "updated", "costs", "environment", "config", "fixed")
        return {key: value for key, value in json.loads(content).items() if key not in varying}
    if path.name == "metrics.jsonl":
        return [{**json.loads(line), "seconds": 0} for line in content.splitlines()]
    if path.suffix == ".safetensors" and "checkpoints" not in path.parts:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key).float().numpy().tobytes() for key in sorted(file.keys())}
            return {**file.metadata(), "modelspec.date": ""}, tensors
    return content


def whole_run(root):
    """Three steps with everything that a save can consist of."""
    return make_config(
        "sd3",
        root,
        data={"validation_split": 0.34},
        training={"steps": 3, "batch_size": 1, "save_every": 1, "keep_checkpoints": 1, "ema_decay": 0.9},
        validation={
            "prompts": ["a toad"], "width": 32, "height": 32, "sample_steps": 1, "sample_every": 1, "patience": 9, "timesteps": 1,
        },
        output={"loras": str(root / "published")},
    )  # fmt: skip


def test_every_kill_point_of_a_save_is_made_good(tmp_path, monkeypatch):
    place, copies = tmp_path / "place", tmp_path / "copies"
    config = whole_run(place)
    points = KillPoints(place, copies)
    with points.installed(monkeypatch):
        train(config, Save(points))
    points.recording = False
    unbroken = comparable(place)
    assert {"write", "half a write", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir"} <= set(points.seen)
    assert len(points.seen) >= 79  # 41 different folders
    for folder in points.states.values():
        shutil.rmtree(place)
        shutil.copytree(folder, place)
        train(config, SilentHost())
        assert comparable(place) == unbroken, f"killed at {folder.name}"
    assert not list(place.rglob(f"*{TEMPORARY}"))
    assert run_folder(config).read()["state"] == "finished"
