"""What the sections of the configuration share."""

from typing import ClassVar

from ..errors import ConfigError


class Section:
    """A table of the configuration. A subclass names its TOML table: `class NetworkConfig(Section, table="network")`."""

    table: ClassVar[str] = ""
    __pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}  # noqa: RUF012 - read by toml.py; no import here

    def __init_subclass__(cls, *, table: str = "") -> None:
        super().__init_subclass__()
        cls.table = table


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise ConfigError "name = value: remedy" unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} = {value!r}: {remedy}")
