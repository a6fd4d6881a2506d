"""The tables name options that exist, and no row is without a meaning."""

import csv
import subprocess
import sys

import pytest

from lora_loom.trainer.choices import OPTIMIZER_CLASS, OPTIMIZERS, entry_of
from lora_loom.trainer.importers.table import FOLDER, TRAINERS, by_name, rows
from lora_loom.trainer.importers.translation import Translation, as_option, option_types

EVERY = [(trainer, row) for trainer in TRAINERS for row in rows(trainer)]


def test_every_target_is_an_option_of_ours():
    known = set(option_types())
    sections = {name.partition(".")[0] for name in known}
    wrong = [(t, row.option, one) for t, row in EVERY for one in row.ours if one not in known | sections]
    assert not wrong


def test_a_row_says_what_it_becomes_or_why_not():
    for trainer, row in EVERY:
        assert row.meaning or row.note, (trainer, row.option)
        assert row.how not in ("none",) or not row.ours, (trainer, row.option)
        if row.value:
            assert len(row.ours) == 1
            assert as_option(row.ours[0], row.option, row.value) is not None


def test_no_option_stands_in_a_part_twice():
    for trainer in TRAINERS:
        names = [(row.part, row.option) for row in rows(trainer)]
        assert len(names) == len(set(names)), trainer


def test_options_of_the_table_are_many():
    assert {trainer: len(rows(trainer)) for trainer in TRAINERS} == {
        "simpletuner": 704, "sd_scripts": 362, "ai_toolkit": 219, "onetrainer": 307, "musubi_tuner": 191, "diffusion_pipe": 143, "accelerate": 30,
    }  # fmt: skip


def test_optimizers_of_the_table_are_ours():
    with (FOLDER / "optimizers.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert not row["ours"] or entry_of(OPTIMIZERS, row["ours"], OPTIMIZER_CLASS), row
            assert row["trainer"] in {"", *TRAINERS}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_an_option_without_code_is_treated_by_its_row(trainer):
    """Each at its default is no loss; an option that is a switch sets ours when it is on."""
    part = rows(trainer)[0].part
    for row in rows(trainer):
        if row.part != part or not row.value:
            continue
        made = Translation(trainer, (part,), {row.option: True})
        made.rest()
        assert {**made.settings, **{f"dataset.{name}": of for name, of in made.for_datasets.items()}} == {
            row.ours[0]: as_option(row.ours[0], row.option, row.value)
        }
        off = Translation(trainer, (part,), {row.option: False})
        off.rest()
        assert not off.settings
        assert off.taken[row.option].became == "exact"


def test_former_names_lead_to_the_same_row():
    known = by_name("simpletuner", ("config",))
    assert known["checkpointing_steps"] is known["checkpoint_step_interval"] is known["env:CHECKPOINTING_STEPS"]


def test_importing_needs_no_torch():
    code = "import lora_loom.trainer.importers.read, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
