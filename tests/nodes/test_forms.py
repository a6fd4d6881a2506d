"""Which of ComfyUI's two forms of nodes the pack exports. What the forms say and do is compared in a real one: tests/host/test_v3.py."""

import json
import subprocess
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

import pytest

from lora_loom import nodes
from lora_loom.nodes.node import LoomNode

from .stubs import module

PROGRAM = """
import importlib, json, sys, tempfile, types
from pathlib import Path
sys.path.insert(0, {tests!r})
from dataclasses import make_dataclass
from stubs import host_modules, module
sys.modules.update(host_modules(Path(tempfile.mkdtemp())))
fields = {fields!r}
if fields is not None:
    sys.modules["comfy_api.latest"] = module("comfy_api.latest", io=module("io", Schema=make_dataclass("Schema", fields)))
before = set(sys.modules)
pack = importlib.import_module("lora_loom")
new = sorted(name for name in set(sys.modules) - before if name.startswith(("comfy_api", "lora_loom.nodes.host.v3")))
print(json.dumps([sorted(pack.__all__), sorted(name for name in vars(pack) if name.isupper() or name == "comfy_entrypoint"), new]))
"""
V1 = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
V3 = ["WEB_DIRECTORY", "comfy_entrypoint"]


@pytest.mark.parametrize(("fields", "form"), [(None, V1), (["node_id"], V1), (["node_id", "search_aliases"], V3)])
def test_exactly_one_form_is_exported_and_its_api_is_not_imported_for_it(fields, form):
    text = PROGRAM.format(tests=str(Path(__file__).parent), fields=fields)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [form, form, []]


@dataclass
class WithAliases:
    search_aliases: list = field(default_factory=list)


@pytest.mark.parametrize(
    ("api", "found"),
    [
        (None, False),
        (module("latest"), False),
        (module("latest", io=None), False),
        (module("latest", io=module("io", Schema=dict)), False),
        (module("latest", io=module("io", Schema=make_dataclass("Schema", ["node_id"]))), False),
        (module("latest", io=module("io", Schema=WithAliases)), True),
    ],
)
def test_the_look_at_comfyui_raises_nothing(monkeypatch, api, found):
    monkeypatch.setitem(sys.modules, "comfy_api.latest", api)
    assert nodes.has_v3() is found


SAID_IN_BOTH_FORMS = {
    "CATEGORY", "DESCRIPTION", "FUNCTION", "INPUT_TYPES", "IS_CHANGED", "OUTPUT_NODE", "OUTPUT_TOOLTIPS", "RETURN_NAMES",
    "RETURN_TYPES", "SEARCH_ALIASES", "TITLE", "VALIDATE_INPUTS",
}  # fmt: skip


@pytest.mark.parametrize("node", nodes.NODES)
def test_a_node_says_nothing_that_only_one_form_would_know(node: type[LoomNode]):
    """What ComfyUI reads of a node class (INPUT_IS_LIST, DEPRECATED, check_lazy_status …) is passed on by nodes/host/v3.py, name by name."""
    assert {name for name in dir(node) if name.isupper()} <= SAID_IN_BOTH_FORMS
    assert not hasattr(node, "check_lazy_status")
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
