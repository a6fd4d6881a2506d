"""In a running ComfyUI: seconds from queueing a prompt to its start while training runs, and what the pack costs at start-up.

The start is what a test node writes down when it runs; the aim is one training step at most. The cost at start-up is the
pack's own line of ComfyUI's "Import times", median of five starts, with all nodes registered. Needs COMFYUI_PATH and
COMFYUI_PYTHON.
"""

import os
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS, STARTS = 20, 5


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
        return float(record["outputs"]["sleep"]["text"][0]) - queued

    idle = [measure(number) for number in range(PROMPTS)]
    name = f"queue-{family}"
    server.run(prompt(train(data(file(family)), name, steps=100_000, save_every=10_000, mode="background")))
    server.wait_step(name, 5)
    busy = []
    for number in range(PROMPTS):
        busy.append(measure(PROMPTS + number))
        time.sleep(0.3)  # so that training goes on between the prompts
    seconds = float(server.run_state(name)["seconds"])
    server.act(name, "stop")
    server.wait_state(name, "stopped")
    return idle, busy, seconds


def import_seconds(server: Any) -> list[float]:
    """ComfyUI writes its import times with one decimal; where the pack is below that, its line says 0.0."""
    found = []
    for _ in range(STARTS):
        before = len(server.tail()) and (server.base / "server.log").stat().st_size
        server.stop()
        server.start()
        text = (server.base / "server.log").read_text()[before:]
        found += [float(value) for value in re.findall(r"([\d.]+) seconds:? .*custom_nodes/lora_loom", text)]
    return found


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
                    f"{family}: s to start while training, median": statistics.median(busy),
                    f"{family}: s to start while training, largest": max(busy),
                    f"{family}: s per training step": seconds,
                }
            figures["import of the pack, s, median of five"] = statistics.median(import_seconds(server))
        finally:
            server.stop()
    report("host_queue", figures)
