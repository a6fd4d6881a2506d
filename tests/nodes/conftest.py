import importlib

import pytest

from .stubs import stubbed


@pytest.fixture
def host(tmp_path):
    """A function that imports a module of nodes/host over an empty ComfyUI folder; `host.base` is that folder."""
    for name in ("input", "output", "temp", "user", "models/loras"):
        (tmp_path / name).mkdir(parents=True)
    with stubbed(tmp_path):

        def load(name):
            return importlib.import_module(f"lora_loom.nodes.host.{name}")

        load.base = tmp_path
        yield load
