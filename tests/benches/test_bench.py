"""The benchmarks' own errors: a wrong ComfyUI is one plain line, none at all leaves them out."""

import sys

import pytest

from bench import host_queue, host_speed
from bench.common import comfyui, run_in


@pytest.mark.parametrize("main", [host_speed.main, host_queue.main])
def test_a_wrong_path_is_told_before_anything_starts(main, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="error: COMFYUI_PATH = .*: there is no ComfyUI; name the folder that its main.py"):  # fmt: skip
        main()
    monkeypatch.delenv("COMFYUI_PATH")
    main()
    assert "left out, set COMFYUI_PATH" in capsys.readouterr().out


def test_a_wrong_python_and_a_failing_program(monkeypatch, tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").write_text("")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "no-python"))
    with pytest.raises(SystemExit, match="no-python' is no program"):
        comfyui("x")
    with pytest.raises(SystemExit, match=r"ended with code 1:\n(?s:.*)ValueError: plain"):
        run_in([sys.executable, "-c", "raise ValueError('plain')"])
