"""What is learnt per step with the settings that trainers come with: validation loss on the demo base, ours next to our peers'.

All settings run in this trainer on the same images, captions and steps (200, batch 1, fp32): a row is what another trainer's
settings give, not what its code does. Its rank, alpha, rate, schedule, target modules, timestep sampling and EMA are its own.
Both rulers are reported (docs/scores.md): evenly spread noise levels, and those that the family's shift spreads.

Not emulated, and therefore not in the table: core's TrainLoraNode (a loss on x0; bench/host_quality.py runs the real node),
sd-scripts (a weight of 1 / sigma^2). Of the others not emulated: SimpleTuner's rank 128 and clipping by value, ai-toolkit's
timestep weighting, OneTrainer's batch of 4, and the larger initial weights of diffusers' script, with which it learns more.
The demo's SD3-class base only: a UNet and a Flux-class base of the same kind are not there yet.

    python -m bench learning                    three seeds
    LOOM_BENCH=5 python -m bench learning       five
"""

import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_loom.trainer.cli.console import QuietHost
from lora_loom.trainer.config.run import TrainConfig
from lora_loom.trainer.config.toml import parse
from lora_loom.trainer.demo.demo import ASSETS, write_data
from lora_loom.trainer.runs.headless import run_folder, train

from .common import keep, report

STEPS = 200
RULERS = {"even levels": "held_out_even", "family's levels": "held_out"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one trainer comes with, in our tables."""

    source: str
    tables: dict[str, dict[str, Any]]


def _settings(source: str, rate: float | str, targets: str = "default", **tables: dict[str, Any]) -> Settings:
    network = {"rank": 16, "target_modules": targets, **tables.pop("network", {})}
    optimizer = {"learning_rate": rate, **tables.pop("optimizer", {})}
    return Settings(source=source, tables={"network": network, "optimizer": optimizer, **tables})


BLOCKS = r"regex:transformer_blocks\.\d+\."
SHIFT_1 = {"timestep_sampling": "logit_normal", "shift": 1.0}
IMAGE_ATTENTION = r"regex:attn\.(to_[qkv]|to_out\.0)$"
TRAINERS: dict[str, Settings] = {
    "ours in version 0.1 (attention, 1e-4)": _settings("CHANGELOG.md", 1e-4, "attention"),
    "ours (default targets, 1e-4)": _settings("trainer/families/sd3.py", 1e-4),
    "ours (default targets, 4.5e-4)": _settings("trainer/training/rate.py at the width of Flux, 3072", 4.5e-4),
    "ours (default targets, auto: 9.9e-4)": _settings("trainer/training/rate.py at the width of this base", "auto"),
    "ours (default targets, 2e-3)": _settings("the demo's own rate", 2e-3),
    "ai-toolkit, job of its UI": _settings(
        "ostris/ai-toolkit, ui/src/app/jobs/new/jobConfig.ts", 1e-4, BLOCKS, network={"rank": 32},
        optimizer={"weight_decay": 1e-4}, objective=SHIFT_1, dataset={"caption_dropout": 0.05},
    ),
    "ai-toolkit, SD3.5 example": _settings(
        "ostris/ai-toolkit, config/examples/train_lora_sd35_large_24gb.yaml", 1e-4, BLOCKS,
        objective={"timestep_sampling": "uniform", "shift": 1.0}, training={"ema_decay": 0.99},
    ),
    "OneTrainer, SD3 LoRA preset": _settings(
        "Nerogar/OneTrainer, training_presets/#sd 3 LoRA.json", 3e-4, "regex:.", network={"alpha": 1.0, "exclude_modules": "pos_embed"},
        objective=SHIFT_1, schedule={"warmup": 200},
    ),
    "SimpleTuner, SD3 example": _settings("bghira/SimpleTuner, documentation/quickstart/SD3.md", 1e-4, IMAGE_ATTENTION),
    "diffusers, train_dreambooth_lora_sd3": _settings(
        "huggingface/diffusers, examples/dreambooth/train_dreambooth_lora_sd3.py", 1e-4, "attention",
        network={"rank": 4}, objective={"timestep_sampling": "uniform"},
    ),
}  # fmt: skip
"""{trainer: settings}."""


def config_of(settings: Settings, folder: Path, name: str, seed: int) -> TrainConfig:
    """A run with these settings on the images in a folder."""
    tables = {key: dict(table) for key, table in settings.tables.items()}
    dataset = [
        {"folder": str(folder / "images"), **tables.pop("dataset", {})},
        {"folder": str(folder / "held_out"), "role": "validation"},
    ]
    training = {"steps": STEPS, "batch_size": 1, "save_every": STEPS, "seed": seed, "precision": "float32"}
    return parse(
        {
            **tables,
            "name": name,
            "model": {"base": str(ASSETS)},
            "dataset": dataset,
            "data": {"resolution": 128},
            "training": {**training, **tables.get("training", {})},
            "memory": {"gradient_checkpointing": False},
            "validation": {"timesteps": 8},
            "output": {"directory": str(folder / "runs"), "dtype": "float32"},
        },
        TrainConfig,
    )


def measure(config: TrainConfig) -> list[dict[str, float]]:
    """Validation losses of the base and of the LoRA file at the end, by both rulers."""
    train(config, QuietHost())
    lines = [line for line in run_folder(config).read_metrics() if "held_out" in line]
    return [
        {ruler: line.get(f"{name}_ema", line[name]) for ruler, name in RULERS.items()} for line in (lines[0], lines[-1])
    ]


def main() -> None:
    seeds = int(os.environ.get("LOOM_BENCH", "3"))
    base: dict[str, float] = {}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TRAINERS}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), seed=0, wide=True)
        for seed in range(seeds):
            for number, (name, settings) in enumerate(TRAINERS.items()):
                base, last = measure(config_of(settings, Path(folder), f"{number}-{seed}", seed))
                found[name].append(last)
                keep("learning", {"base": base, "losses": found})
    figures: dict[str, Any] = {f"base, {ruler}": loss for ruler, loss in base.items()}
    for name, losses in found.items():
        for ruler in RULERS:
            values = [one[ruler] for one in losses]
            spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            figures[f"{name}, {ruler}"] = f"{statistics.mean(values):.4f}{spread}"
    report("learning", figures)


if __name__ == "__main__":
    main()
