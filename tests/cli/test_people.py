"""The command line for people: what fits 80 columns, first files, lists, what Ctrl-C is called."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from lora_loom.trainer.base_model import usual_side
from lora_loom.trainer.cli import console as hosts
from lora_loom.trainer.cli.common import fail, say_loading
from lora_loom.trainer.cli.main import app
from lora_loom.trainer.cli.quiet import TALKATIVE
from lora_loom.trainer.config.run import TrainConfig
from lora_loom.trainer.config.toml import parse
from lora_loom.trainer.errors import RunError, StoppedError
from lora_loom.trainer.runs.run_folder import RunFolder
from lora_loom.trainer.types import StepResult
from tests.conftest import make_config

runner = CliRunner()
RESULT = StepResult(step=1234, loss=0.51273, learning_rate=1e-4, grad_norm=1.0, seconds=12.26)


def run(*arguments, **options):
    return runner.invoke(app, [str(argument) for argument in arguments], **options)


def test_the_help_fits_80_columns_and_no_command_is_cut():
    for arguments in ((), ("train",), ("sweep",), ("new",), ("list",), ("runs",), ("cache",)):
        lines = run(*arguments, "--help", env={"COLUMNS": "80"}).stdout.splitlines()
        assert max(map(len, lines)) <= 80, arguments
        assert not [line for line in lines if line.startswith("  ") and line.endswith("...")], arguments
    assert run("-h").stdout == run("--help").stdout


def test_the_version():
    assert run("--version").stdout.startswith("lora-loom ")


@pytest.mark.parametrize(("width", "has_rate"), [(80, False), (120, True)])
def test_the_progress_of_a_run_is_whole_on_one_line(width, has_rate, monkeypatch):
    monkeypatch.setattr(hosts, "StopSignal", None)
    host = hosts.ConsoleHost(None)
    host.console = Console(width=width, force_terminal=True, file=io.StringIO(), color_system=None)
    host.progress = hosts.make_progress(host.console)
    host.step(RESULT, 12000)
    shown = Console(width=width, file=io.StringIO(), color_system=None)
    shown.print(host.progress.get_renderable())
    [line] = shown.file.getvalue().rstrip("\n").split("\n")
    assert "…" not in line
    assert "1234/12000" in line
    assert "loss 0.5127" in line
    assert "12.26 s/step" in line
    assert ("lr 1.00e-04" in line) == has_rate


def test_a_first_file_is_written_by_asking(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "base.safetensors").write_bytes(b"")
    file = tmp_path / "cat.toml"
    answers = ["", "nowhere", str(tmp_path / "base.safetensors"), str(tmp_path / "photos"), "zwx cat", "", "300"]
    result = run("new", file, input="\n".join(answers) + "\n")
    assert result.exit_code == 0, result.output
    assert "nowhere does not exist" in result.output
    config = parse(tomllib.loads(file.read_text()), TrainConfig)
    assert (config.name, config.training.steps, config.dataset[0].trigger) == ("cat", 300, "zwx cat")
    assert config.data.resolution == 1024, "what an unreadable base model is taken for"
    assert config.model.base == str(tmp_path / "base.safetensors")
    again = run("new", file)
    assert again.exit_code == 2
    assert "exists: name another file" in again.output


def test_a_first_file_needs_no_questions_when_all_is_said(tmp_path):
    file = tmp_path / "x.toml"
    result = run(
        "new",
        file,
        "--name",
        "dog",
        "--base",
        tmp_path,
        "--images",
        tmp_path,
        "--trigger",
        "",
        "--resolution",
        512,
        "--steps",
        5,
    )
    assert result.exit_code == 0, result.output
    assert "trigger" not in file.read_text()
    bad = run("new", tmp_path / "y.toml", "--name", "../x", "--base", tmp_path, "--images", tmp_path, "--trigger", "", "--resolution", 512, "--steps", 5)  # fmt: skip
    assert bad.exit_code == 2
    assert not (tmp_path / "y.toml").exists()


def test_the_first_file_for_the_demo_base_fits_it(tmp_path):
    images = tmp_path / "photos"
    images.mkdir()
    Image.new("RGB", (128, 128), "red").save(images / "a.png")
    (images / "a.txt").write_text("a red square")
    file, demo = tmp_path / "toad.toml", Path(__file__).parents[2] / "assets" / "demo"
    result = run("new", file, input="\n".join(["", str(demo), str(images), "", "", "1"]) + "\n")
    assert "Resolution in pixels [128]" in result.output
    assert parse(tomllib.loads(file.read_text()), TrainConfig).data.resolution == 128
    planned = run("plan", file)
    assert planned.exit_code == 0, planned.output


@pytest.mark.parametrize(("family", "side"), [("sd", 512), ("sdxl", 1024)])
def test_what_a_base_model_is_made_for_is_read_from_its_headers(tmp_path, family, side):
    config = make_config(family, tmp_path, training={"steps": 1})
    folder = Path(config.model.base)
    for name in ("unet", "transformer"):
        if (path := folder / name / "config.json").is_file():
            path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": None}))
    assert usual_side(str(folder)) == side
    assert usual_side(str(tmp_path / "nowhere")) == 1024


def test_the_runs_of_a_folder_are_listed(tmp_path):
    for name, state in (("old", "finished"), ("new", "stopped")):
        folder = RunFolder(tmp_path / name)
        folder.start({"training": {"steps": 9}}, {}, {})
        folder.update(state=state, step=4)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    lines = run("list", tmp_path).stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["new", "old", "bad"]
    assert "stopped" in lines[0]
    assert "4/9" in lines[0]
    assert "damaged" in lines[2]
    assert run("list", tmp_path / "none").exit_code == 5


def test_what_was_asked_for_is_no_error(capsys):
    with pytest.raises(typer.Exit) as ended:
        fail(StoppedError("stopped while encoding"), False)
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "stopped while encoding\n"
    with pytest.raises(typer.Exit):
        fail(RunError("the disk is full"), False)
    assert capsys.readouterr().err == "error: the disk is full\n"


@pytest.mark.parametrize(
    ("is_terminal", "as_json", "said"), [(True, False, "loading …\n"), (False, False, ""), (True, True, "")]
)
def test_a_terminal_is_told_at_once_that_something_happens(is_terminal, as_json, said, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    say_loading(as_json)
    assert stream.getvalue() == said


LEVELS = """
import logging
from lora_loom.trainer.cli.quiet import TALKATIVE, silence_libraries
silence_libraries()
import bitsandbytes, diffusers, transformers
from diffusers import AutoencoderTiny
print({name: logging.getLogger(name).getEffectiveLevel() for name in TALKATIVE})
"""


def test_other_libraries_do_not_write_between_our_lines():
    """Importing them sets the levels of their loggers anew."""
    done = subprocess.run([sys.executable, "-c", LEVELS], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == str(dict.fromkeys(TALKATIVE, logging.ERROR))
    assert done.stderr == ""


@pytest.mark.parametrize("module", ["lora_loom.trainer", "lora_loom.trainer.cli.main"])
def test_a_module_of_the_command_line_is_the_command_line(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lora-loom ")
