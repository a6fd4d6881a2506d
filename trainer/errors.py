"""Problems a user can mend. Every message says what is wrong, the value, and the remedy."""


class LoomError(Exception):
    """Base of everything that is reported in one plain line instead of a traceback."""

    exit_code = 1


class ConfigError(LoomError):
    """A setting that cannot work: unknown, of the wrong type, or out of range."""

    exit_code = 2


class DataError(LoomError):
    """Images or captions that cannot be used as they are."""

    exit_code = 3


class ModelFileError(LoomError):
    """A base model, LoRA or encoder file that is missing, damaged or of the wrong kind."""

    exit_code = 4


class RunError(LoomError):
    """A run that cannot start, continue or be written."""

    exit_code = 5


class PeerError(RunError):
    """Another process of the run has ended; what it said before is the cause."""


class StoppedError(RunError):
    """Someone asked for a stop before there was anything to save; what is done is kept."""

    exit_code = 130


class DivergedError(LoomError):
    """The loss or a gradient stopped being a finite number."""

    exit_code = 6


class ServerError(LoomError):
    """A ComfyUI server that cannot be reached, was lost for good, or answers what no ComfyUI does."""

    exit_code = 7


class WorkflowError(LoomError):
    """A workflow that the server refuses, or a node of it that failed."""

    exit_code = 8


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of an error message: the nearest known names, else all of them."""
    import difflib

    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "known: " + ", ".join(sorted(known))


def some(names: list[str], most: int = 5) -> str:
    """The first `most` names, for one line of a report."""
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


def problem_list(problems: list[str], most: int = 10) -> str:
    """The first `most` problems, a line each, and how many more there are."""
    more = f"\n… and {len(problems) - most} more" if len(problems) > most else ""
    return "\n".join(problems[:most]) + more
