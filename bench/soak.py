"""`python -m bench soak --hours 8 --seed 0`: runs in a real ComfyUI, one after another, while somebody else uses the server.

What is done meanwhile is drawn from the seed: prompts, cancels, other checkpoints, LoRAs, /free, pauses, saves, samples, the
training graph queued again. Every run must be bit for bit the run that nobody disturbed, and the server's memory, file handles,
threads and maps must stay flat: the last quarter of the time is compared with the second one, when everything has been used once.
Needs COMFYUI_PATH and COMFYUI_PYTHON.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .common import comfyui, keep, report
from .host_queue import new_server

STEPS = 400
"""Of each run; the undisturbed one is made once."""
GROWTH = {"RSS, MB": 1.05, "handles": 1.05, "threads": 1.0, "maps": 1.05}
"""{figure of the server process: the largest ratio of its medians in the last and the second quarter}."""
SETTINGS: Mapping[str, Any] = {
    "steps": STEPS,
    "save_every": 100,
    "keep": 2,
    "ema": 0.9,
    "accumulation": 2,
    "mode": "background",
}


@dataclass
class Soak:
    """A server, the graphs that are queued in it, and what has been done and seen."""

    server: Any
    rng: random.Random
    base: dict[str, Any]
    done: Counter[str] = field(default_factory=Counter)
    seen: list[dict[str, float]] = field(default_factory=list)
    salt: int = 0
    name: str = ""

    def graph(self, name: str) -> dict[str, Any]:
        """The training graph of a run, with samples."""
        from tests.host.graphs import node, prompt, train

        sources = self.base["sources"]
        base = {
            **self.base,
            "validation": node("LoomValidation", vae=sources["vae"], clip=sources["clip"], prompts="a red thing", every=150, width=64, height=64, steps=2),
        }  # fmt: skip
        return dict(prompt(train(base, name, validation=["validation", 0], **SETTINGS)))

    def number(self) -> int:
        self.salt += 1
        return self.salt

    # What somebody else does. Each returns when the server has done it.

    def trivial(self) -> None:
        from tests.host.graphs import trivial

        self.server.run(trivial(self.number()))

    def picture(self) -> None:
        from tests.host.graphs import picture, prompt

        self.server.run(prompt(picture(self.base, seed=self.number())))

    def other_checkpoint(self) -> None:
        from tests.host.graphs import file, picture, prompt

        self.server.run(prompt(picture(file("sd1"), seed=self.number(), steps=1)))

    def with_lora(self) -> None:
        from tests.host.graphs import node, picture, prompt

        patched = node(
            "LoraLoaderModelOnly", model=self.base["sources"]["model"], lora_name="lora_loom/first/first.safetensors",
            strength_model=self.rng.choice([-1.0, 0.5, 5.0]),
        )  # fmt: skip
        self.server.run(prompt(picture({**self.base, "patched": patched}, model=["patched", 0], seed=self.number())))

    def cancel(self) -> None:
        from tests.host.graphs import picture, prompt

        queued = self.server.queue(prompt(picture(self.base, seed=self.number(), steps=200)))
        time.sleep(self.rng.uniform(0, 0.5))
        self.server.http.post("/interrupt")
        self.server.finish(queued)

    def free(self) -> None:
        self.server.http.post("/free", json={"unload_models": True, "free_memory": True})
        time.sleep(0.2)

    def pause(self) -> None:
        self.server.act(self.name, "pause")
        time.sleep(self.rng.uniform(0, 1))
        self.server.act(self.name, "resume")

    def save(self) -> None:
        self.server.act(self.name, "save")

    def sample(self) -> None:
        self.server.act(self.name, "sample")

    def queue_again(self) -> None:
        self.server.run(self.graph(self.name))

    def look(self) -> None:
        for route in ("runs", f"runs/{self.name}", f"runs/{self.name}/metrics?since=0"):
            self.server.http.get(f"/lora_loom/{route}").raise_for_status()

    @property
    def actions(self) -> Sequence[Callable[[], None]]:
        return (
            self.trivial, self.picture, self.other_checkpoint, self.with_lora, self.cancel, self.free, self.pause,
            self.save, self.sample, self.queue_again, self.look,
        )  # fmt: skip

    def disturbed_run(self, name: str) -> bytes:
        """One run to its end with actions on the way; its last adapter."""
        self.name = name
        self.server.run(self.graph(name))
        while self.server.run_state(name)["state"] not in ("finished", "failed"):
            action = self.rng.choice(self.actions)
            action()
            self.done[action.__name__] += 1
            self.seen.append({"at": time.monotonic(), **figures_of(self.server.process.pid)})
            time.sleep(self.rng.uniform(0, 1))
        return self.adapter(name)

    def adapter(self, name: str) -> bytes:
        """The last checkpoint's weights. Raises AssertionError, with the run's error, for a run that failed."""
        state = self.server.run_state(name)
        assert state["state"] == "finished", state
        folder: Path = self.server.base / "output" / "lora_loom" / name / "checkpoints" / f"step-{STEPS:06d}"
        return (folder / "adapter.safetensors").read_bytes()


def figures_of(pid: int) -> dict[str, float]:
    """Memory, handles, threads and maps of a process, as Linux counts them."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    maps = Path(f"/proc/{pid}/maps").read_text().count("\n")
    return {
        "RSS, MB": int(status["VmRSS"].split()[0]) / 1024,
        "handles": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(status["Threads"]),
        "maps": maps,
    }


