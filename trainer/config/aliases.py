"""Options that have been renamed. Older TOML files, `--set` options, runs and workflows use the names on the left.

An old name means what the new one means, everywhere. Where a person wrote it, it is noted once.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError

OPTIONS: dict[str, dict[str, str]] = {
    "data": {"held_out_share": "validation_split"},
    "dataset": {"lines": "caption_lines", "measure": "size_metric"},
    "memory": {"vae_batch": "vae_batch_size"},
    "network": {"targets": "target_modules", "exclude": "exclude_modules"},
    "objective": {
        "timesteps": "timestep_sampling",
        "mean": "logit_mean",
        "std": "logit_std",
        "guidance": "guidance_scale",
    },
    "optimizer": {"clip_norm": "max_grad_norm"},
    "output": {"report": "report_to"},
    "schedule": {"floor": "min_lr_ratio"},
    "sweep": {"negative": "negative_prompt"},
    "training": {"accumulation": "gradient_accumulation_steps", "keep": "keep_checkpoints", "ema": "ema_decay"},
    "validation": {
        "render_every": "sample_every",
        "sampling_steps": "sample_steps",
        "negative": "negative_prompt",
    },
}
"""{table: {old option: new option}}."""

VALUES: dict[str, dict[str, dict[str, str]]] = {
    "dataset": {"role": {"held_out": "validation"}},
    "schedule": {"kind": {"constant_with_warmup": "constant", "cosine_with_restarts": "restarts"}},
}
"""{table: {option: {old value: new value}}}."""

Note = Callable[[str], None]
"""Receives one sentence per old name that was used."""


def log_note(text: str) -> None:
    """The usual `Note`: a warning of the logger "lora_loom", which the command line shows on standard error."""
    logging.getLogger("lora_loom").warning(text)


def no_note(text: str) -> None:
    """The `Note` for what no person wrote: the records of earlier runs, and the inputs of saved workflows."""


def current_option(path: list[str]) -> list[str]:
    """A dotted option such as ["training", "keep"] or ["dataset", "0", "measure"] under its present name."""
    *parents, last = path
    return [*parents, OPTIONS.get(parents[0], {}).get(last, last)] if parents else path


def current_options(table: str, options: Mapping[str, Any], note: Note = no_note) -> dict[str, Any]:
    """The options of one table under their present names and values. Raises ConfigError where both names are given."""
    renamed, made = OPTIONS.get(table, {}), {}
    for name, value in options.items():
        new = renamed.get(name, name)
        if new != name:
            if new in options:
                raise ConfigError(
                    f"{table}.{name} = {value!r} and {table}.{new} = {options[new]!r}: {name} is the older name of {new}; leave one of them out"
                )
            note(f"{table}.{name} is now {table}.{new}")
        made[new] = _current_value(table, new, value, note)
    return made


def _current_value(table: str, option: str, value: object, note: Note) -> object:
    new = VALUES.get(table, {}).get(option, {}).get(value) if isinstance(value, str) else None
    if new is None:
        return value
    note(f"{table}.{option} = {value!r} is now {new!r}")
    return new


def current_tree(tree: Mapping[str, Any], note: Note = no_note) -> dict[str, Any]:
    """A whole configuration, or the part of one that a run recorded, under the present names. Raises ConfigError."""
    noted: set[str] = set()

    def once(text: str) -> None:
        if text not in noted:
            noted.add(text)
            note(text)

    return {name: _current_table(name, value, once) for name, value in tree.items()}


def _current_table(name: str, value: object, note: Note) -> object:
    if isinstance(value, Mapping):
        return current_options(name, value, note)
    if isinstance(value, list | tuple) and name in OPTIONS:
        return [current_options(name, one, note) if isinstance(one, Mapping) else one for one in value]
    return value
