"""Folders of LoRA Loom in ComfyUI, and which paths a workflow may name. A workflow is untrusted: it may come from anybody.

Folders are relative to ComfyUI's input directory, or absolute below its own directories or below roots listed in the
settings file. Any other absolute path is accepted only while the server can be reached from this machine alone.
"""

import json
import os
from pathlib import Path

import folder_paths

from ...trainer.errors import ConfigError
from ...trainer.runs.run_folder import RunFolder
from ...trainer.storage.atomic import write_bytes
from ...trainer.storage.names import check_name

SETTINGS_NAME = "lora_loom.json"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def root() -> Path:
    """The folder of runs and of the cache."""
    return Path(folder_paths.get_output_directory()) / "lora_loom"


def run_folder(name: str) -> RunFolder:
    """The folder of a run. Raises ConfigError for a name that could lead out of `root`."""
    return RunFolder(root() / check_name(name))


def cache_folder() -> Path:
    """The folder of the cache, and of images from the graph."""
    return root() / "cache"


def lora_root() -> Path:
    """The first of the LoRA folders that ComfyUI lists."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def lora_folder() -> Path:
    """The folder of LoRA files that LoRA Loom writes for ComfyUI."""
    return lora_root() / "lora_loom"


def lora_name(run: str, step: int | None = None) -> str:
    """The name of a saved LoRA as LoraLoader lists it: that of a checkpoint, or of the end of the run without a step."""
    file = f"{run}.safetensors" if step is None else f"{run}-{step:06d}.safetensors"
    return str(Path("lora_loom") / run / file)


def find_lora(name: str) -> Path:
    """The file behind a name that LoraLoader lists. Raises ConfigError for any other name."""
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise ConfigError(f"no LoRA {name!r} in {lora_root()}: choose one that LoraLoader lists")
    return Path(path)


def display_path(path: Path) -> dict[str, str]:
    """An image in the output directory, in the form that ComfyUI's frontend shows."""
    inner = path.relative_to(folder_paths.get_output_directory())
    return {"filename": inner.name, "subfolder": inner.parent.as_posix(), "type": "output"}


def page_of_run(path: Path) -> dict[str, str] | None:
    """A file of a run as the run's name and a path inside its folder; None if it belongs to no run: a sweep of LoRA files alone."""
    if not path.is_relative_to(root()):
        return None
    run, *inner = path.relative_to(root()).parts
    return {"run": run, "file": "/".join(inner)} if (root() / run / "run.json").is_file() else None


def preview(name: str, content: bytes) -> dict[str, str]:
    """Write an image to the temporary directory, which ComfyUI empties at its start; returns the form that the frontend shows."""
    write_bytes(Path(folder_paths.get_temp_directory()) / "lora_loom" / name, content)
    return {"filename": name, "subfolder": "lora_loom", "type": "temp"}


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is inside a folder once symbolic links are resolved."""
    real, base = os.path.realpath(path), os.path.realpath(folder)
    try:
        return os.path.commonpath([real, base]) == base
    except ValueError:  # another drive
        return False


def settings_file() -> Path:
    """The settings of LoRA Loom in ComfyUI's user directory."""
    return Path(folder_paths.get_user_directory()) / SETTINGS_NAME


def allowed_roots() -> list[Path]:
    """Folders that a workflow may name: ComfyUI's own, those of datasets too, and the "roots" of the settings file. Raises ConfigError for an invalid file."""
    own = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory()]
    own += _dataset_folders()
    listed: list[str] = []
    if settings_file().is_file():
        try:
            listed = [str(path) for path in json.loads(settings_file().read_text(encoding="utf-8")).get("roots", [])]
        except (ValueError, AttributeError) as error:
            raise ConfigError(
                f'{settings_file()} is not valid: write {{"roots": ["/path/to/datasets"]}} ({error})'
            ) from error
    return [Path(path).expanduser() for path in [*own, *listed]]


def _dataset_folders() -> list[str]:
    """Where newer versions of ComfyUI keep datasets."""
    try:
        return list(folder_paths.get_folder_paths("datasets"))
    except KeyError:
        return []


def listens_locally() -> bool:
    """Whether only programs on this machine can reach the server."""
    from comfy.cli_args import args

    return all(address.strip() in LOOPBACK for address in str(args.listen).split(","))


def resolve_folder(text: str, what: str) -> Path:
    """A folder named in a workflow. Raises ConfigError with the remedy if it may not be used or is not a folder."""
    path = _allowed(text, what, "folder")
    if not path.is_dir():
        raise ConfigError(f"{what}: {path} is not a folder")
    return path


def resolve_file(text: str, what: str) -> Path:
    """A file named in a workflow. Raises ConfigError with the remedy if it may not be used or is not a file."""
    path = _allowed(text, what, "file")
    if not path.is_file():
        raise ConfigError(f"{what}: {path} is not a file")
    return path


def may_name(path: Path) -> bool:
    """Whether a workflow, or a file that it names, may name this absolute path."""
    return any(is_inside(path, allowed) for allowed in allowed_roots()) or listens_locally()


def library_path(name: str) -> str:
    """The full path of a prompt library that a workflow names; "" if it names none. Raises ConfigError."""
    return str(resolve_file(name, "prompt_library")) if name.strip() else ""


def library_state(name: str) -> str:
    """The content of a prompt library, or the error: a text that changes when the nodes that use it must run again."""
    try:
        return Path(library_path(name)).read_text(encoding="utf-8", errors="replace") if name.strip() else ""
    except (ConfigError, OSError) as error:
        return str(error)


def _allowed(text: str, what: str, kind: str) -> Path:
    cleaned = text.strip()
    if not cleaned or "\0" in cleaned:
        raise ConfigError(f"{what} = {text!r}: name a {kind}, e.g. one inside {folder_paths.get_input_directory()}")
    try:
        path = Path(cleaned).expanduser()
        os.fsencode(path)
    except (RuntimeError, ValueError) as error:  # a home of nobody, half a surrogate pair
        raise ConfigError(f"{what} = {text!r} is not a path on this machine ({error}): name a {kind}") from error
    if not path.is_absolute():
        base = Path(folder_paths.get_input_directory())
        path = base / path
        if not is_inside(path, base):
            raise ConfigError(f"{what} = {text!r} is outside {base}: name a {kind} inside it")
    elif not may_name(path):
        raise ConfigError(
            f'{what} = {text!r}: absolute paths outside the folders of ComfyUI are refused while the server can be reached from other machines. Add the folder to "roots" in {settings_file()}, or move it into {folder_paths.get_input_directory()}'
        )
    return path
