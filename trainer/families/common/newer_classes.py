"""Classes of diffusers and transformers that the oldest versions we take do not have yet."""

from importlib import import_module
from typing import Any

from ...errors import ConfigError


def newer_class(library: str, name: str) -> Any:
    """Returns a class of `library`. Raises ConfigError with the version that is installed where it lacks the class."""
    module = import_module(library)
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(f"{library} {module.__version__} has no {name}: pip install --upgrade {library}")
    return found
