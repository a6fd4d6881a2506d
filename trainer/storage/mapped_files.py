"""Weights that stay in their file: a map of a file that another program or a network drive cuts short ends the process (SIGBUS).

So a file on another machine is read instead of mapped. On one that is mapped Linux gives us a lease (`leases.py`): who would write to it
waits, and the next pass through the network ends the run before that. Elsewhere the file is looked at between steps.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from ..errors import ModelFileError
from .leases import Lease
from .tensor_file import ReadTensors

REMOTE = frozenset({
    "9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "fuse", "gfs2", "glusterfs", "gpfs", "lustre", "macfuse",
    "ncpfs", "nfs", "nfs3", "nfs4", "ocfs2", "osxfuse", "prl_fs", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "webdav",
})  # fmt: skip
"""File systems, as the operating system names them, behind which another machine or program may take a file away."""
State = tuple[int, int, int, int]
"""Device, inode, size in bytes, time of the last change in ns."""


def is_remote(path: Path) -> bool:
    """Whether a file lies on a network drive, or on one that a program provides (FUSE: sshfs, rclone). False where the system does not say."""
    import psutil

    whole = path.resolve()
    if whole.drive.startswith("\\\\"):
        return True
    drives = {Path(one.mountpoint): one for one in psutil.disk_partitions(all=True)}
    found = next((drives[parent] for parent in (whole, *whole.parents) if parent in drives), None)
    if found is None:
        return False
    return found.fstype.lower().partition(".")[0] in REMOTE or "remote" in found.opts.split(",")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by name, on the CPU: mapped, and from a network drive read. Raises ModelFileError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if not is_remote(path):
            return dict(load_file(path))
        file = ReadTensors(path)
        try:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        finally:
            file.close()
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(f"{path} is damaged or cannot be read ({error}): download or copy it again") from error


class MappedFiles:
    """Files that a network's weights are mapped from, as they were when this was made. Files that are not mapped are left out."""

    def __init__(self, files: Iterable[Path] = ()) -> None:
        mapped = _mapped_by_this_process()
        self._states = {path: state_of(path) for path in files if mapped is None or os.path.realpath(path) in mapped}
        self._leases = [Lease(path) for path in self._states]

    def __bool__(self) -> bool:
        return bool(self._states)

    def check_leases(self) -> None:
        """Raise ModelFileError if another program waits to write to a file. Costs microseconds."""
        for lease in self._leases:
            if lease.is_asked_for:
                raise asked_for(lease.name)

    def check(self) -> None:
        """Raise ModelFileError for a file that was written to: what has been computed since may come from other weights.

        One that was deleted or replaced by another of its name is still there for this process.
        """
        self.check_leases()
        for path, before in self._states.items():
            try:
                now = state_of(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ModelFileError(
                    f"{path}, which the base model lies in, cannot be reached: {error.strerror or error}"
                ) from error
            if now[:2] == before[:2]:
                refuse_change(str(path), before, now)


def watch(network: nn.Module, files: Iterable[Path]) -> None:
    """Have every pass through the network look first whether somebody waits to write to a file that its weights are mapped from."""
    if made := MappedFiles(files):
        network.mapped_files = made  # type: ignore[assignment]
        network.register_forward_pre_hook(lambda *_: made.check_leases())


def mapped_files_of(network: nn.Module) -> MappedFiles:
    """The files that `watch` was told of, as they were then; none where nothing is mapped."""
    found: MappedFiles = network.__dict__.get("mapped_files") or MappedFiles()
    return found


def state_of(file: Path | int) -> State:
    """What tells a file from itself at another time; `file` may be a descriptor. Raises OSError."""
    status = file.stat() if isinstance(file, Path) else os.fstat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def refuse_change(name: str, before: State, now: State) -> None:
    """Raise ModelFileError if a file is another than it was."""
    if now == before:
        return
    how = f"had {before[2]:,} bytes and has {now[2]:,}" if now[2] != before[2] else "was written to"
    raise ModelFileError(
        f"{name}, which the base model lies in, {how} since the run began to use it: put the original file back and start the run "
        "again, it goes on from its last checkpoint"
    )


def asked_for(name: str) -> ModelFileError:
    """The error for a file that another program waits to write to."""
    return ModelFileError(
        f"{name}, which the base model lies in, is about to be written to by another program, so what uses it ends: end that program, "
        "see that the file is the original, and start again; a run goes on from its last checkpoint"
    )


def _mapped_by_this_process() -> set[str] | None:
    """Paths that are mapped now; None where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    return {line.split(maxsplit=5)[5] for line in lines if line.count(" ") >= 5 and "/" in line}
