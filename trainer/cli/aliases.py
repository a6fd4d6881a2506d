"""Options of commands that have been renamed. The old names are accepted, are not listed in --help, and are noted once."""

from typing import Any

from typer.core import TyperCommand

from ..config.aliases import log_note

RENAMED = {
    "--again": "--rerun",
    "--encoder": "--clip-model",
    "--many": "--allow-many",
    "--partly": "--skip-missing",
    "--patience": "--reconnect-timeout",
}
"""{old option: new option}, for the commands that have the new one."""


class AliasedCommand(TyperCommand):
    """A command that also accepts the old names of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # click's Context, or typer's own copy of it
        """Replace old option names before the arguments are parsed."""
        options = {option for parameter in self.params for option in parameter.opts}
        return super().parse_args(ctx, current_arguments(args, options))


def current_arguments(args: list[str], options: set[str]) -> list[str]:
    """The arguments of a command that has these options, with old option names replaced. Each old name is noted once."""
    current = []
    for argument in args:
        name, equals, value = argument.partition("=")
        new = RENAMED.get(name, "")
        current.append(f"{new}{equals}{value}" if new in options else argument)
    for old in sorted({argument.partition("=")[0] for argument in args} & RENAMED.keys()):
        if RENAMED[old] in options:
            log_note(f"{old} is now {RENAMED[old]}")
    return current
