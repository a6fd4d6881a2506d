"""A base model's file that somebody writes to while it is mapped, and files on network drives."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.runs import headless
from lora_loom.trainer.storage import mapped_files
from lora_loom.trainer.storage.mapped_files import MappedFiles, is_remote, load_tensors
from tests.conftest import SilentHost, make_config


@pytest.fixture(autouse=True)
def _no_leases(monkeypatch):
    """As where there are none; with one, who writes to a mapped file waits (`test_leases.py`)."""
    monkeypatch.setattr("lora_loom.trainer.storage.leases._lease", lambda path: None)


linux = pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="asks Linux what is mapped")


@pytest.fixture
def file(tmp_path):
    save_file({"weight": torch.arange(1000.0), "bias": torch.ones(3)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def mapped(file):
    """The file and its tensors, which keep the map alive."""
    return file, load_tensors(file)


def test_an_untouched_file_is_nothing_to_speak_of(mapped):
    MappedFiles([mapped[0]]).check()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), "bytes and has"),
        (lambda path: os.truncate(path, path.stat().st_size + 1), "bytes and has"),
        (lambda path: os.utime(path, ns=(1, 1)), "was written to"),
    ],
)
def test_a_file_that_was_written_to_is_named_with_the_remedy(mapped, change, said):
    path, _ = mapped
    files = MappedFiles([path])
    change(path)
    with pytest.raises(ModelFileError, match=f"{said}.*put the original file back"):
        files.check()


def test_a_file_that_was_replaced_or_deleted_is_still_there_for_this_process(mapped, tmp_path):
    path, tensors = mapped
    files = MappedFiles([path])
    save_file({"weight": torch.zeros(2000)}, tmp_path / "new")
    (tmp_path / "new").replace(path)
    files.check()
    path.unlink()
    files.check()
    assert torch.equal(tensors["weight"], torch.arange(1000.0))


def test_a_drive_that_is_gone_is_named(mapped, monkeypatch):
    files = MappedFiles([mapped[0]])

    def unreachable(file):
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(mapped_files, "state_of", unreachable)
    with pytest.raises(ModelFileError, match="cannot be reached: Transport endpoint"):
        files.check()


@linux
def test_a_file_that_is_not_mapped_is_not_watched(file):
    files = MappedFiles([file])
    os.utime(file, ns=(1, 1))
    files.check()


@pytest.mark.parametrize(
    ("fstype", "opts", "remote"),
    [
        ("ext4", "rw,relatime", False),
        ("fuseblk", "rw", False),
        ("nfs4", "rw", True),
        ("fuse.sshfs", "rw", True),
        ("cifs", "rw", True),
        ("NTFS", "rw,remote", True),
        ("NTFS", "rw,fixed", False),
    ],
)
def test_the_nearest_mount_decides(file, monkeypatch, fstype, opts, remote):
    drives = [("/", "ext4" if remote else "nfs", ""), (os.path.realpath(file.parent), fstype, opts)]
    disks = [SimpleNamespace(mountpoint=point, fstype=kind, opts=more) for point, kind, more in drives]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: disks)
    assert is_remote(file) is remote


def test_a_file_on_a_network_drive_is_read(file, monkeypatch):
    expected = load_file(file)
    monkeypatch.setattr(mapped_files, "is_remote", lambda path: True)
    found = load_tensors(file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    os.truncate(file, 100)  # nothing of it is looked at again
    assert float(found["weight"].sum()) == 499500.0
    with pytest.raises(ModelFileError, match="damaged or cannot be read"):
        load_tensors(file)


class Changes(SilentHost):
    """Somebody writes to the base model's file after the second step."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def step(self, result, total):
        super().step(result, total)
        if result.step == 2:
            os.utime(self.path, ns=(1, 1))


@linux
def test_a_run_whose_base_is_written_to_stops_and_goes_on_with_the_file_as_it_was(tmp_path):
    given = make_config("sd3", tmp_path / "out")
    base = shutil.copytree(given.model.base, tmp_path / "base")
    config = make_config(
        "sd3",
        tmp_path / "out",
        model={"base": str(base)},
        training={"steps": 4, "save_every": 1},
        memory={"base": "stream"},
    )
    (path,) = (base / "transformer").glob("*.safetensors")
    before = path.stat()
    with pytest.raises(ModelFileError, match="was written to"):
        headless.train(config, Changes(path))
    folder = headless.run_folder(config)
    assert folder.saved_step() == 2
    assert folder.read()["state"] == "failed"
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert headless.train(config, SilentHost()).step == 4


SHORTENED = """
import os, sys, torch
from lora_loom.trainer.storage import mapped_files
mapped_files.is_remote = lambda path: {remote}
tensors = mapped_files.load_tensors(mapped_files.Path(sys.argv[1]))
os.truncate(sys.argv[1], 100)
print(float(tensors["weight"].sum()))
"""


@linux
@pytest.mark.parametrize("remote", [False, True])
def test_what_is_read_survives_what_ends_a_process_that_has_mapped_it(tmp_path, remote):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(100_000)}, path)
    done = subprocess.run(
        [sys.executable, "-c", SHORTENED.format(remote=remote), str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0, done.stdout.strip()) == ((True, "100000.0") if remote else (False, ""))
