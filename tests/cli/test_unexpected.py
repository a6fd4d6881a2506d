"""An error that nobody foresaw is one line, with its traceback in a file."""

from pathlib import Path

import pytest

from lora_loom.trainer.cli import main as cli
from lora_loom.trainer.cli.common import command_host


def fails(*_, **__):
    raise KeyError("what")


def test_it_is_one_line_that_names_a_file_with_the_traceback(capsys, monkeypatch):
    monkeypatch.setattr("lora_loom.trainer.lora_tools.inspect.inspect", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", "x.safetensors"])
    assert ended.value.code == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: unexpected KeyError: 'what'. This is a mistake of LoRA Loom")
    assert "Traceback" not in line
    file = Path(line.partition("is in ")[2].partition(";")[0])
    assert "KeyError" in file.read_text()
    file.unlink()


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("LORA_LOOM_TRACEBACK", "1")
    with pytest.raises(KeyError), command_host(False):
        fails()
