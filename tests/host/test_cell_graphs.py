"""The graphs in the command line's cells are made of nodes that this ComfyUI has, linked and filled as it asks for."""

import pytest

from tests.sweep.test_cell_workflow import CASES, graphs

pytestmark = pytest.mark.comfyui
SINCE = {"TextEncodeQwenImageEditPlus"}
"""Nodes that the oldest versions do not have yet."""


@pytest.mark.parametrize(("family", "variant", "shown"), CASES)
def test_every_node_and_input_is_known(server, tmp_path, family, variant, shown):
    known = server.http.get("/object_info").json()
    options = {"guidance": [{"method": "apg", "scale": 3.0, "eta": 0.3}, {"scale": 3.0}]}
    for _, graph in graphs(family, variant, shown, tmp_path, **options):
        for name, made in graph.items():
            kind = made["class_type"]
            if kind not in known and kind in SINCE:
                pytest.skip(f"this version has no {kind}")
            form = known[kind]["input"]
            required, optional = form.get("required", {}), form.get("optional", {})
            assert required.keys() <= made["inputs"].keys() <= required.keys() | optional.keys(), f"{name}: {kind}"
            for key, value in made["inputs"].items():
                asked = {**required, **optional}[key][0]
                if isinstance(value, list):
                    source, output = value
                    assert known[graph[source]["class_type"]]["output"][output] == asked, f"{name}.{key}"
                elif isinstance(asked, list) and key == "type":
                    assert value in asked, f"{name}.{key}"
