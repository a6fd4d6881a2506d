"""The command line: exit codes, plain errors, JSON, and that starting it stays cheap."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import tomllib
import torch
from typer.testing import CliRunner

from lora_loom.trainer.cli.aliases import RENAMED, current_arguments
from lora_loom.trainer.cli.main import app, main
from lora_loom.trainer.config.toml import to_dict
from tests.conftest import make_config

runner = CliRunner()


def toml_of(config):
    """Enough TOML for these configurations."""

    def value(item):
        if isinstance(item, dict):
            return "{" + ", ".join(f"{k} = {value(v)}" for k, v in item.items() if v is not None) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(value(v) for v in item) + "]"
        return json.dumps(item)

    text = "\n".join(f"{name} = {value(section)}" for name, section in to_dict(config).items())
    assert tomllib.loads(text)
    return text


@pytest.fixture
def toml(tmp_path):
    config = make_config(
        "sd3", tmp_path, sweep={"prompts": ["a cat"], "steps": 2}, training={"steps": 4, "save_every": 2}
    )
    path = tmp_path / "run.toml"
    path.write_text(toml_of(config))
    return path


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def test_the_layout_of_the_files_is_chosen_on_the_command_line(toml):
    from safetensors import safe_open

    result = run("train", toml, "--format", "kohya", "--json", "--set", "training.steps=1")
    assert result.exit_code == 0, result.output
    with safe_open(events(result)[-1]["lora"], framework="pt") as file:
        assert all(key.startswith("lora_unet_") for key in file.keys())  # noqa: SIM118 - not a dict
    result = run("train", toml, "--format", "kohia")
    assert result.exit_code == 2
    assert "output.format = 'kohia': use 'native', 'diffusers' or 'kohya'" in result.output


def events(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_whole_way(toml):
    result = run("cache", toml)
    assert result.exit_code == 0
    assert "encoded" in result.stdout
    result = run("train", toml, "--set", "training.save_every=4")
    assert result.exit_code == 0, result.output
    assert "finished at step 4" in result.stdout
    result = run("sweep", toml)
    assert result.exit_code == 0, result.output
    folder = toml.parent / "run" / "strips"
    assert (folder / "strip.png").is_file()
    result = run("strip", folder, "--columns", "checkpoint", "--rows", "prompt", "--title", "again")
    assert result.exit_code == 0, result.output
    assert run("strip", folder / "cells", "--per-row", "2").exit_code == 0, "any folder of images"
    assert (folder / "cells" / "strip.png").is_file()
    refused = run("strip", folder, "--layout", "panels")
    assert "layout panels needs the base, a LoRA, and guidance of both kinds" in refused.stderr
    result = run("inspect", toml.parent / "run" / "loras" / "run.safetensors")
    assert "rank 2" in result.stdout
    assert "ss_steps: 4" in result.stdout


def test_looking_after_a_cache(toml, tmp_path):
    """`cache CONFIG` still is what fills it; damage is found, told by the exit code, and encoded again."""
    folder, own = tmp_path / "cache", f"output.cache={tmp_path / 'cache'}"
    [filled] = events(run("cache", toml, "--set", own, "--report", tmp_path / "report", "--json"))[-1:]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "contact-sheet-01.png",
        "report.json",
        "report.txt",
    ]
    assert json.loads((tmp_path / "report" / "report.json").read_text())["training"]["seen_per_epoch"] == 6
    assert "usual at this batch size" in (tmp_path / "report" / "report.txt").read_text()
    assert filled["encoded"] == 6 + 7
    assert events(run("cache", "fill", toml, "--set", own, "--json"))[-1]["reused"] == 13
    [counted] = events(run("cache", "stats", folder, "--json"))
    assert (counted["items"], counted["files"]) == (13, 6)
    assert run("cache", "verify", folder).exit_code == 0
    shard = min(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    result = run("cache", "verify", folder)
    assert result.exit_code == 3
    assert "1 damaged shards were moved to quarantine/, 6 items will be encoded again" in result.stdout
    assert events(run("cache", toml, "--set", own, "--json"))[-1]["encoded"] == 6
    other = tmp_path / "other.toml"
    other.write_text(toml.read_text().replace("resolution = 64", "resolution = 32"))
    assert other.read_text() != toml.read_text()
    assert events(run("cache", other, "--set", own, "--json"))[-1]["encoded"] == 6
    pruned = events(run("cache", "prune", folder, "--keep", other, "--dry-run", "--json"))[-1]
    assert (pruned["items"], pruned["leftovers"], pruned["dry"]) == (6, 1, True)
    assert events(run("cache", "prune", folder, "--keep", other, "--json"))[-1]["items"] == 6
    assert events(run("cache", "stats", folder, "--json"))[-1]["items"] == 13 - 6 + 6
    assert "is not a folder" in run("cache", "stats", tmp_path / "nowhere").stderr


def test_json_lines(toml):
    result = run(
        "train", toml, "--json", "--set", f"output.cache={toml.parent / 'its own'}", "--set", "memory.vae_batch_size=2"
    )
    lines = events(result)
    kinds = [line["event"] for line in lines]
    assert kinds.count("step") == 4
    assert lines[-1]["event"] == "result"
    assert lines[-1]["state"] == "finished"
    [step] = [line for line in lines if line["event"] == "step" and line["step"] == 2]
    assert {"loss", "grad_norm", "learning_rate", "seconds", "total", "seconds_left"} <= step.keys()
    stages = [line for line in lines if line["event"] == "stage" and line["name"] == "encoding images"]
    assert stages[-1]["done"] == stages[-1]["total"]
    assert stages[-1]["seconds_left"] == 0
    inspected = events(run("inspect", lines[-1]["lora"], "--json"))
    assert inspected[0]["ranks"] == {"2": inspected[0]["tensors"] // 3}


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("network.rank=0", 2, "error: network.rank = 0: use 1 or more"),
        ("training.stepz=1", 2, "error: unknown option training.stepz: did you mean 'steps'?"),
        ("dataset.0.folder=nowhere", 3, "error: dataset.folder: nowhere is not a folder"),
        ("model.base=nowhere", 4, "error: model.base: nowhere does not exist"),
        ("model.base=someone/a-model", 4, "hf download someone/a-model --local-dir a-model"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(toml, change, code, message):
    result = run("train", toml, "--set", change)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output
    [last] = events(run("train", toml, "--set", change, "--json"))[-1:]
    assert last["event"] == "error"
    assert last["message"] == message.removeprefix("error: ") or message.removeprefix("error: ") in last["message"]


def test_run_errors(toml, tmp_path):
    assert run("train", toml).exit_code == 0
    result = run("train", toml, "--set", "network.rank=3")
    assert result.exit_code == 5
    assert "network.rank: 2 -> 3" in result.stderr
    assert run("strip", tmp_path).exit_code == 5
    assert "layout = 'panel': use grid or panels" in run("strip", tmp_path, "--layout", "panel").stderr
    assert "did you mean 'checkpoint'" in run("strip", tmp_path, "--columns", "chekpoint").stderr
    assert run("inspect", toml).exit_code == 4


def test_help_lists_the_commands():
    result = run("--help")
    assert result.exit_code == 0
    for command in ("train", "cache", "sweep", "strip", "inspect", "demo"):
        assert command in result.stdout


def test_log_and_errors_reach_the_runs_log(toml):
    run("train", toml)
    assert "modules saved" in (toml.parent / "run" / "log.txt").read_text()
    run("train", toml, "--set", "network.rank=3")
    assert "error: run run exists" in (toml.parent / "run" / "log.txt").read_text()


@contextmanager
def command_in_child(log, *arguments):
    """(process id, its lines of JSON as they come) of a command in a real process.

    Forked from this one, which has torch imported already; what it writes to standard error lies in `log`.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(writer, 1)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            torch.set_num_threads(1)
            main([str(argument) for argument in arguments])
        except SystemExit as done:
            code = done.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as output:
        yield child, (json.loads(line) for line in output)


