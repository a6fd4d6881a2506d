"""Folders of LoRA Loom in ComfyUI, and which paths a workflow may name. A workflow is untrusted: it may come from anybody.

Folders are relative to ComfyUI's input directory, or absolute below its own directories or below roots listed in the
settings file. Any other absolute path is accepted only while the server can be reached from this machine alone.
"""

import json
import os
from pathlib import Path, PureWindowsPath

import folder_paths

from ...trainer.errors import ConfigError
from ...trainer.runs.run_folder import RunFolder
from ...trainer.storage.atomic import write_bytes
from ...trainer.storage.names import check_name
from .reach import REACH, why_foreign

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


def by_folders_of_comfyui(text: str) -> str:
    """A text in which paths below ComfyUI's own folders begin with the folder: input/cats. Where these lie on the server is nobody's business in a report."""
    for name in ("input", "output", "temp"):
        folder = getattr(folder_paths, f"get_{name}_directory")()
        text = text.replace(f"{folder}{os.sep}", f"{name}/")
    return text


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
    return [Path(path).expanduser() for path in [*own, *_settings("roots")]]


def _settings(name: str) -> list[str]:
    """A list of texts in the settings file; [] without one. Raises ConfigError for an invalid file."""
    try:
        return [str(one) for one in json.loads(settings_file().read_text(encoding="utf-8")).get(name, [])]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(
            f'{settings_file()} is not valid: write {{"roots": ["/path/to/datasets"]}} ({error})'
        ) from error


def _dataset_folders() -> list[str]:
    """Where newer versions of ComfyUI keep datasets."""
    try:
        return list(folder_paths.get_folder_paths("datasets"))
    except KeyError:
        return []


def listens_locally() -> bool:
    """Whether the server listens on this machine alone."""
    from comfy.cli_args import args

    return all(address.strip() in LOOPBACK for address in str(args.listen).split(","))


def is_private() -> bool:
    """Whether only programs on this machine can reach the server, as far as is known: no request has come through a tunnel or proxy."""
    return listens_locally() and not REACH.seen


def why_foreign_host(host: str | None) -> str:
    """Why a request with this Host header is refused; "" if it is not. A settings file that cannot be read allows no names."""
    if not listens_locally():
        return ""
    try:
        names = _settings("hosts")
    except ConfigError:
        names = []
    refusal = why_foreign(host, names)
    return refusal and f'{refusal}: if that is your own tunnel or proxy, add its name to "hosts" in {settings_file()}'


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
    if is_share(str(path)):  # on Windows already asking for it sends the user's name and a hash of the password
        return any(is_below(str(path), str(allowed)) for allowed in allowed_roots())
    return any(is_inside(path, allowed) for allowed in allowed_roots()) or is_private()


def is_share(text: str) -> bool:
    r"""Whether a path names another machine or a device: \\server\share, //server/share, \\?\..."""
    return text.strip().replace("/", "\\").startswith("\\\\")


def is_below(path: str, folder: str) -> bool:
    """Whether a path lies below a folder by its letters alone, as Windows compares them."""
    inner = PureWindowsPath(path)
    return ".." not in inner.parts and inner.is_relative_to(PureWindowsPath(folder))


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
    if is_share(cleaned) and not any(is_below(cleaned, str(allowed)) for allowed in allowed_roots()):
        raise ConfigError(
            f'{what} = {text!r} is on another machine: add it to "roots" in {settings_file()}, or copy the {kind} to this one'
        )
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
            f'{what} = {text!r}: absolute paths outside the folders of ComfyUI are refused while the server can be reached from other machines{_sign()}. Add the folder to "roots" in {settings_file()}, or move it into {folder_paths.get_input_directory()}'
        )
    return path


def _sign() -> str:
    return f" ({REACH.seen} has come)" if REACH.seen else ""
