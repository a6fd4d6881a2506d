"""The memory plan against what runs then hold: toys of every family, with settings that are drawn by chance.

The plan is made on shapes, before anything is loaded; the second meter counts all live storages of the run's first steps. Each turn
takes a family and draws what decides about memory: which blocks are recomputed, what waits in RAM, a streamed base, its dtype and
quantization, products in 8 bits, the adapter's kind, rank and layers, batch, accumulation, EMA, optimizer, samples.

    python -m bench memory --turns 10 --seed 0            ten turns of every family
    LOOM_BENCH=sd,flux python -m bench memory             only these families
"""

import argparse
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from .common import keep

LIMIT = 0.1
"""Largest share by which a plan may be off."""

DRAWS: dict[tuple[str, str], list[Any]] = {
    ("memory", "checkpoint"): ["all", "all", "off", "every 2", "every 3", "ffn"],
    ("memory", "checkpoint_offload"): [False, False, True],
    ("memory", "base"): ["auto", "resident", "stream"],
    ("model", "dtype"): ["auto", "bfloat16"],
    ("model", "quantize"): ["none", "none", "none", "int8", "nf4"],
    ("model", "matmul"): ["off", "off", "off", "int8"],
    ("training", "precision"): ["float32", "bfloat16"],
    ("training", "batch_size"): [1, 2, 3],
    ("training", "gradient_accumulation_steps"): [1, 1, 2],
    ("training", "ema_decay"): [0.0, 0.99],
    ("network", "kind"): ["lora", "lora", "dora", "loha", "lokr", "glora", "oft", "diff"],
    ("network", "rank"): [1, 4, 32],
    ("network", "target_modules"): ["default", "attention", "all"],
    ("optimizer", "name"): ["adamw", "adamw", "adamw8bit", "adafactor", "prodigy"],
    ("objective", "guided_loss"): ["off", "off", "off", "target", "output"],
}


def drawn(source: random.Random) -> dict[str, dict[str, Any]]:
    """Settings that go together."""
    found: dict[str, dict[str, Any]] = {}
    for (section, name), values in DRAWS.items():
        found.setdefault(section, {})[name] = source.choice(values)
    memory, model = found["memory"], found["model"]
    memory["gradient_checkpointing"] = memory["checkpoint"] != "off"
    memory["checkpoint_offload"] &= memory["gradient_checkpointing"]
    if model["quantize"] != "none":
        model["matmul"] = "off"
    if model["quantize"] != "none" or model["matmul"] != "off":
        model["dtype"] = "auto"
    if found["optimizer"]["name"] == "prodigy":
        found["optimizer"]["learning_rate"] = 1.0
    if source.random() < 0.25:
        found["validation"] = {"prompts": ["a red thing"], "sample_steps": 1, "width": 64, "height": 64}
    return found


def text(settings: dict[str, dict[str, Any]]) -> str:
    """In a line."""
    return ", ".join(f"{name}={value}" for section in settings.values() for name, value in section.items())


def main() -> None:
    from lora_loom.trainer import families
    from lora_loom.trainer.errors import LoomError
    from tests.conftest import tiny_folder
    from tests.memory_plan.holding import compared

    asked = argparse.ArgumentParser(prog="bench memory")
    asked.add_argument("--turns", type=int, default=3)
    asked.add_argument("--seed", type=int, default=0)
    options = asked.parse_known_args()[0]
    torch.set_num_threads(1)
    chosen = [name for name in os.environ.get("LOOM_BENCH", "").split(",") if name] or list(families.all_families())
    rows: dict[str, Any] = {}
    tried, refused, off = 0, 0, []
    for turn in range(options.turns):
        for family in chosen:
            settings = drawn(random.Random(f"{options.seed} {turn} {family}"))
            settings["model"]["base"] = str(tiny_folder(family))
            name = f"{family} {turn}: {text(settings)}"
            with tempfile.TemporaryDirectory() as root:
                try:
                    plan, held = compared(Path(root), family, **settings)
                except LoomError as error:  # settings that this family does not take
                    refused += 1
                    print(f"{name}\n  refused: {str(error)[:150]}", flush=True)
                    continue
                except Exception as error:  # noqa: BLE001 - a run on which the plan fails trains without one
                    print(f"{name}\n  NO PLAN: {type(error).__name__}: {str(error)[:300]}", flush=True)
                    off.append(name)
                    continue
            tried += 1
            apart = plan.parts.total / held - 1
            if abs(apart) > LIMIT:
                off.append(name)
            rows[name] = apart
            print(f"{apart:+.1%}{' OFF' if abs(apart) > LIMIT else ''} {name} {plan.parts}", flush=True)
            keep("memory", {"tried": tried, "off": off, "apart": rows})
    worst = max((abs(one) for one in rows.values()), default=0.0)
    print(f"{tried} plans, {refused} refused settings; the worst is {worst:.1%} off, {len(off)} more than {LIMIT:.0%}")


if __name__ == "__main__":
    main()
