"""Skip-layer guidance of a sweep in the graph is ComfyUI's node, bit for bit."""

import pytest

from .programs import run_inside

pytestmark = pytest.mark.comfyui


def test_cells_are_guided_as_by_comfyuis_node():
    made = run_inside("skip_layers")
    assert made["equal"]
    assert made["changed"] > 0.01