def check_signal(toml, process, lines, number):
    """Send a signal after some steps; returns what the process says last."""
    for event in lines:
        if event["event"] == "step" and event["step"] >= 3:
            os.kill(process, number)
            break
    last = list(lines)[-1]
    assert last["state"] == "stopped"
    assert (toml.parent / "run" / "checkpoints" / f"step-{last['step']:06d}" / "state.json").is_file()


ENDLESS = ("--set", "training.steps=100000", "--json")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_and_keep(toml, tmp_path, number):
    with command_in_child(tmp_path / "errors", "train", toml, *ENDLESS) as (process, lines):
        check_signal(toml, process, lines, number)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code == 130, (tmp_path / "errors").read_text()


def real_process(*arguments):
    command = [sys.executable, "-m", "lora_loom.trainer", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_and_keep_in_a_process_of_its_own(toml, number):
    process = real_process("train", toml, *ENDLESS)
    check_signal(toml, process.pid, (json.loads(line) for line in process.stdout), number)
    assert process.wait(120) == 130, process.stderr.read()


def test_a_process_of_its_own_ends_with_the_errors_code(tmp_path):
    process = real_process("train", tmp_path / "gone.toml", "--json")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "gone.toml" in json.loads(output.splitlines()[-1])["message"]
    assert "Traceback" not in errors


def loaded_by(code):
    """Modules in memory after running some code in a fresh interpreter."""
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    return set(
        json.loads(
            subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, check=True
            ).stdout.splitlines()[-1]
        )
    )


