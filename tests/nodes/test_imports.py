"""What it costs to have the pack installed: which libraries are imported, and when."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("diffusers", "peft", "transformers", "optimum", "quanto", "matplotlib", "torch")
PROGRAM = """
import importlib, json, sys, tempfile
from pathlib import Path
sys.path.insert(0, {tests!r})
from stubs import host_modules
sys.modules.update(host_modules(Path(tempfile.mkdtemp())))
found = {{}}
def heavy():
    return sorted(name for name in {heavy!r} if name in sys.modules)
pack = importlib.import_module("lora_loom")
found["registered"] = sorted(pack.NODE_CLASS_MAPPINGS)
found["own"] = sorted(name for name in sys.modules if name.startswith("lora_loom.trainer.config."))
for cls in pack.NODE_CLASS_MAPPINGS.values():
    cls.INPUT_TYPES()
found["after registration"] = heavy()
for path in sorted(Path({nodes!r}).rglob("*.py")):
    parts = path.relative_to({nodes!r}).with_suffix("").parts
    importlib.import_module(".".join(("lora_loom.nodes", *[p for p in parts if p != "__init__"])))
found["after every module"] = heavy()
print(json.dumps(found))
"""


def imported():
    text = PROGRAM.format(tests=str(Path(__file__).parent), heavy=HEAVY, nodes=str(ROOT / "nodes"))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_nothing_heavy_is_imported_until_a_node_runs():
    found = imported()
    assert "LoomTrain" in found["registered"]
    own = [name.removeprefix("lora_loom.trainer.config.") for name in found["own"]]
    assert own == ["aliases", "help_texts"]  # making the options' classes takes most of the time
    assert found["after registration"] == []
    assert set(found["after every module"]) <= {"torch"}  # host/ works with tensors; it is imported when a node runs


def test_requirements_are_the_packages_own_less_what_comfyui_brings_and_what_replaces_torch():
    """requirements.txt is what ComfyUI-Manager installs; it may not pin, nor touch the host's torch.

    optimum-quanto asks for torch 2.6: beside torch 2.5, pip took a newer torch, of PyPI, for it.
    """
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = {line.strip().replace('"', "'") for line in text.splitlines() if line.strip() and not line.startswith("#")}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = project.partition("\ndependencies = [")[2].partition("\n]")[0]
    ours = {line.strip().strip(',"') for line in declared.splitlines() if line.strip()}
    brought = {name for name in ours if name.startswith(("torch", "numpy", "pillow", "safetensors"))}
    replaces_torch = {name for name in ours if name.startswith("optimum-quanto")}
    assert replaces_torch
    assert lines == ours - brought - replaces_torch
    assert not any("==" in line for line in lines)
