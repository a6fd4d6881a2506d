"""Recognises a file of another trainer by its keys, not its name, and has it translated."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.toml import toml_tables
from ..data.sets.checks import Surroundings
from ..errors import ConfigError, problem_list, reading
from ..storage.limits import refuse_bombs
from . import accelerate, diffusion_pipe
from .ai_toolkit import config as ai_toolkit
from .finish import Imported, finish
from .kohya import musubi
from .kohya import run as kohya
from .onetrainer import concepts
from .onetrainer import config as onetrainer
from .simpletuner import config as simpletuner
from .simpletuner import datasets, network
from .table import by_name
from .translation import Translation

Translate = Callable[[Any, Surroundings], Translation]
"""A function of (what the file holds, what lies around it)."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file that can be imported."""

    title: str
    """What the file is, as in "FILE is …"."""
    fits: Callable[[Any], bool]
    """Whether what a file holds is of this kind."""
    translate: Translate
    is_dataset_file: bool = False
    """Whether `data.sets.dataset_file` reads it as it is."""


def _keys(data: Any) -> set[str]:
    return {str(key).lstrip("-") for key in data} if isinstance(data, Mapping) else set()


def _tables(data: Any, name: str) -> list[Mapping[str, Any]]:
    found = data.get(name) if isinstance(data, Mapping) else None
    return found if isinstance(found, list) and all(isinstance(one, Mapping) for one in found) else []


def _is_simpletuner(data: Any) -> bool:
    keys = _keys(data)
    known = by_name("simpletuner", ("config",))
    own = {"model_family", "MODEL_FAMILY", "TRAINER_EXTRA_ARGS", "DATALOADER_CONFIG", "CONFIG_BACKEND", "CONFIG_TYPE"}
    return (
        bool(keys & own)
        or "TRAINING_NUM_PROCESSES" in keys
        or {"model_type", "data_backend_config"} <= keys
        or (bool(keys) and all(key in known for key in keys))
    )


def _is_backends(data: Any) -> bool:
    marks = {"type", "dataset_type", "instance_data_dir"}
    return isinstance(data, list) and bool(data) and all("id" in _keys(one) and _keys(one) & marks for one in data)


def _is_prompts(data: Any) -> bool:
    return (
        isinstance(data, Mapping) and bool(data) and all(isinstance(one, str) and " " in one for one in data.values())
    )


def _is_command(data: Any) -> bool:
    return isinstance(data, str) and bool(kohya.command_options(data)[1])


def _is_musubi_command(data: Any) -> bool:
    return _is_command(data) and musubi.is_command(*kohya.command_options(data))


def _is_easy(data: Any) -> bool:
    tables = [one for one in data.values() if isinstance(one, Mapping)] if isinstance(data, Mapping) else []
    return any("args" in one or "dataset_args" in one for one in tables)


def _is_run(data: Any) -> bool:
    if not isinstance(data, Mapping) or _tables(data, "datasets"):
        return False
    keys = set(kohya.flat(data))
    return bool(keys & {"network_module", "network_dim"}) and bool(
        keys & {"pretrained_model_name_or_path", "network_module", "dit"}
    )


def _is_part_of_run(data: Any) -> bool:
    """Some options of a run alone, as pages print them."""
    if not isinstance(data, Mapping) or not data:
        return False
    known = by_name("sd_scripts", ("args",))
    return {"optimizer_type", "optimizer_args", "network_args", "lr_scheduler_args"} & set(data) != set() and all(
        key in known for key in data
    )


def _is_musubi_run(data: Any) -> bool:
    return _is_run(data) and musubi.is_command("", kohya.flat(data))


def _is_sets(data: Any) -> bool:
    return bool(_tables(data, "datasets"))


