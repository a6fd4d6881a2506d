"""What it costs to have LoRA Loom installed: import times and `lora-loom --help`, each in a fresh process."""

import statistics
import subprocess
import sys
import time

from .common import report

CODE = "import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"


def import_seconds(module: str, rounds: int = 9) -> float:
    """Median; the first run (which writes byte code) is thrown away."""
    command = [sys.executable, "-c", CODE.format(module=module)]
    times = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(rounds + 1)
    ]
    return statistics.median(times[1:])


def command_seconds(arguments: list[str], rounds: int = 9) -> float:
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lora_loom.trainer", *arguments], capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    report(
        "startup",
        {
            "import lora_loom, ms (aim < 50)": 1e3 * import_seconds("lora_loom"),
            "import lora_loom.trainer.config, ms (aim < 50)": 1e3 * import_seconds("lora_loom.trainer.config.run"),
            "lora-loom --help, s (aim < 0.5)": command_seconds(["--help"]),
            "python -c pass, s": bare_python(),
        },
    )


def bare_python(rounds: int = 9) -> float:
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
