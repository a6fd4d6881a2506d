"""Reading what a JSON file of ours records: an object whose entries have the types that everything reads them as."""

import json
from pathlib import Path
from typing import Any

from ..types import Record

_TYPES: dict[str, Any] = {
    **dict.fromkeys(("config", "fixed", "environment", "costs"), dict),
    **dict.fromkeys(("updated", "created", "step"), (int, float)),
    "modules": (list, type(None)),
}
_TABLES = (
    "model", "data", "network", "optimizer", "schedule", "objective", "training", "memory", "validation", "output", "sweep", "text",
)  # fmt: skip
"""Entries of `config` that are tables of options."""


def read_record(path: Path) -> Record:
    """A run's record. Raises OSError, ValueError or RecursionError if the file holds none."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or not record:
        raise ValueError("it holds no record of a run")
    for key, kind in _TYPES.items():
        if key in record and not isinstance(record[key], kind):
            raise ValueError(f"{key} is {type(record[key]).__name__}")
    for table in _TABLES:
        if not isinstance(options := record.get("config", {}).get(table, {}), dict):
            raise ValueError(f"config.{table} is {type(options).__name__}")
    if not all(isinstance(path, str) for path in record.get("modules") or ()):
        raise ValueError("modules are no paths")
    return record
