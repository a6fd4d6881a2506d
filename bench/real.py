"""The settings that trainers come with, on a real base model: what docs/validation-plan.md asks somebody with a card to run.

    python -m bench.real real.toml                  every row of bench/peers.py for the model's family, three seeds
    python -m bench.real real.toml --rows "ours|ai-toolkit" --seeds 1
    python -m bench.real real.toml --table          what is measured so far

The TOML file gives model, images, resolution and steps; a row replaces network, optimizer, schedule, objective and EMA. Every run is a line of
.bench/real.jsonl when it ends and is not made again; one that is broken off goes on at its last checkpoint.
"""

import argparse
import copy
import json
import re
import statistics
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import TrainConfig
from lora_loom.trainer.config.toml import parse, read_toml

from .common import RESULTS
from .peers import PEERS, Settings

CELLS = RESULTS / "real.jsonl"
OF_FAMILY = {"sd": "unet", "sdxl": "unet", "flux": "flux", "flux2": "flux", "chroma": "flux"}
"""{family: the rows of bench/peers.py that are for networks of its kind}; those of the SD3 class for all others."""
REPLACED = ("network", "optimizer", "schedule", "objective")
"""Tables that a row states in full, so that nothing of the file is left in it."""
SKIPPED = "in version 0.1|width 3072|^grid"


def rows_for(family: str) -> dict[str, Settings]:
    """The settings to compare on a family."""
    rows = PEERS[OF_FAMILY.get(family, "demo")]
    return {name: row for name, row in rows.items() if not re.search(SKIPPED, name)}


def tables_of(given: dict[str, Any], row: Settings, number: int, seed: int) -> dict[str, Any]:
    """The file's tables with the settings of a row, as a run of its own."""
    tables = {name: table for name, table in copy.deepcopy(given).items() if name not in REPLACED}
    own = copy.deepcopy(row.tables)
    for dataset in tables["dataset"] if "dataset" in own else ():
        if dataset.get("role", "train") == "train":
            dataset.update(own["dataset"])
    training = {**tables.get("training", {}), **own.pop("training", {}), "seed": seed}
    own.pop("dataset", None)
    return {**tables, **own, "training": training, "name": f"{given['name']}-{number}-{seed}"}


def measured() -> dict[str, dict[str, Any]]:
    """{"run, row, seed": what was measured} so far."""
    found: dict[str, dict[str, Any]] = {}
    for text in CELLS.read_text().splitlines() if CELLS.is_file() else ():
        with suppress(ValueError, KeyError):
            line = json.loads(text)
            found[line["cell"]] = line
    return found


def table(name: str, cells: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of one run's cells: mean and standard deviation over seeds, by both rulers; lower is better."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for key, cell in cells.items():
        run, row, _ = re.split(r" \| ", key)
        if run == name:
            rows[row].append(cell)
    lines = ["| settings | family's levels | even levels | seconds per step | seeds |", "|---|---|---|---|---|"]
    for row, found in rows.items():
        columns = [_mean([one[key] for one in found]) for key in ("held_out", "held_out_even", "seconds")]
        lines.append(f"| {row} | {' | '.join(columns)} | {len(found)} |")
    first = next((cell for found in rows.values() for cell in found), None)
    if first:
        lines.insert(2, f"| the base | {first['base']:.4f} | {first['base_even']:.4f} | | |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def measure(config: TrainConfig) -> dict[str, float]:
    """Train, and read what the run has measured of the base and of its last LoRA file."""
    from lora_loom.trainer.cli.console import ConsoleHost, StopSignal
    from lora_loom.trainer.runs.headless import run_folder, train

    with ConsoleHost(StopSignal(), run_folder(config)) as host:
        outcome = train(config, host)
    if outcome.state != "finished":
        sys.exit("stopped: the same command goes on")
    metrics = run_folder(config).read_metrics()
    lines = [line for line in metrics if "held_out" in line]
    if not lines:
        sys.exit("error: the file sets no images aside: add a [[dataset]] with role = 'validation'")
    last, first = lines[-1], lines[0]
    return {
        "base": first["held_out"],
        "base_even": first["held_out_even"],
        "held_out": last.get("held_out_ema", last["held_out"]),
        "held_out_even": last.get("held_out_even_ema", last["held_out_even"]),
        "seconds": statistics.median(line["seconds"] for line in metrics if "seconds" in line),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.real", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--rows", default=".", help="regular expression of the rows to run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="only show what is measured")
    chosen = parser.parse_args(sys.argv[1:])
    given = read_toml(chosen.config)
    cells = measured()
    if not chosen.table:
        family = open_base(parse(given, TrainConfig).model).family.name
        for seed in range(chosen.seeds):
            for number, (name, row) in enumerate(rows_for(family).items()):
                key = f"{given['name']} | {name} | {seed}"
                if key not in cells and re.search(chosen.rows, name):
                    cells[key] = {"cell": key, **measure(parse(tables_of(given, row, number, seed), TrainConfig))}
                    RESULTS.mkdir(exist_ok=True)
                    with CELLS.open("a") as file:
                        file.write(json.dumps(cells[key]) + "\n")
    print(table(given["name"], cells))


if __name__ == "__main__":
    main()
