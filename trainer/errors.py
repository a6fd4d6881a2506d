"""Errors that a user can fix. Every message states what is wrong, the value, and the remedy."""

from collections.abc import Sequence


class LoomError(Exception):
    """Base class of the errors that are reported as one plain line instead of a traceback. `exit_code` ends the command line."""

    exit_code = 1


class ConfigError(LoomError):
    """A setting is unknown, has the wrong type, or is out of range."""

    exit_code = 2


class DataError(LoomError):
    """Images or captions cannot be used as they are."""

    exit_code = 3


class ModelFileError(LoomError):
    """A base model, LoRA or encoder file is missing, damaged or of the wrong kind."""

    exit_code = 4


class RunError(LoomError):
    """A run cannot start, continue or be written."""

    exit_code = 5


class PeerError(RunError):
    """Another process of the run has ended. Its own message, printed before, is the cause."""


class StoppedError(RunError):
    """A stop was requested before there was anything to save. Finished work (the cache) is kept."""

    exit_code = 130


class DivergedError(LoomError):
    """The loss or a gradient is no longer finite."""

    exit_code = 6


class ServerError(LoomError):
    """A ComfyUI server cannot be reached, the connection was lost for good, or the reply is not one that ComfyUI sends."""

    exit_code = 7


class WorkflowError(LoomError):
    """The server rejected a workflow, or one of its nodes failed."""

    exit_code = 8


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of an error message: "did you mean" with the nearest known names, or "known:" with all of them."""
    import difflib

    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "known: " + ", ".join(sorted(known))


def some(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, and how many more there are, for one line of a report."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def problem_list(problems: list[str], most: int = 10) -> str:
    """The first `most` problems, one per line, and how many more there are."""
    more = f"\n… and {len(problems) - most} more" if len(problems) > most else ""
    return "\n".join(problems[:most]) + more
