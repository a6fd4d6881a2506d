"""In a running ComfyUI: seconds from queueing a prompt to its start while training runs, and what the pack costs at start-up.

The start is what a test node writes down when it runs; the aim is one training step at most, or what the same prompt takes
with the queue idle: every ten seconds ComfyUI collects garbage between two prompts, and the next one waits for that. The
cost at start-up is the pack's own line of ComfyUI's "Import times", and because that has one decimal, also what Python's
import clock says of the pack's modules; medians of five starts, with all nodes registered. Needs COMFYUI_PATH and COMFYUI_PYTHON.
"""

import os
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS, STARTS, GAP_S = 40, 5, 0.4


def new_server(folder: Path) -> Any:
    from tests.host.conftest import add_pictures
    from tests.host.server import COMFYUI, PYTHON, ROOT, Server

    from .common import run_in

    files = folder / "files"
    program = str(ROOT / "tests" / "host" / "make_checkpoints.py")
    run_in([PYTHON, program, str(files)], env={**os.environ, "COMFYUI_PATH": str(COMFYUI)})
    (folder / "models").mkdir()
    (folder / "models" / "diffusion_models").symlink_to(files)
    add_pictures(folder / "input" / "pics")
    return Server(folder)


def delays(server: Any, family: str) -> tuple[list[float], list[float], float]:
    """(seconds to the start of a prompt idle, the same while training, seconds per step)."""
    from tests.host.graphs import data, file, prompt, sleep, train

    def measure(salt: int) -> float:
        queued = time.time()
        record = server.finish(server.queue(sleep(0.0, salt=salt)))
        time.sleep(GAP_S)  # so that training goes on between the prompts
        return float(record["outputs"]["sleep"]["text"][0]) - queued

    idle = [measure(number) for number in range(PROMPTS)]
    name = f"queue-{family}"
    server.run(prompt(train(data(file(family)), name, steps=100_000, save_every=10_000, mode="background")))
    server.wait_step(name, 5)
    busy = [measure(PROMPTS + number) for number in range(PROMPTS)]
    seconds = float(server.run_state(name)["seconds"])
    server.act(name, "stop")
    server.wait_state(name, "stopped")
    return idle, busy, seconds


def import_seconds(server: Any) -> tuple[list[float], list[float]]:
    """(ComfyUI's own lines, which have one decimal; the same of Python's import clock, which counts microseconds)."""
    lines, clock = [], []
    os.environ["PYTHONPROFILEIMPORTTIME"] = "1"
    try:
        for _ in range(STARTS):
            server.stop()
            before = (server.base / "server.log").stat().st_size
            server.start()
            text = (server.base / "server.log").read_text()[before:]
            lines += [float(value) for value in re.findall(r"([\d.]+) seconds:? .*custom_nodes/lora_loom", text)]
            clock += [int(value) / 1e6 for value in re.findall(r"\| +(\d+) \| +\S*custom_nodes\S*lora_loom\.nodes$", text, re.M)]  # fmt: skip
    finally:
        del os.environ["PYTHONPROFILEIMPORTTIME"]
    return lines, clock


def main() -> None:
    from .common import comfyui, report

    if comfyui("host_queue") is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        server = new_server(Path(folder)).start()
        figures: dict[str, Any] = {}
        try:
            for family in ("sd1", "sd3"):
                idle, busy, seconds = delays(server, family)
                figures |= {
                    f"{family}: s to start, queue idle, median": statistics.median(idle),
                    f"{family}: s to start, queue idle, largest": max(idle),
                    f"{family}: s to start while training, median": statistics.median(busy),
                    f"{family}: s to start while training, largest": max(busy),
                    f"{family}: s to start while training, largest but one": sorted(busy)[-2],
                    f"{family}: s per training step": seconds,
                }
            lines, clock = import_seconds(server)
            figures["import of the pack, s, ComfyUI's own line, median of five"] = statistics.median(lines)
            figures["import of the pack, s, Python's import clock, median of five"] = statistics.median(clock)
        finally:
            server.stop()
    report("host_queue", figures)
