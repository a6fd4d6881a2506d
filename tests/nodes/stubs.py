"""Stand-ins for ComfyUI's modules: enough for every file of nodes/ to be imported without ComfyUI."""

import sys
import types
from contextlib import contextmanager
from importlib.machinery import ModuleSpec


def module(name, **names):
    made = types.ModuleType(name)
    vars(made).update(names)
    return made


class Cli:
    listen = "127.0.0.1"
    tls_keyfile = None


def host_modules(base):
    """{name: module} with folder_paths over `base`."""
    folders = {name: str(base / name) for name in ("input", "output", "temp", "user")}
    models = base / "models"

    def full_path(kind, name):
        path = models / kind / name
        return str(path) if path.is_file() else None

    def names(kind):
        return sorted(path.relative_to(models / kind).as_posix() for path in (models / kind).rglob("*.safetensors"))

    getters = {f"get_{name}_directory": (lambda path=path: path) for name, path in folders.items()}
    paths = module(
        "folder_paths",
        get_folder_paths=lambda kind: [str(base / "datasets" if kind == "datasets" else models / kind)],
        get_full_path=full_path,
        get_filename_list=names,
        **getters,
    )
    comfy = module("comfy", __path__=[])
    arguments = module("comfy.cli_args", args=Cli())
    comfy.cli_args = arguments
    server = module("server", PromptServer=type("PromptServer", (), {"instance": None}))
    paths.__spec__ = ModuleSpec("folder_paths", None)  # by which the pack knows that it is inside ComfyUI
    names = (
        "Application",
        "Request",
        "StreamResponse",
        "Response",
        "RouteTableDef",
    )  # the routes name its types when imported
    web = module("aiohttp.web", **{name: type(name, (), {}) for name in names}, middleware=lambda handler: handler)
    aiohttp = {"aiohttp": module("aiohttp", web=web), "aiohttp.web": web}
    return {**aiohttp, "folder_paths": paths, "comfy": comfy, "comfy.cli_args": arguments, "server": server}


@contextmanager
def stubbed(base):
    """The stand-ins in sys.modules; whatever of nodes/host was imported with them is forgotten afterwards."""
    before = {name: sys.modules.get(name) for name in host_modules(base)}
    sys.modules.update(host_modules(base))
    try:
        yield
    finally:
        for name, old in before.items():
            sys.modules.pop(name) if old is None else sys.modules.__setitem__(name, old)
        for name in [name for name in sys.modules if ".nodes.host" in name and name.startswith("lora_loom")]:
            del sys.modules[name]
