"""Reading safetensors files: the header at once, the tensors one by one."""

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..errors import ModelFileError
from .atomic import DATA_DIGEST, data_digest

FORMATS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""{dtype: its name in a safetensors header}."""
_DTYPES = {name: dtype for dtype, name in FORMATS.items()}
MAX_HEADER = 100_000_000
"""Largest header in bytes; safetensors has the same limit."""
TensorHeader = dict[str, tuple[str, tuple[int, ...]]]
"""{tensor name: (dtype as in a safetensors header, shape)}, in the order of the file."""


class TensorSlice(Protocol):
    """What is used of the slices of safetensors, which has no type annotations."""

    def get_dtype(self) -> str:
        """The dtype as in the header."""
        ...

    def get_shape(self) -> list[int]:
        """The shape, known without reading the data."""
        ...


class OpenTensors(Protocol):
    """What is used of the files that `safetensors.safe_open` opens, which has no type annotations."""

    def metadata(self) -> Mapping[str, str] | None:
        """The file's metadata, if it has any."""
        ...

    def keys(self) -> list[str]:
        """The names of the tensors."""
        ...

    def get_tensor(self, name: str) -> Tensor:
        """The tensor on the CPU, memory-mapped where the system allows it."""
        ...

    def get_slice(self, name: str) -> TensorSlice:
        """Shape and dtype of a tensor, without its data."""
        ...


class ReadTensors:
    """A safetensors file whose tensors are read, not mapped: a map of a file that another program or a network drive cuts short ends the
    process (SIGBUS), a read is an error. One thread reads at a time. Raises OSError, and ValueError for a file that is cut or damaged."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)  # what a buffer holds would hide that the file is cut
        length = int.from_bytes(self._file.read(8), "little")
        text = self._file.read(min(length, MAX_HEADER))
        header = json.loads(text)
        if len(text) != length or not isinstance(header, dict):
            raise ValueError("its header is cut")
        self._start, self._metadata = 8 + length, header.pop("__metadata__", None)
        self._entries: dict[str, dict[str, Any]] = header

    def metadata(self) -> Mapping[str, str] | None:
        """The file's metadata, if it has any."""
        return self._metadata

    def keys(self) -> list[str]:
        """The names of the tensors."""
        return list(self._entries)

    def get_slice(self, name: str) -> TensorSlice:
        """Shape and dtype of a tensor, without its data."""
        return _Header(self._entries[name])

    def get_tensor(self, name: str) -> Tensor:
        """The tensor on the CPU, in memory of its own."""
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        if begin == end:
            return torch.empty(entry["shape"], dtype=dtype)
        content = bytearray(end - begin)
        self._file.seek(self._start + begin)
        rest = memoryview(content)
        while rest:
            if not (count := self._file.readinto(rest)):
                raise ValueError(f"it ends within the tensor {name}")
            rest = rest[count:]
        return torch.frombuffer(content, dtype=dtype).reshape(entry["shape"])

    def close(self) -> None:
        """Let go of the file, which Windows does not let others delete before."""
        self._file.close()


class _Header:
    def __init__(self, entry: Mapping[str, Any]) -> None:
        self._entry = entry

    def get_dtype(self) -> str:
        return str(self._entry["dtype"])

    def get_shape(self) -> list[int]:
        return list(self._entry["shape"])


BEGINNINGS = {
    b"PK\x03\x04": "is a pickle, which can run code when opened: convert it to .safetensors first (safetensors.torch.save_file)",
    b"\x80": "is a pickle, which can run code when opened: convert it to .safetensors first (safetensors.torch.save_file)",
    b"GGUF": "is a GGUF file, which is not read here: use the .safetensors file",
    b"version https://git-lfs": "is a pointer of Git LFS: fetch the file itself (git lfs pull)",
    b"<": "is a web page: download the file itself",
    b"{": "is a text in JSON: name the .safetensors file",
}
"""{how a file begins: what it is instead of a safetensors file, with the remedy}."""


def other_kind(path: Path) -> str:
    """What a file that cannot be read as safetensors is instead, with the remedy; "" for a damaged one."""
    if path.is_dir():
        inner = next(iter(sorted(path.glob("*.safetensors"))), None)
        return f"is a folder: name the file in it{f', {inner.name}' if inner else ''}"
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError:
        return ""
    return (
        next((said for start, said in BEGINNINGS.items() if head.startswith(start)), "")
        if head
        else "is empty: get it again"
    )


def open_tensors(path: Path) -> OpenTensors:
    """Open a safetensors file. Raises SafetensorError or OSError."""
    from safetensors import safe_open

    return cast(OpenTensors, safe_open(path, framework="pt"))


class TensorFile:
    """An open safetensors file, whose header is checked at once and whose tensors are read, not mapped, when they are asked for.

    Raises ModelFileError if it is missing, damaged, or cut while it is read.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError

        self.path = path
        try:
            self._file = open_tensors(path)
            self._read = ReadTensors(path)
        except (SafetensorError, ValueError) as error:
            said = other_kind(path) or f"is damaged or not a safetensors file ({error}): download or copy it again"
            raise ModelFileError(f"{path} {said}") from error
        except OSError as error:
            said = f"{path} {other_kind(path)}" if path.is_dir() else f"cannot read {path}: {error.strerror or error}"
            raise ModelFileError(said) from error
        weakref.finalize(self, self._read.close)
        self.metadata: dict[str, str] = dict(self._file.metadata() or {})
        self.layout: TensorHeader = {}
        for key in self._file.keys():  # noqa: SIM118 - not a dict
            entry = self._file.get_slice(key)
            self.layout[key] = (entry.get_dtype(), tuple(entry.get_shape()))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns {tensor name: shape}, from the header."""
        return {key: shape for key, (_, shape) in self.layout.items()}

    def get(self, key: str) -> Tensor:
        """The stored tensor, in memory of its own."""
        if self.layout[key][0] not in _DTYPES:
            return self._file.get_tensor(key)
        try:
            return self._read.get_tensor(key)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{self.path} was cut or cannot be read any more ({error}): get it again") from error

    def gather(self, keys: Mapping[str, str]) -> dict[str, Tensor]:
        """The stored tensors of several keys under other names, given as {name: key}."""
        return {name: self.get(key) for name, key in keys.items()}


def damage_of(path: Path) -> str:
    """What is wrong with a safetensors file that we have written; "" for a whole one. The digest in its metadata is compared
    with its data; version 0.1 wrote none. Files of other programs may carry the digest of a file that they changed."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if DATA_DIGEST not in (open_tensors(path).metadata() or {}):  # its size is compared with its header
            return ""
        content = path.read_bytes()
        load(content)
        length = int.from_bytes(content[:8], "little")
        stated = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(DATA_DIGEST)
    except (OSError, SafetensorError, ValueError) as error:
        return str(error)
    return "" if stated in (None, data_digest(content)) else "its data are not what was written"


def read_lora(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a LoRA file, in memory. Raises ModelFileError if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(Path(path).expanduser().read_bytes())
    except OSError as error:
        raise ModelFileError(f"cannot read the LoRA {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        said = other_kind(Path(path).expanduser()) or f"is damaged ({error}): copy it again"
        raise ModelFileError(f"the LoRA {path} {said}") from error