FORMATS = (
    Format(
        title="SimpleTuner's list of datasets",
        fits=_is_backends,
        translate=datasets.translate_datasets,
        is_dataset_file=True,
    ),
    Format(
        title="a LyCORIS configuration",
        fits=lambda data: "algo" in _keys(data),
        translate=network.translate_lycoris,
    ),
    Format(title="a job of ai-toolkit", fits=ai_toolkit.is_config, translate=ai_toolkit.translate),
    Format(title="a configuration of OneTrainer", fits=onetrainer.is_config, translate=onetrainer.translate),
    Format(
        title="OneTrainer's concepts",
        fits=concepts.is_concepts,
        translate=concepts.translate_concepts,
    ),
    Format(title="a command of musubi-tuner", fits=_is_musubi_command, translate=musubi.translate_command),
    Format(title="a command of kohya's sd-scripts", fits=_is_command, translate=kohya.translate_command),
    Format(title="a configuration of LoRA_Easy_Training_Scripts", fits=_is_easy, translate=kohya.translate_easy),
    Format(title="a configuration of musubi-tuner", fits=_is_musubi_run, translate=musubi.translate_run),
    Format(title="a configuration of kohya's sd-scripts", fits=_is_run, translate=kohya.translate_run),
    Format(
        title="datasets of kohya's sd-scripts or musubi-tuner",
        fits=_is_sets,
        translate=musubi.translate_datasets,
        is_dataset_file=True,
    ),
    Format(title="a configuration of diffusion-pipe", fits=diffusion_pipe.is_run, translate=diffusion_pipe.translate),
    Format(
        title="datasets of diffusion-pipe",
        fits=diffusion_pipe.is_datasets,
        translate=diffusion_pipe.translate_datasets,
    ),
    Format(title="a configuration of accelerate", fits=accelerate.is_config, translate=accelerate.translate),
    Format(title="a configuration of SimpleTuner", fits=_is_simpletuner, translate=simpletuner.translate),
    Format(title="options of kohya's sd-scripts", fits=_is_part_of_run, translate=kohya.translate_run),
    Format(title="a prompt library of SimpleTuner", fits=_is_prompts, translate=simpletuner.translate_prompts),
)
"""In the order in which they are tried."""


def recognise(path: Path) -> Format | None:
    """The kind of a file, or None for one that no importer reads. Never raises."""
    try:
        data = _data(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ConfigError):
        return None
    return _format(data)


def import_text(text: str, around: Surroundings, called: str) -> Imported:
    """Translate what a text holds that is `called` so in messages. Raises ConfigError."""
    data = _data(text)
    kind = _format(data)
    if kind is None:
        known = ", ".join(one.title for one in FORMATS)
        raise ConfigError(f"{called} is none of the files that can be imported: {known}")
    try:
        with reading("this file", ConfigError, "compare it with the trainer's own documentation"):
            return finish(kind.translate(data, around))
    except ConfigError as error:
        raise ConfigError(f"{called}: {error}") from error


def import_file(path: Path, allowed: Callable[[Path], bool] = lambda path: True) -> Imported:
    """Translate a file of another trainer. Raises ConfigError that names the file.

    `allowed` says which of the files and folders that it names may be looked at; the others count as missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8: {error}") from error
    return import_text(text, Surroundings(path.parent, allowed), str(path))


def _format(data: Any) -> Format | None:
    return next((one for one in FORMATS if one.fits(data)), None)


def _data(text: str) -> Any:
    """What a text holds: JSON, TOML, YAML or, as text, a command line; the first that can be read. Raises ConfigError."""
    problems = []
    try:
        refuse_bombs(text)
    except ValueError as error:
        raise ConfigError(f"it cannot be a configuration: {error}") from error
    for reader in (_json, _toml, _environment, _command, _yaml):
        try:
            found = reader(text)
        except (ValueError, RecursionError) as error:
            problems.append(f"{reader.__name__[1:].upper()}: {str(error).splitlines()[0] if str(error) else error!r}")
            continue
        if found:
            return found
    raise ConfigError(problem_list(["it can be read neither as", *problems]))


def _json(text: str) -> Any:
    """JSON; guides print fragments without the outer braces, and commas behind the last entry."""
    plain = _without_trailing_commas(text.strip().rstrip(","))
    return json.loads(plain if plain[:1] in ("{", "[") else f"{{{plain}}}")


def _without_trailing_commas(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        closes = line.strip()[:1] in ("}", "]")
        while closes and lines and not lines[-1].strip():
            lines.pop()
        if closes and lines and lines[-1].rstrip().endswith(","):
            lines[-1] = lines[-1].rstrip()[:-1]
        lines.append(line)
    return "\n".join(lines)


def _toml(text: str) -> Any:
    return toml_tables(text)


def _environment(text: str) -> Any:
    """The variables of SimpleTuner's config.env."""
    return simpletuner.environment(text)


def _command(text: str) -> Any:
    return text if _is_command(text) else None


def _yaml(text: str) -> Any:
    import yaml  # type: ignore[import-untyped, unused-ignore]  # its types are not installed with it

    class Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
        """YAML in which 007 and 12:30 are the texts that were written, and no octal and sexagesimal numbers."""

    def whole(loader: Any, node: Any) -> Any:
        written = loader.construct_scalar(node)
        meant = re.fullmatch(r"[-+]?0\d+", written) or ":" in written
        return written if meant else loader.construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", whole)
    try:
        found = Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(error) from error
    return found if isinstance(found, dict | list) else None
