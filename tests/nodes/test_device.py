"""Before training the model is where it trains: ComfyUI loads it, unless it pages weights by itself."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lora_loom.nodes.host.backend.denoiser import bring_to_device


@pytest.fixture
def loaded(monkeypatch):
    """What ComfyUI was asked to load."""
    asked = []
    management = ModuleType("comfy.model_management")
    management.load_models_gpu = asked.extend
    monkeypatch.setitem(sys.modules, "comfy", ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    return asked


def test_a_model_that_a_loader_left_in_ram_is_loaded(loaded):
    old, new = (
        SimpleNamespace(patches={}),
        SimpleNamespace(patches={}, is_dynamic=lambda: False),
    )  # the first as of versions without paging
    bring_to_device(old)
    bring_to_device(new)
    assert loaded == [old, new]


def test_a_paged_model_is_left_where_it_is(loaded):
    bring_to_device(SimpleNamespace(is_dynamic=lambda: True))
    assert loaded == []
