"""What is learnt per step with the settings that trainers come with: validation loss on toy bases, ours next to our peers'.

All settings run in this trainer on the same images, captions and steps (200, batch 1, fp32, or as LOOM_STEPS and LOOM_BATCH say): bench/peers.py has them, with their
sources and what is not emulated. The bases are the demo's, of SD3's class, and two that bench/bases.py trains when they are
first asked for, a UNet and one of Flux's class. Both rulers are reported (docs/scores.md): evenly spread noise levels, and those
that the family's shift spreads. Each run is a line of .bench/learning.jsonl when it ends, and is not measured again.

    python -m bench learning                                 five seeds, all bases, all settings
    LOOM_STEPS=1000 LOOM_BENCH=3 LOOM_ROWS="ours, the defaults" python -m bench learning
    LOOM_BENCH=2 LOOM_BASES=demo,unet LOOM_ROWS="ours|ai-toolkit" python -m bench learning
"""

import json
import os
import re
import statistics
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_loom.trainer.cli.console import QuietHost
from lora_loom.trainer.config.run import TrainConfig
from lora_loom.trainer.config.toml import parse
from lora_loom.trainer.demo.demo import write_data
from lora_loom.trainer.runs.headless import run_folder, train

from .bases import base
from .common import RESULTS, report
from .peers import PEERS, Settings

STEPS, BATCH = int(os.environ.get("LOOM_STEPS", "200")), int(os.environ.get("LOOM_BATCH", "1"))
CELLS = RESULTS / "learning.jsonl"
RULERS = {"even levels": "held_out_even", "family's levels": "held_out"}
Losses = dict[str, float]


def config_of(settings: Settings, model: Path, folder: Path, name: str, seed: int) -> TrainConfig:
    """A run with these settings, on a base and the images in a folder."""
    tables = {key: dict(table) for key, table in settings.tables.items()}
    dataset = [
        {"folder": str(folder / "images"), **tables.pop("dataset", {})},
        {"folder": str(folder / "held_out"), "role": "validation"},
    ]
    training = {"steps": STEPS, "batch_size": BATCH, "save_every": STEPS, "seed": seed, "precision": "float32"}
    return parse(
        {
            **tables,
            "name": name,
            "model": {"base": str(model)},
            "dataset": dataset,
            "data": {"resolution": 128},
            "training": {**training, **tables.get("training", {})},
            "memory": {"gradient_checkpointing": False},
            "validation": {"timesteps": 8},
            "output": {"directory": str(folder / "runs"), "dtype": "float32"},
        },
        TrainConfig,
    )


def measure(config: TrainConfig) -> dict[str, Losses]:
    """Validation losses of the base and of the LoRA file at the end, by both rulers."""
    train(config, QuietHost())
    lines = [line for line in run_folder(config).read_metrics() if "held_out" in line]
    return {
        name: {ruler: line.get(f"{key}_ema", line[key]) for ruler, key in RULERS.items()}
        for name, line in (("base", lines[0]), ("LoRA", lines[-1]))
    }


def measured_before() -> dict[str, dict[str, Losses]]:
    """{"base, trainer, seed": losses} of earlier calls; a line that was cut off is left out."""
    if not CELLS.is_file():
        return {}
    runs = {}
    for text in CELLS.read_text().splitlines():
        with suppress(ValueError, KeyError):
            line = json.loads(text)
            runs[line["cell"]] = {"base": line["base"], "LoRA": line["LoRA"]}
    return runs


def keep_cell(key: str, losses: dict[str, Losses]) -> None:
    """Append what one run has measured."""
    RESULTS.mkdir(exist_ok=True)
    with CELLS.open("a") as file:
        file.write(json.dumps({"cell": key, **losses}) + "\n")


def cell_of(base_name: str, trainer: str, seed: int) -> str:
    """Name of a run, which says its length and its batch size where they are not the usual ones."""
    other = [f"{STEPS} steps"] * (STEPS != 200) + [f"batch {BATCH}"] * (BATCH != 1)
    return ", ".join([base_name, trainer, *other, str(seed)])


def table(base_name: str, runs: dict[str, dict[str, Losses]], seeds: int) -> dict[str, Any]:
    """One line per trainer and ruler: mean, standard deviation and number of the seeds that were measured."""
    figures: dict[str, Any] = {}
    for trainer in PEERS[base_name]:
        found = [runs[key] for seed in range(seeds) if (key := cell_of(base_name, trainer, seed)) in runs]
        for ruler in RULERS if found else ():
            values = [one["LoRA"][ruler] for one in found]
            spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            figures[f"{base_name}: {trainer}, {ruler}"] = f"{statistics.mean(values):.4f}{spread} ({len(values)})"
            figures[f"{base_name}: the base, {ruler}"] = found[0]["base"][ruler]
    return figures


def main() -> None:
    seeds = int(os.environ.get("LOOM_BENCH", "5"))
    bases = os.environ.get("LOOM_BASES", ",".join(PEERS)).split(",")
    rows = re.compile(os.environ.get("LOOM_ROWS", "."))
    runs = measured_before()
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), seed=0, wide=True)
        for seed in range(seeds):
            for name in bases:
                for number, (trainer, settings) in enumerate(PEERS[name].items()):
                    key = cell_of(name, trainer, seed)
                    if key not in runs and rows.search(trainer):
                        config = config_of(settings, base(name), Path(folder), f"{name}-{number}-{seed}", seed)
                        runs[key] = measure(config)
                        keep_cell(key, runs[key])
                        print(f"{key}: {runs[key]['LoRA']}", flush=True)
    figures: dict[str, Any] = {}
    for name in bases:
        figures |= table(name, runs, seeds)
    report("learning", figures)


if __name__ == "__main__":
    main()
