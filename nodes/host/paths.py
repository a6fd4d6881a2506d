"""Where things lie, and which paths a workflow may name. A workflow is untrusted input: it may come from anybody.

Folders are relative to ComfyUI's input directory, or absolute below its own directories or below roots listed in the
settings file. Any other absolute path is accepted only while the server listens on this machine alone.
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
    """Runs and the cache."""
    return Path(folder_paths.get_output_directory()) / "lora_loom"


def run_folder(name: str) -> RunFolder:
    """Raises ConfigError for a name that could leave the folder."""
    return RunFolder(root() / check_name(name))


def cache_folder() -> Path:
    return root() / "cache"


def lora_root() -> Path:
    """First folder of LoRAs that ComfyUI lists."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def lora_folder() -> Path:
    return lora_root() / "lora_loom"


def lora_name(run: str, step: int | None = None) -> str:
    """A saved LoRA as LoraLoader lists it."""
    file = f"{run}.safetensors" if step is None else f"{run}-{step:06d}.safetensors"
    return str(Path("lora_loom") / run / file)


def find_lora(name: str) -> Path:
    """The file behind a name of LoraLoader's list. Raises ConfigError."""
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise ConfigError(f"no LoRA {name!r} in {lora_root()}: choose one that LoraLoader lists")
    return Path(path)


def display_path(path: Path) -> dict[str, str]:
    """A picture in the output directory as ComfyUI's pages name it."""
    inner = path.relative_to(folder_paths.get_output_directory())
    return {"filename": inner.name, "subfolder": inner.parent.as_posix(), "type": "output"}


def preview(name: str, content: bytes) -> dict[str, str]:
    """Show a picture that no node saves: it lies in the temporary directory, which ComfyUI empties when it starts."""
    write_bytes(Path(folder_paths.get_temp_directory()) / "lora_loom" / name, content)
    return {"filename": name, "subfolder": "lora_loom", "type": "temp"}


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder after all links are followed."""
    real, base = os.path.realpath(path), os.path.realpath(folder)
    try:
        return os.path.commonpath([real, base]) == base
    except ValueError:  # another drive
        return False


def settings_file() -> Path:
    return Path(folder_paths.get_user_directory()) / SETTINGS_NAME


def allowed_roots() -> list[Path]:
    """ComfyUI's own directories and those of the settings file's "roots"."""
    own = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory()]
    listed: list[str] = []
    if settings_file().is_file():
        try:
            listed = [str(path) for path in json.loads(settings_file().read_text(encoding="utf-8")).get("roots", [])]
        except (ValueError, AttributeError) as error:
            raise ConfigError(
                f'{settings_file()} is not valid: write {{"roots": ["/path/to/datasets"]}} ({error})'
            ) from error
    return [Path(path).expanduser() for path in [*own, *listed]]


def listens_locally() -> bool:
    """Whether only programs on this machine can reach the server."""
    from comfy.cli_args import args

    return all(address.strip() in LOOPBACK for address in str(args.listen).split(","))


def resolve_folder(text: str, what: str) -> Path:
    """A folder named in a workflow. Raises ConfigError if it may not be used, or is none, with the remedy."""
    path = _allowed(text, what, "folder")
    if not path.is_dir():
        raise ConfigError(f"{what}: {path} is not a folder")
    return path


def resolve_file(text: str, what: str) -> Path:
    """A file named in a workflow. Raises ConfigError if it may not be used, or is none, with the remedy."""
    path = _allowed(text, what, "file")
    if not path.is_file():
        raise ConfigError(f"{what}: {path} is not a file")
    return path


def library_path(name: str) -> str:
    """A prompt library that a workflow names, in full; "" for none. Raises ConfigError."""
    return str(resolve_file(name, "prompt_library")) if name.strip() else ""


def library_state(name: str) -> str:
    """What the library holds, or why it cannot be read: changes when its nodes must run again."""
    try:
        return Path(library_path(name)).read_text(encoding="utf-8", errors="replace") if name.strip() else ""
    except (ConfigError, OSError) as error:
        return str(error)


def _allowed(text: str, what: str, kind: str) -> Path:
    cleaned = text.strip()
    if not cleaned or "\0" in cleaned:
        raise ConfigError(f"{what} = {text!r}: name a {kind}, e.g. one inside {folder_paths.get_input_directory()}")
    path = Path(cleaned).expanduser()
    if not path.is_absolute():
        base = Path(folder_paths.get_input_directory())
        path = base / path
        if not is_inside(path, base):
            raise ConfigError(f"{what} = {text!r} leads out of {base}: name a {kind} inside it")
    elif not any(is_inside(path, allowed) for allowed in allowed_roots()) and not listens_locally():
        raise ConfigError(
            f'{what} = {text!r}: absolute paths elsewhere are refused while the server can be reached from other machines. Add the folder to "roots" in {settings_file()}, or move it into {folder_paths.get_input_directory()}'
        )
    return path
