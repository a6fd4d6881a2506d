"""Fingerprints that identify networks by their weights, not by file names, object ids or the order of keys.

A fingerprint is the sha256 over the sorted (key, shape, dtype, 64 evenly spaced elements as fp32) of the original weights. It
reads a few pages of a memory-mapped file, and it changes with any fine-tune.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ModelFileError
from .leases import leased

ELEMENTS = 64
"""Number of elements of a tensor that enter its fingerprint."""


def sample(tensor: Tensor) -> bytes:
    """Up to 64 evenly spaced elements of a tensor as little-endian fp32 bytes."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() > ELEMENTS:
        flat = flat[torch.linspace(0, flat.numel() - 1, ELEMENTS, dtype=torch.float64).round().long().to(flat.device)]
    return flat.float().cpu().numpy().tobytes()


def weights_identity(tensors: Iterable[tuple[str, Tensor]], options: Mapping[str, object] | None = None) -> str:
    """Hex digest of named tensors, and of `options`: JSON values that change the network's output."""
    sha = hashlib.sha256(json.dumps(dict(options or {}), sort_keys=True).encode())
    for key, tensor in sorted(tensors, key=lambda item: item[0]):
        sha.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(sample(tensor))
    return sha.hexdigest()


def files_identity(files: Iterable[Path], prefix: str = "") -> str:
    """Returns the `weights_identity` of all tensors in safetensors files whose keys start with `prefix`. Raises ModelFileError."""
    return weights_identity(item for path in files for item in _tensors(path, prefix))


def _tensors(path: Path, prefix: str) -> Iterable[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with leased([path]), safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                if key.startswith(prefix):
                    yield key, file.get_tensor(key)
    except SafetensorError as error:
        raise ModelFileError(f"{path} is damaged or truncated ({error}): download or copy it again") from error


def folder_identity(folder: Path, parts: Iterable[str], options: Mapping[str, object]) -> str:
    """Digest of sub-folders of a diffusers model: weights by `files_identity`, small text files by their bytes.

    The text files are configurations and tokenizers. Sub-folders that do not exist are left out. Raises ModelFileError.
    """
    sha = hashlib.sha256(json.dumps(dict(options), sort_keys=True).encode())
    for part in sorted(parts):
        for path in sorted((folder / part).glob("*")) if (folder / part).is_dir() else []:
            if path.suffix in (".json", ".txt", ".model"):
                sha.update(f"{part}/{path.name}".encode() + path.read_bytes())
        sha.update(files_identity(sorted((folder / part).glob("*.safetensors"))).encode())
    return sha.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Returns the sha256 of a tensor's shape, dtype and bytes."""
    plain = tensor.detach().cpu().contiguous()
    raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return hashlib.sha256(f"{tuple(plain.shape)} {plain.dtype}".encode() + raw).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of names, shapes, dtypes and bytes of all tensors; for small files, where a change of any element matters."""
    lines = [f"{name} {tensor_digest(tensor)}" for name, tensor in sorted(tensors.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
