"""What the sections of the configuration share: they check their values when they are made, from TOML and from Python alike."""

import dataclasses
from typing import Any, ClassVar

from ..errors import ConfigError
from .checks import check_types


class Section:
    """A table of the configuration. A subclass names its TOML table: `class NetworkConfig(Section, table="network")`.

    When one is made, values of another type than the field's and names that are in no table raise ConfigError; then `check`
    checks their ranges.
    """

    table: ClassVar[str] = ""
    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
    }  # pydantic reads it; it is not imported here

    def __init_subclass__(cls, *, table: str = "") -> None:
        super().__init_subclass__()
        cls.table = table

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, list):  # TOML's lists are tuples here, so that a section can be hashed
                object.__setattr__(self, field.name, as_tuple(value))
        check_types(self, self.table)
        self.check()

    def check(self) -> None:
        """Raise ConfigError for values that cannot work. Their types are right when this is called."""


def as_tuple(value: Any) -> Any:
    """Lists, and lists in them, as tuples."""
    return tuple(as_tuple(one) for one in value) if isinstance(value, list) else value


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise ConfigError "name = value: remedy" unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} = {value!r}: {remedy}")
