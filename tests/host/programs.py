"""Start a program with a real ComfyUI's Python and read the JSON it prints."""

import json
import os
import subprocess

from .conftest import need_comfyui
from .server import COMFYUI, PYTHON, ROOT


def run_inside(name, *arguments):
    """The last line of tests.host.inside.<name>, parsed. Raises AssertionError with the program's last words."""
    return run_program(f"tests.host.inside.{name}", *arguments)


def recorded_now(name):
    """What scripts.<name> records of this ComfyUI."""
    return run_program(f"scripts.{name}", "-")


def run_program(module, *arguments):
    """The last line that a module prints, parsed. Raises AssertionError with its last words."""
    need_comfyui()
    done = subprocess.run(
        [PYTHON, "-m", module, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "COMFYUI_PATH": str(COMFYUI), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
