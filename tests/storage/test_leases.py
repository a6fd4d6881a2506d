"""Leases on files that are mapped: another program that would cut one of them waits, and what uses it ends plainly before that."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.runs import headless
from lora_loom.trainer.storage.leases import Lease, leased
from lora_loom.trainer.storage.mapped_files import load_tensors, mapped_files_of, watch
from lora_loom.trainer.storage.tensor_file import TensorFile
from tests.conftest import SilentHost, make_config

CUT = "import os, sys; print('begun', flush=True); os.truncate(sys.argv[1], 100)"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(100, 100)}, path)
    if not (lease := Lease(path)).is_held:
        pytest.skip("this system or file system has no leases")
    lease.close()
    return path


def cutting(path):
    """Another program that cuts the file, from the moment that it waits or has ended."""
    other = subprocess.Popen([sys.executable, "-c", CUT, str(path)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"begun\n"
    return other


def wait_until(holds, other):
    while not holds() and other.poll() is None:
        os.sched_yield()


def test_who_would_cut_a_file_waits_until_the_lease_is_let_go(file):
    lease, size = Lease(file), file.stat().st_size
    assert not lease.is_asked_for
    other = cutting(file)
    wait_until(lambda: lease.is_asked_for, other)
    assert (other.poll(), file.stat().st_size) == (None, size)
    lease.close()
    assert (other.wait(), file.stat().st_size) == (0, 100)
    assert not lease.is_asked_for


def test_it_is_let_go_with_the_object_and_at_the_end_of_a_block(file):
    Lease(file)
    with leased([file]):
        pass
    assert cutting(file).wait() == 0


@pytest.mark.parametrize("change", [lambda path: os.utime(path, ns=(1, 1)), lambda path: path.unlink()])
def test_what_leaves_the_map_as_it_is_asks_nobody(file, change):
    lease = Lease(file)
    change(file)
    assert not lease.is_asked_for


def test_there_is_none_where_the_file_is_open_for_writing_or_missing(file, tmp_path):
    with file.open("ab"):
        assert not Lease(file).is_held
    missing = Lease(tmp_path / "missing")
    assert not missing.is_held
    assert not missing.is_asked_for
    missing.close()


def test_a_pass_through_a_network_looks_first(file):
    network = nn.Linear(100, 100, bias=False)
    network.weight = nn.Parameter(load_tensors(file)["weight"], requires_grad=False)
    watch(network, [file])
    assert float(network(torch.ones(100)).detach().sum()) == 10_000
    other, files = cutting(file), mapped_files_of(network)
    wait_until(lambda: any(lease.is_asked_for for lease in files._leases), other)
    with pytest.raises(ModelFileError, match=r"model\.safetensors.* is about to be written to by another program"):
        network(torch.ones(100))
    for lease in files._leases:
        lease.close()
    assert other.wait() == 0


TRAINED = """
import sys
from tests.storage.test_leases import Cuts, base_file, headless, run_of, ModelFileError
try:
    headless.train(run_of(sys.argv[1]), Cuts(base_file(sys.argv[1])))
except ModelFileError as error:
    print(error)
"""


def run_of(root):
    """Three passes a step, through a base that is read from its file block by block."""
    return make_config(
        "sd3",
        Path(root),
        model={"base": str(Path(root) / "base")},
        memory={"base": "stream"},
        training={"steps": 3, "save_every": 1, "gradient_accumulation_steps": 3, "batch_size": 1},
    )


def base_file(root):
    (path,) = (Path(root) / "base" / "transformer").glob("*.safetensors")
    return path


class Cuts(SilentHost):
    """After the first step another program begins to cut the base's file, between two passes of the second one."""

    def __init__(self, path):
        super().__init__()
        self.path, self.is_due = path, False

    def step(self, result, total):
        super().step(result, total)
        self.is_due = result.step == 1

    def between_passes(self):
        if self.is_due:
            mine = Lease(self.path)
            other = cutting(self.path)
            wait_until(lambda: mine.is_asked_for, other)
            self.is_due = False
        return False


def test_a_run_whose_base_is_cut_within_a_step_ends_plainly_and_goes_on_later(file, tmp_path):
    """In a process of its own, which without the lease is ended by SIGBUS."""
    shutil.copytree(make_config("sd3", tmp_path).model.base, tmp_path / "base")
    path = base_file(tmp_path)
    whole = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", TRAINED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert "is about to be written to by another program" in done.stdout
    folder = headless.run_folder(run_of(tmp_path))
    assert (folder.read()["state"], folder.saved_step()) == ("failed", 1)
    path.write_bytes(whole)
    assert headless.train(run_of(tmp_path), SilentHost()).step == 3


def test_a_file_that_is_cut_while_its_tensors_are_read_is_a_plain_error(file):
    tensors = TensorFile(file)
    assert float(tensors.get("weight").sum()) == 10_000
    os.truncate(file, 200)
    with pytest.raises(ModelFileError, match="was cut or cannot be read any more"):
        tensors.get("weight")
