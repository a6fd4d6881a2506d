"""Errors that a user can fix. Every message states what is wrong, the value, and the remedy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import accumulate
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
MOST_LINES, MOST_CHARACTERS = 10, 1200
"""No message is longer. Of a longer one the middle is left out, because the remedy stands at its end."""
PASSING = {"MemoryError", "OutOfMemoryError", "AcceleratorError", "InterruptProcessingException"}
"""Exceptions that say nothing about what is read: memory ran out, the device failed, or somebody pressed Cancel in ComfyUI."""
MOST_LISTED = 300
"""Characters of a list of known names in a message."""
MODULE = "lora_loom.trainer.errors"
"""What ComfyUI reports as the module of an error: inside it, a pack's own name is the path that it is installed in."""


class LoomError(Exception):
    """Base class of the errors that are reported as one plain line instead of a traceback. `exit_code` ends the command line."""

    exit_code = 1

    def __init_subclass__(cls) -> None:
        cls.__module__ = MODULE

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(str(message)))


LoomError.__module__ = MODULE


def without_frames(error: LoomError) -> LoomError:
    """The same error without its traceback, whose frames would keep the network and the adapter of an ended run alive."""
    return type(error)(*error.args)


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


class NameTakenError(RunError):
    """A run of this name exists with other settings."""


class RunOutOfMemoryError(RunError):
    """Memory ran out in a run."""


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


def is_passing(error: Exception) -> bool:
    """Whether whoever called has its own remedy for an exception: it says nothing about what was read."""
    return type(error).__name__ in PASSING or "allocate memory" in str(error)


@contextmanager
def reading(
    what: object, kind: type[LoomError] = ModelFileError, remedy: str = "get or write it again"
) -> Iterator[None]:
    """Whatever the code and the libraries in the block raise about foreign data becomes one of our errors, which names `what`.

    Libraries document few of the exceptions that damaged and hostile files make them raise. Memory that ran out passes: it has its own
    remedy.
    """
    try:
        yield
    except LoomError:
        raise
    except Exception as error:
        if is_passing(error):
            raise
        name = type(error).__name__
        said = str(error).strip().splitlines()
        raise kind(
            f"{what} cannot be used ({name}{': ' if said else ''}{said[0][:300] if said else ''}): {remedy}"
        ) from error


def reads(
    what: Callable[..., object], kind: type[LoomError] = ModelFileError
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`reading` around a whole function; `what` gives the name of what it reads from the same arguments."""

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            with reading(what(*args, **kwargs), kind):
                return function(*args, **kwargs)

        return guarded

    return decorated


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of an error message: "did you mean" with the nearest known names, or "known:" with all of them, or the first of many."""
    import difflib

    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    names = sorted(known)
    fit = sum(length <= MOST_LISTED for length in accumulate(len(name) + 2 for name in names))
    return "known: " + some(names, max(1, fit))


def some(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, and how many more there are, for one line of a report."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def problem_list(problems: list[str]) -> str:
    """The first problems, one per line, and how many more there are: no more than a message may hold."""
    room = MOST_CHARACTERS - len("\n… and 1000000 more")
    fit = sum(length <= room for length in accumulate(len(problem) + 1 for problem in problems))
    most = len(problems) if fit == len(problems) <= MOST_LINES else max(1, min(fit, MOST_LINES - 1))
    more = f"\n… and {len(problems) - most} more" if len(problems) > most else ""
    return "\n".join(problems[:most]) + more


def shortened(text: str) -> str:
    """The text with its middle left out where it has more than 10 lines or 1,200 characters."""
    lines = text.splitlines()
    if len(lines) > MOST_LINES:
        kept, last = MOST_LINES - 2, lines[-1]
        text = "\n".join([*lines[:kept], f"… {len(lines) - kept - 1} lines left out …", last])
    if len(text) > MOST_CHARACTERS:
        mark = f" … {len(text)} characters, the middle left out … "
        end = (MOST_CHARACTERS - len(mark)) // 3
        text = text[: MOST_CHARACTERS - len(mark) - end] + mark + text[-end:]
    return text
