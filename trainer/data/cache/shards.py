"""One shard of the cache: an immutable safetensors file that says by itself what it holds and whether it is sound.

Its name ends in the digest of its header. The header lists the items ({key: {name: digest of the tensor}}) and every tensor
is called by the digest of its content. So a cut, a flipped bit in the header or in the data: each is found by looking at the
file alone, and nothing beside the shards has to be kept in step with them.
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

NAME = re.compile(r"(\d{6,})-([0-9a-f]{32})\.safetensors")
MAX_HEADER = 100_000_000
"""Bytes; safetensors refuses larger ones too."""

Contents = Mapping[str, Mapping[str, str]]
"""{key: {name: digest of the tensor}}."""


class DamagedShardError(RunError):
    """A shard that does not hold what its names promise."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What the header of a shard says."""

    name: str
    items: Contents
    tensors: Mapping[str, int]
    """{digest: bytes}."""
    bytes: int
    """Of the whole file."""

    @property
    def number(self) -> int:
        return number_of(self.name)


def number_of(name: str) -> int:
    """The shard's place in the order of writing; -1 for a file that is no shard."""
    found = NAME.fullmatch(name)
    return int(found[1]) if found else -1


def write_shard(folder: Path, number: int, items: Contents, tensors: Mapping[str, Tensor]) -> Shard:
    """Raises RunError if the disk is full."""
    from safetensors.torch import save

    text = json.dumps(items, sort_keys=True, separators=(",", ":"))
    content = save(dict(tensors), {"items": text})
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    name = f"{number:06d}-{_digest(header)}.safetensors"
    write_bytes(folder / name, content)
    sizes = {digest: tensor.nbytes for digest, tensor in tensors.items()}
    return Shard(name=name, items=items, tensors=sizes, bytes=len(content))


def read_shard(folder: Path, name: str) -> Shard:
    """The header alone, checked against the name and the file's length. Raises DamagedShardError or OSError."""
    found = NAME.fullmatch(name)
    with (folder / name).open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        header = start + file.read(min(length, MAX_HEADER))
        size = file.seek(0, 2)
    if found is None or _digest(header) != found[2]:
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
    """Raise DamagedShardError unless the tensor is what its name says."""
    if tensor_digest(tensor) != digest:
        raise DamagedShardError(f"data in the cache shard {path} is damaged")


def check_shard(folder: Path, name: str) -> Shard:
    """Every byte of it. Raises DamagedShardError or OSError."""
    from safetensors import safe_open

    shard = read_shard(folder, name)
    with safe_open(folder / name, framework="pt") as file:
        for digest in shard.tensors:
            check_tensor(digest, file.get_tensor(digest), folder / name)
    return shard


def _digest(header: bytes) -> str:
    return hashlib.sha256(header).hexdigest()[:32]
