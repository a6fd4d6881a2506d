"""Measuring on a shared machine: variants take turns, medians count, ratios are pairwise."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_loom.trainer.demo.demo import ASSETS

RESULTS = Path(".bench")


def two_blocks() -> Path:
    """The demo base of versions up to 0.1, put together with the autoencoder of today's, which is the same.

    Figures of different versions compare only on one base, so that bench/ keeps this one.
    """
    folder = (RESULTS / "two_blocks").resolve()
    if not (folder / "vae").is_dir():
        shutil.copytree(Path(__file__).with_name("two_blocks"), folder, dirs_exist_ok=True)
        made = shutil.copytree(ASSETS / "vae", folder / "vae.part", dirs_exist_ok=True)
        made.rename(folder / "vae")  # last, so that a copy that was cut off is made again
    return folder


def interleaved(
    variants: dict[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of every variant, called in turn A B A B …, so that a slow moment hits all of them.

    `clock=time.process_time` counts what the processor worked for this process: others then hardly matter.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmup + rounds):
        for name, call in variants.items():
            started = clock()
            call()
            if turn >= warmup:
                times[name].append(clock() - started)
    return times


def ratio(first: list[float], second: list[float]) -> float:
    """Median of the pairwise ratios."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def comfyui(name: str) -> tuple[Path, str] | None:
    """(ComfyUI's folder, its Python); None, with a line of text, where COMFYUI_PATH names none. Exits if it names a wrong one."""
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        print(f"== {name}: left out, set COMFYUI_PATH and COMFYUI_PYTHON")
        return None
    folder, python = Path(given).expanduser(), os.environ.get("COMFYUI_PYTHON", sys.executable)
    if not (folder / "comfy").is_dir() or not (folder / "main.py").is_file():
        sys.exit(f"error: COMFYUI_PATH = {given!r}: there is no ComfyUI; name the folder that its main.py is in")
    if shutil.which(python) is None:
        sys.exit(f"error: COMFYUI_PYTHON = {python!r} is no program: name the Python that ComfyUI runs with")
    return folder, python


def run_in(command: Sequence[str], **options: Any) -> str:
    """What a program prints. Exits with the end of its complaint if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-8:]
        sys.exit("\n".join([f"error: {' '.join(command)} ended with code {done.returncode}:", *last]))
    return done.stdout


def hardware() -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit,
    }


def report(name: str, figures: dict[str, Any]) -> None:
    """Print a table and keep it as .bench/<name>.json."""
    print(f"== {name}")
    for key, value in figures.items():
        print(f"  {key:55} {value:.4g}" if isinstance(value, float) else f"  {key:55} {value}")
    keep(name, figures)


def keep(name: str, figures: dict[str, Any]) -> None:
    """Write .bench/<name>.json, also half-way: a benchmark that is cut off keeps what it has measured."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**figures, "hardware": hardware()}, indent=1) + "\n")
