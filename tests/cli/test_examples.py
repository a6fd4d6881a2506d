"""Every command's help has examples, which it takes, in 80 columns."""

import shlex

import pytest
import typer
from click import Command, Context
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app


def leaves(command, path=()):
    """(path, command) of every command that does something."""
    members = getattr(command, "commands", None)
    if not members:
        yield path, command
    for name, member in (members or {}).items():
        if not member.hidden:
            yield from leaves(member, (*path, name))


COMMANDS = dict(leaves(typer.main.get_command(app)))


def examples(command: Command):
    text = command.help or ""
    return [line.strip() for line in text.splitlines() if line.strip().startswith("lora-loom ")]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_has_examples_that_it_takes(path):
    found = examples(COMMANDS[path])
    assert found, "no example in the help"
    taken = []
    for line in found:
        parts = shlex.split(line.partition("  #")[0])[1:]
        assert tuple(parts[: len(path)]) == path or parts[0] == path[0], line
        command, root = COMMANDS[path], Context(typer.main.get_command(app), info_name="lora-loom")
        if tuple(parts[: len(path)]) == path:
            taken.append(command.make_context(path[-1], parts[len(path) :], parent=root).params)
    assert taken, "no example of the command itself"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_help_of_a_command_fits_80_columns(path):
    lines = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"}).stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