def quarters(seen: Sequence[Mapping[str, float]], figure: str) -> tuple[float, float]:
    """Medians of a figure in the second and in the last quarter of the time."""
    start, end = seen[0]["at"], seen[-1]["at"]

    def median(low: float, high: float) -> float:
        part = [one[figure] for one in seen if low <= (one["at"] - start) / max(end - start, 1e-9) <= high]
        return statistics.median(part or [seen[-1][figure]])

    return median(0.25, 0.5), median(0.75, 1.0)


def summary(soak: Soak, equal: int, runs: int, hours: float) -> dict[str, Any]:
    found: dict[str, Any] = {"hours": hours, "runs": runs, "bit for bit as undisturbed": equal, "steps": runs * STEPS}
    found |= {f"{action}, times": count for action, count in sorted(soak.done.items())}
    for figure in GROWTH if soak.seen else ():
        second, last = quarters(soak.seen, figure)
        found |= {f"{figure}: second quarter, median": second, f"{figure}: last quarter, median": last}
        found[f"{figure}: most"] = max(one[figure] for one in soak.seen)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench soak")
    parser.add_argument("--hours", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(
        [argument for argument in sys.argv[1:] if argument != "soak"] if "soak" in sys.argv else []
    )
    if comfyui("soak") is None:
        return
    with tempfile.TemporaryDirectory(prefix="loom-soak-") as folder:
        server = new_server(Path(folder)).start()
        try:
            found = soaked(server, given.hours, given.seed)
        finally:
            server.stop()
    report("soak", found)
    assert found["bit for bit as undisturbed"] == found["runs"]
    for figure, limit in GROWTH.items():
        grown = found[f"{figure}: last quarter, median"] / found[f"{figure}: second quarter, median"]
        assert grown <= limit, f"{figure} grew to {grown:.3f} of what it was"


def soaked(server: Any, hours: float, seed: int) -> dict[str, Any]:
    """Runs until the time is over; what was done and seen is kept after each of them."""
    from tests.host.graphs import data, file, prompt, train

    soak = Soak(server=server, rng=random.Random(seed), base=data(file("sd3")))
    server.run(prompt(train(soak.base, "first", steps=2, save_every=2)))  # a LoRA to disturb with
    server.run(soak.graph("undisturbed"))
    server.wait_state("undisturbed", "finished", "failed", timeout=3600)
    expected, began, runs, equal = soak.adapter("undisturbed"), time.monotonic(), 0, 0
    found = summary(soak, 0, 0, 0.0)
    while time.monotonic() - began < hours * 3600:
        equal += soak.disturbed_run(f"soak-{runs}") == expected
        runs += 1
        found = summary(soak, equal, runs, round((time.monotonic() - began) / 3600, 3))
        keep("soak", found)
        with suppress(OSError):
            print(f"{found['hours']} h: {equal} of {runs} runs equal, {soak.seen[-1]}", flush=True)
    return found


if __name__ == "__main__":
    main()
