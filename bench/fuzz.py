"""Mutated inputs of every kind: `python -m bench fuzz --count 20000 --seed 0`.

Every input is one of a seed and a number, so that a run goes on where it was interrupted (`.bench/fuzz-SEED.json`), and a failure can be
tried again alone (`--kind Loras --only 17`). No traceback, none over 5 s or 1 GB.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .common import RESULTS, report

BATCH = 100
"""Inputs between two notes of how far it came; each batch has a process of its own."""


def batch(name: str, numbers: range, seed: int, results: Any) -> None:
    """Try some inputs of a kind in this process."""
    from tests.fuzzing import KINDS, tried

    with tempfile.TemporaryDirectory(prefix="loom-fuzz-") as folder:
        kind = next(one for one in KINDS if one.__name__ == name)(Path(folder))
        results.put([(number, tried(kind, number, seed)) for number in numbers])


def try_batch(name: str, numbers: range, seed: int) -> list[tuple[int, str]]:
    """The outcome of each input; a process that died is one for all of them."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=batch, args=(name, numbers, seed, results))
    child.start()
    while child.is_alive() and results.empty():
        time.sleep(0.05)
    found = results.get() if not results.empty() else [(numbers[0], f"the process ended with {child.exitcode}")]
    child.join()
    return list(found)


def main() -> None:
    from tests.fuzzing import KINDS

    parser = argparse.ArgumentParser(prog="python -m bench fuzz")
    parser.add_argument("--count", type=int, default=20_000, help="inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--kind", default="", help="one kind alone")
    parser.add_argument("--only", type=int, default=-1, help="one input of a kind alone")
    given = parser.parse_args([word for word in sys.argv[1:] if word != "fuzz"] if "fuzz" in sys.argv else [])
    names = [kind.__name__ for kind in KINDS if given.kind in ("", kind.__name__)]
    if given.only >= 0:
        print(try_batch(names[0], range(given.only, given.only + 1), given.seed))
        return
    file = RESULTS / f"fuzz-{given.seed}.json"
    state: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"done": {}, "failed": []}
    each, end = given.count // len(names), time.monotonic() + 60 * given.minutes
    while time.monotonic() < end and any(state["done"].get(name, {}).get("tried", 0) < each for name in names):
        for name in names:
            counts = Counter(state["done"].get(name, {}))
            numbers = range(counts["tried"], min(counts["tried"] + BATCH, each))
            if not numbers or time.monotonic() >= end:
                continue
            for number, result in try_batch(name, numbers, given.seed):
                counts[{"": "read", "refused": "refused"}.get(result, "failed")] += 1
                if result not in ("", "refused"):
                    state["failed"].append([name, number, result])
            counts["tried"] += len(numbers)
            state["done"][name] = dict(counts)
            RESULTS.mkdir(exist_ok=True)
            file.write_text(json.dumps(state, indent=1))
    figures = {f"{name}: {what}": number for name, counts in state["done"].items() for what, number in counts.items()}
    report("fuzz", {"seed": given.seed, "tried": sum(c["tried"] for c in state["done"].values()), "failed": len(state["failed"]), **figures})  # fmt: skip
    for name, number, result in state["failed"][:20]:
        print(name, number, result)
    assert not state["failed"]


if __name__ == "__main__":
    main()