HEAVY = {"torch", "diffusers", "transformers", "peft", "numpy", "PIL", "matplotlib", "pydantic", "optimum", "rich"}


@pytest.mark.parametrize(
    "code",
    ["import lora_loom", "import lora_loom.trainer.config", "import lora_loom.trainer", "import lora_loom.trainer.cli"],
)
def test_starting_up_loads_nothing_heavy(code):
    assert not HEAVY & loaded_by(code)


def test_a_file_of_another_trainer_is_imported_and_train_says_so(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(
        '{"model_family": "sd3", "model_type": "lora", "max_train_steps": 7, "num_train_epochs": 0, "--what": 1}'
    )
    result = run("train", file)
    assert result.exit_code == 2
    assert (
        f"{file} is a configuration of SimpleTuner: lora-loom import {file} writes the TOML file that" in result.output
    )
    out = tmp_path / "run.toml"
    result = run("import", file, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    (said,) = events(result)
    assert said["counts"] == {"exact": 3, "nearly": 0, "needless": 1, "none": 1}
    assert tomllib.loads(out.read_text(encoding="utf-8"))["training"]["steps"] == 7
    again = run("import", file, "--out", out)
    assert again.exit_code == 2
    assert "exists: use another name, or --overwrite" in again.output
    assert (
        "no counterpart here, not taken (1):\n  --what = 1" in run("import", file, "--out", out, "--overwrite").output
    )


def test_a_pasted_command_is_imported(tmp_path):
    text = "accelerate launch train_network.py --network_module=networks.lora --max_train_steps 9 --output_name cat"
    out = tmp_path / "run.toml"
    result = runner.invoke(app, ["import", "-", "--out", str(out)], input=text)
    assert result.exit_code == 0, result.output
    made = tomllib.loads(out.read_text(encoding="utf-8"))
    assert (made["name"], made["training"]["steps"]) == ("cat", 9)


def test_import_outside_comfyui_does_nothing():
    assert not {"comfy", "nodes", "server", "folder_paths"} & loaded_by("import lora_loom")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_second_process_is_told(toml, tmp_path):
    """Two real processes: the second one leaves with a clear error while the first trains on."""
    with command_in_child(tmp_path / "errors", "train", toml, *ENDLESS) as (first, lines):
        try:
            steps = (event["step"] for event in lines if event["event"] == "step")
            before = next(steps)
            second = run("train", toml, "--set", "training.steps=100000")
            assert second.exit_code == 5
            assert "is being trained by another process" in second.stderr
            assert next(steps) > before
            assert os.waitpid(first, os.WNOHANG) == (0, 0), "the first one trains on"
        finally:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)


def test_former_names_of_options_are_accepted_and_noted_once(caplog):
    """Each in the command that has the present name, with a value or with an equals sign; others are left as they are."""
    for old, new in RENAMED.items():
        assert current_arguments([old, "7", f"{old}=7"], {new, "--json"}) == [new, "7", f"{new}=7"]
        assert caplog.messages == [f"{old} is now {new}"]
        caplog.clear()
        assert current_arguments([old], {"--json"}) == [old]
    assert not caplog.messages


@pytest.mark.parametrize(
    ("command", "option"),
    [("submit", "--again"), ("submit", "--many"), ("submit", "--patience=1"), ("merge-base", "--partly"), ("score", "--encoder=x")],
)  # fmt: skip
def test_commands_know_the_former_names(command, option):
    """Without its arguments a command fails, but not because of the option; --help lists the present name only."""
    assert "No such option" not in run(command, option).stderr
    listed = run(command, "--help").stdout
    assert option.partition("=")[0] not in listed
    assert RENAMED[option.partition("=")[0]] in listed


def test_sub_commands_know_the_former_names():
    assert "No such option" not in run("runs", "follow", "--patience", "1").stderr
    assert "No such option" in run("runs", "follow", "--many").stderr
