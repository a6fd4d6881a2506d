"""Bytes of the frozen base after loading an original single file: none beyond the file's own, but for small swaps."""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from lora_loom.trainer import families
from lora_loom.trainer.families.common.family import Loading
from lora_loom.trainer.families.common.source import open_source
from scripts.host_toys import HEADLESS, toy_tensor

from .common import report

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "host"


def extra_bytes(name: str, folder: Path) -> tuple[int, int]:
    """(bytes of parameters outside the file's storages, bytes of the file's tensors)."""
    keys = json.loads((FIXTURES / f"{name}.json").read_text())["keys"]
    path = folder / f"{name}.safetensors"
    save_file({key: toy_tensor(key, tuple(shape)) for key, shape in keys.items()}, path)
    source = open_source(str(path))
    tensors = source.tensors()
    source.tensors = lambda: tensors  # type: ignore[method-assign] - so that storages can be compared
    family, variant = families.detect(source.shapes, path)
    denoiser = family.load_denoiser(source, variant, Loading(dtype=None, device=torch.device("cpu")))
    owned = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    held = [*denoiser.module.parameters(), *denoiser.module.buffers()]
    extra = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in held
        if t.untyped_storage().data_ptr() not in owned
    }
    return sum(extra.values()), sum(tensor.nbytes for tensor in tensors.values())


def main() -> None:
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in HEADLESS:
            extra, total = extra_bytes(name, Path(folder))
            figures[f"{name}: extra bytes of {total:,}"] = extra
    report("loading", figures)


if __name__ == "__main__":
    main()
