"""A safetensors file opened for reading: its header at once, its tensors one by one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelFileError

FORMATS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""{number format: its name in a safetensors header}."""
TensorHeader = dict[str, tuple[str, tuple[int, ...]]]
"""{tensor: (name of its number format, shape)}, in the order of the file."""


class TensorFile:
    """Raises ModelFileError if the file is missing or damaged."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        opener: Any = safe_open
        self.path = path
        try:
            self._file = opener(path, framework="pt")
        except SafetensorError as error:
            raise ModelFileError(f"{path} is damaged or no safetensors file ({error})") from error
        except OSError as error:
            raise ModelFileError(f"cannot read {path}: {error.strerror or error}") from error
        self.metadata: dict[str, str] = dict(self._file.metadata() or {})
        self.layout: TensorHeader = {}
        for key in self._file.keys():  # noqa: SIM118 - not a dict
            part = self._file.get_slice(key)
            self.layout[key] = (str(part.get_dtype()), tuple(part.get_shape()))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: shape for key, (_, shape) in self.layout.items()}

    def get(self, key: str) -> Tensor:
        """The stored tensor, memory-mapped where the system allows it."""
        tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def gather(self, keys: Mapping[str, str]) -> dict[str, Tensor]:
        """{name: tensor} for {name: key}."""
        return {name: self.get(key) for name, key in keys.items()}


def read_lora(path: str | Path) -> dict[str, Tensor]:
    """A LoRA file's tensors. Raises ModelFileError if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(Path(path).expanduser().read_bytes())
    except OSError as error:
        raise ModelFileError(f"cannot read the LoRA {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ModelFileError(f"the LoRA {path} is damaged ({error}): copy it again") from error
