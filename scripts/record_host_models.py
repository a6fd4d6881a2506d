"""Build every class of ComfyUI that makes images at its published size, without weights, and write down which layers train.

    COMFYUI_PATH=~/ComfyUI $COMFYUI_PYTHON -m scripts.record_host_models tests/fixtures/host/models.json

`image_models.py` lists the classes. The record of each is what a run in the graph would do with it: the same probe, presets
and rows of known models. `write_model_docs.py` makes the table of docs/models.md of it.
"""

import importlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .image_models import CLASSES, TEXTS, Published

ROOT = Path(__file__).resolve().parents[1]
RANK = 16
PRESETS = ("default", "attention", "attention+mlp")


def import_pack() -> Callable[[str], Any]:
    """A function that imports our modules by name, whatever the repository's folder is called."""
    folder = Path(tempfile.mkdtemp())
    (folder / "lora_loom").symlink_to(ROOT)
    sys.path.append(str(folder))
    return lambda name: importlib.import_module(f"lora_loom.{name}")


def import_comfy() -> tuple[Any, str]:
    """ComfyUI for the CPU: its module of supported models, and its version."""
    sys.path.insert(0, str(Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()))
    import utils.extra_config  # noqa: F401 - as ComfyUI's main does: later another module of that name is in the way
    from comfy.cli_args import args

    args.cpu = args.use_pytorch_cross_attention = True
    import comfy.supported_models
    import comfyui_version

    return comfy.supported_models, comfyui_version.__version__


def build(supported: Any, name: str, published: Published) -> Any:
    """The class of comfy.model_base over a network on the meta device."""
    import torch

    config = getattr(supported, name)(dict(published.config))
    config.set_inference_dtype(torch.float32, None)
    try:
        with torch.device("meta"):
            return config.get_model({}, "", device="meta")
    except (RuntimeError, NotImplementedError):  # it reads numbers that it has made
        return config.get_model({}, "", device="meta")


def text_of(name: str) -> dict[str, Any]:
    """A text as the text encoder would give it, of zeros: numbers of tokens are ones."""
    import torch

    made = {key: torch.zeros(1, *shape) for key, shape in TEXTS[name].items()}
    ids = {
        key: torch.ones_like(value, dtype=torch.long) for key, value in made.items() if key.endswith(("_ids", "_mask"))
    }
    return {**made, **ids}


def record(loom: Callable[[str], Any], model: Any, name: str) -> dict[str, Any]:
    """What a run would train of one class."""
    import torch

    families, rows = loom("nodes.host.backend.families"), loom("nodes.host.backend.model_rows")
    known, roles = loom("trainer.known_models.row"), loom("trainer.lora.roles")
    network = loom("nodes.host.backend.shadow").build_shadow(
        model.diffusion_model, dict(model.diffusion_model.state_dict())
    )
    family = type(model).__name__
    factor = int(getattr(model.latent_format, "spacial_downscale_ratio", 8) or 1)
    channels = model.latent_format.latent_channels
    told = known.tell(loom("trainer.known_models.rows").ROWS, family, model.model_config.unet_config, [])
    plain = families.described(family, network)
    values = plain.conditions if plain else {}
    seen, problem = None, ""
    try:
        seen = loom("nodes.host.runs.probe").probe_loaded(
            model, network, text_of(name), values, factor, channels, torch.float32
        )
    except Exception as error:  # noqa: BLE001 - as in a run
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    by_role, by_name = roles.roles(network, seen), roles.roles(network)
    settings = plain or families.LoadedFamily(
        targets=roles.presets(network, seen), blocks=families.repeated_blocks(network)
    )
    settings = rows.with_row(settings, told, network)
    for path, parts in settings.parts.items():
        loom("trainer.weights.row_parts").split(network.get_submodule(path), parts)
    linears = {path: network.get_submodule(path) for path in by_role}
    total = sum(part.weight.numel() for part in linears.values())
    return {
        "model_class": family,
        "row": told.row.name if told else "",
        "has_family": plain is not None,
        "problem": problem,
        "linears": len(linears),
        "roles": dict(sorted(Counter(by_role.values()).items())),
        "otherwise_named": sorted(path for path in by_role if by_role[path] != by_name[path])[:3],
        "idle": len(seen.idle) if seen else 0,
        "presets": {preset: trained(loom, network, settings, preset, total) for preset in PRESETS},
    }


def trained(loom: Callable[[str], Any], network: Any, settings: Any, preset: str, total: int) -> dict[str, Any]:
    """What a preset trains: how many Linears, rows of them and convolutions, the Linears' share of all Linear weights, parameters at
    RANK."""
    paths = loom("trainer.lora.targets").resolve_targets(network, settings.targets, preset)
    parts = [network.get_submodule(path) for path in paths]
    linears = [part for part in parts if hasattr(part, "in_features")]
    sizes = [(part.in_features, part.out_features) for part in linears]
    share = sum(inner * outer for inner, outer in sizes) / total
    return {
        "modules": len(parts),
        "share": round(share, 4),
        "parameters": sum(RANK * (part.weight.shape[0] + part.weight[0].numel()) for part in parts),
    }


def main(names: list[str], out: Path | None) -> None:
    supported, version = import_comfy()
    loom = import_pack()
    loom("nodes.host.backend.rope").register_rope_gradients()
    listed = [one.__name__ for one in supported.models]
    found: dict[str, Any] = {"comfyui": version, "listed": listed, "classes": {}}
    for name in names or CLASSES:
        if name in listed:
            found["classes"][name] = record(loom, build(supported, name, CLASSES[name]), name)
            print(f"{name}: {found['classes'][name]}", file=sys.stderr, flush=True)
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[2:], None if sys.argv[1] == "-" else Path(sys.argv[1]))
