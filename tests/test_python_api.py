"""docs/python-api.md is true: its examples run as they stand, and the interface has what it lists."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import lora_loom.trainer as api
from tests.comfy_api.fake import GRAPH, FakeComfyUI
from tests.conftest import pictures

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
TRAINING, SERVER = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A clone's root as the example sees it, with photos."""
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "my-cat").symlink_to(pictures())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_example(folder, text):
    """Run an example as its reader would: pasted into a file of its own."""
    file = folder / "example.py"
    file.write_text(text, encoding="utf-8")
    runpy.run_path(str(file))


def test_the_example_of_training_runs(place, capsys):
    run_example(place, TRAINING)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("finished 8 ")
    assert (place / told[1]).suffix == ".png"
    assert (place / told[1]).is_file()
    assert any(line.startswith("{8: ") for line in told)
    assert (place / "output" / "small.safetensors").is_file()


def test_the_example_of_a_server_runs(place, capsys, monkeypatch):
    fake = FakeComfyUI()
    fake.runs["dog"] = {"name": "dog", "state": "finished", "step": 9}
    monkeypatch.setenv("LORA_LOOM_SERVER", fake.url)
    (place / "flow.api.json").write_text(json.dumps(GRAPH))
    try:
        run_example(place, SERVER)
    finally:
        fake.kill()
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["cat-000100", "cat-000900", "cat-001000", "dog"]
    assert len(list((place / "output" / "images").glob("*.png"))) == 3
    assert fake.ran[0]["3"]["inputs"]["steps"] == 12


def test_every_name_is_there_and_the_page_names_no_other():
    assert set(api.__all__) == set(api._FROM)
    for name in api.__all__:
        assert callable(getattr(api, name)), name
    imported = re.findall(r"from lora_loom\.trainer import \(?([^()]*?)(?:\)|\n\n)", TEXT)
    names = {name.strip() for line in imported for name in line.replace("\n", " ").split(",") if name.strip()}
    assert names
    assert names <= set(api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        api.nothing  # noqa: B018


def test_importing_it_costs_nothing():
    program = "import sys, lora_loom.trainer; print(sorted({'torch', 'httpx', 'pydantic', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ})  # fmt: skip
    assert done.stdout.strip() == "[]"
