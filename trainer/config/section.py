"""What the sections of the configuration share."""

from ..errors import ConfigError


class Section:
    """A table of the configuration."""

    __pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}  # noqa: RUF012 - read by config_file.py; no import here


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise ConfigError "name = value: remedy" unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} = {value!r}: {remedy}")
