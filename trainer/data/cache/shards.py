"""One shard of the cache: an immutable safetensors file that describes its own content and can be verified by itself.

The file name ends in the digest of the header. The header lists the items ({key: {name: digest of the tensor}}), and every
tensor is named by the digest of its content. A truncated file or a flipped bit in header or data is therefore found from the
file alone, and no separate index has to be kept consistent.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import RunError
from ...storage.atomic import write_bytes
from ...storage.fingerprint import tensor_digest
from ...storage.tensor_file import MAX_HEADER, ReadTensors

NAME = re.compile(r"(\d{6,})-([0-9a-f]{32})\.safetensors")
Contents = Mapping[str, Mapping[str, str]]
"""{cache key: {tensor name: digest of the tensor}}."""


class DamagedShardError(RunError):
    """The content of a shard does not match its digests."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The header of a shard."""

    name: str
    items: Contents
    tensors: Mapping[str, int]
    """{digest of a tensor: its bytes}."""
    bytes: int
    """Size of the whole file."""

    @property
    def number(self) -> int:
        """Position in the order of writing."""
        return number_of(self.name)


def number_of(name: str) -> int:
    """A shard's position in the order of writing; -1 for a file that is not a shard."""
    match = NAME.fullmatch(name)
    return int(match[1]) if match else -1


def write_shard(folder: Path, number: int, items: Contents, tensors: Mapping[str, Tensor]) -> Shard:
    """Write a shard atomically; `tensors` is {digest: tensor}. Raises RunError if the disk is full."""
    from safetensors.torch import save

    text = json.dumps(items, sort_keys=True, separators=(",", ":"))
    content = save(dict(tensors), {"items": text})
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    name = f"{number:06d}-{_digest(header)}.safetensors"
    write_bytes(folder / name, content)
    sizes = {digest: tensor.nbytes for digest, tensor in tensors.items()}
    return Shard(name=name, items=items, tensors=sizes, bytes=len(content))


def read_shard(folder: Path, name: str) -> Shard:
    """Read the header of a shard and check it against the file's name and length. Raises DamagedShardError or OSError."""
    match = NAME.fullmatch(name)
    with (folder / name).open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        header = start + file.read(min(length, MAX_HEADER))
        size = file.seek(0, 2)
    if match is None or _digest(header) != match[2]:
        raise DamagedShardError(f"the header of the cache shard {folder / name} is damaged")
    listing = json.loads(header[8:])
    items = json.loads(listing.pop("__metadata__")["items"])
    ends = {digest: entry["data_offsets"] for digest, entry in listing.items()}
    whole = 8 + length + max((end for _, end in ends.values()), default=0)
    if size != whole:
        raise DamagedShardError(f"the cache shard {folder / name} has {size:,} bytes instead of {whole:,}")
    return Shard(
        name=name, items=items, tensors={digest: end - begin for digest, (begin, end) in ends.items()}, bytes=size
    )


def check_tensor(digest: str, tensor: Tensor, path: Path) -> None:
    """Raise DamagedShardError unless the tensor has this digest."""
    if tensor_digest(tensor) != digest:
        raise DamagedShardError(f"data in the cache shard {path} is damaged")


def check_shard(folder: Path, name: str) -> Shard:
    """Read and verify every byte of a shard. Raises DamagedShardError or OSError."""
    shard = read_shard(folder, name)
    try:
        file = ReadTensors(folder / name)
        for digest in shard.tensors:
            check_tensor(digest, file.get_tensor(digest), folder / name)
    except (ValueError, KeyError, RuntimeError) as error:
        raise (
            error if isinstance(error, RunError) else DamagedShardError(f"{folder / name} is damaged ({error})")
        ) from error
    return shard


def _digest(header: bytes) -> str:
    return hashlib.sha256(header).hexdigest()[:32]
