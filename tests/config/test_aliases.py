"""Former names of options: valid in files, `--set`, runs and workflows; noted once; never together with the present name.

fixtures/run_with_former_names.json is what the version before the renames wrote for a run that sets each of these options.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.trainer.config import run as config_module
from lora_loom.trainer.config.aliases import OPTIONS, VALUES, current_options, current_tree
from lora_loom.trainer.config.run import DatasetConfig, ObjectiveConfig, Section, TrainConfig
from lora_loom.trainer.config.toml import changed_settings, fixed_settings, load, parse, to_dict
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.run_folder import RunFolder

RECORD = json.loads((Path(__file__).parents[1] / "fixtures/run_with_former_names.json").read_text(encoding="utf-8"))
FACTS = RECORD["fixed"]["facts"]
SECTIONS = {
    cls.table: cls for cls in vars(config_module).values() if isinstance(cls, type) and issubclass(cls, Section)
}
RENAMED = [(table, old, new) for table, names in OPTIONS.items() for old, new in names.items()]


@pytest.mark.parametrize(("table", "old", "new"), RENAMED)
def test_a_former_name_leads_to_a_field_and_is_none_itself(table, old, new):
    fields = {field.name for field in dataclasses.fields(SECTIONS[table])}
    assert new in fields
    assert old not in fields


def test_the_record_sets_every_renamed_option():
    written = RECORD["written"]
    tables = {name: value if isinstance(value, list) else [value] for name, value in written.items()}
    assert [(t, old) for t, old, _ in RENAMED if not any(old in one for one in tables[t])] == []


def test_a_run_of_the_former_names_goes_on():
    config = parse(RECORD["config"], TrainConfig)
    independent = dataclasses.replace(config.objective, timestep_spread="independent")  # as `settled.with_spread` says
    config = dataclasses.replace(config, objective=independent)
    assert config.training.gradient_accumulation_steps == 4
    assert config.dataset[1].role == "validation"
    now = fixed_settings(to_dict(config), FACTS)
    assert changed_settings(RECORD["fixed"], now) == []
    for section, fields in current_tree(RECORD["fixed"]).items():
        if isinstance(fields, dict):
            had = {name: value for name, value in now[section].items() if name in fields}
            assert fields == had, "nothing but the names differs, and options that are newer"
    changed = dataclasses.replace(
        config, optimizer=config_module.OptimizerConfig(learning_rate=1e-4, max_grad_norm=1.0)
    )
    other = fixed_settings(to_dict(changed), FACTS)
    assert changed_settings(RECORD["fixed"], other) == ["optimizer.max_grad_norm: 0.5 -> 1.0"]


def test_changed_sets_are_compared_by_their_present_names(tmp_path):
    folder = RunFolder(tmp_path / "cat")
    folder.start(RECORD["config"], RECORD["fixed"], {})
    config = parse(RECORD["config"], TrainConfig)
    with pytest.raises(Exception, match="images, captions or masks in the folders changed"):
        folder.check_same(fixed_settings(to_dict(config), {**FACTS, "data": "other"}), to_dict(config))


def test_a_file_of_the_former_names_means_the_same_and_each_name_is_noted_once(tmp_path):
    path, notes = tmp_path / "run.toml", []
    path.write_text(
        'name = "cat"\n[model]\nbase = "b"\n[training]\naccumulation = 2\n[objective]\nmean = 0.5\n'
        '[[dataset]]\nfolder = "a"\nlines = "first"\n[[dataset]]\nfolder = "b"\nlines = "first"\nrole = "held_out"\n',
        encoding="utf-8",
    )
    config = load(path, ["training.accumulation=4", "dataset.0.measure=area"], notes.append)
    assert config.training.gradient_accumulation_steps == 4, "an override replaces, by whichever name"
    assert config.dataset[0].size_metric == "area"
    assert [one.caption_lines for one in config.dataset] == ["first", "first"]
    assert sorted(notes) == [
        "dataset.lines is now dataset.caption_lines",
        "dataset.measure is now dataset.size_metric",
        "dataset.role = 'held_out' is now 'validation'",
        "objective.mean is now objective.logit_mean",
        "training.accumulation is now training.gradient_accumulation_steps",
    ]
    assert load(path, ["training.gradient_accumulation_steps=8"]).training.gradient_accumulation_steps == 8


def test_without_a_reader_notes_are_warnings(caplog):
    parse({"mean": 0.5}, ObjectiveConfig)
    assert caplog.messages == ["objective.mean is now objective.logit_mean"]


def test_the_command_line_notes_them_on_standard_error(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('name = "x"\n[model]\nbase = "nowhere"\n[[dataset]]\nfolder = "x"\n', encoding="utf-8")
    command = [sys.executable, "-m", "lora_loom.trainer", "train", str(path), "--set", "training.keep=2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == ["training.keep is now training.keep_checkpoints"]
    assert json.loads(done.stdout)["event"] == "error"


def test_both_names_at_once_are_refused():
    with pytest.raises(
        ConfigError, match=r"training.keep = 1 and training.keep_checkpoints = 2: keep is the older name"
    ):
        parse({**RECORD["written"], "training": {"keep": 1, "keep_checkpoints": 2}}, TrainConfig)


@pytest.mark.parametrize(("node", "table"), [("LoomTrain", "training"), ("LoomNetwork", "network"), ("LoomOptimizer", "optimizer"),
                                             ("LoomOptimizer", "schedule"), ("LoomObjective", "objective"), ("LoomCache", "data"),
                                             ("LoomCache", "memory"), ("LoomDataset", "dataset")])  # fmt: skip
def test_inputs_of_saved_workflows_keep_their_ids_and_show_the_present_name(node, table):
    groups = NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    inputs = {**groups["required"], **groups["optional"]}
    renamed = {old: new for old, new in OPTIONS[table].items() if old in inputs}
    assert renamed
    assert {old: inputs[old][1].get("display_name") for old in renamed} == renamed
    assert not set(renamed.values()) & set(inputs)


@pytest.mark.parametrize("node", ["LoomDataset", "LoomDatasetImages"])
def test_a_role_of_a_saved_workflow_is_accepted(node):
    cls = NODE_CLASS_MAPPINGS[node]
    former = VALUES["dataset"]["role"]
    assert all(cls.VALIDATE_INPUTS(role=role) is True for role in [*former, *former.values(), "train", None])
    assert cls.VALIDATE_INPUTS(role="trein") == "role = 'trein': did you mean 'train'?"
    assert (
        parse({"folder": "x", **current_options("dataset", {"role": "held_out"})}, DatasetConfig).role == "validation"
    )
