"""Temporary files of processes that were killed go at the next start; those of living ones stay. LoRA files carry a digest."""

import os

import pytest
import torch

from lora_loom.trainer.storage import atomic
from lora_loom.trainer.storage.atomic import DATA_DIGEST, MACHINE, remove_leftovers, write_bytes, write_tensors
from lora_loom.trainer.storage.tensor_file import TensorFile, damage_of


def dead_process():
    """The id of a process that has ended."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_only_what_ended_processes_of_this_machine_left_is_removed(tmp_path):
    dead = dead_process()
    gone = tmp_path / f"strip.html.{MACHINE}-{dead}.1{atomic.TEMPORARY}"
    kept = [
        tmp_path / name
        for name in (
            f"strip.html.{MACHINE}-{os.getpid()}.1.tmp",  # alive
            f"strip.html.{'0' * 8}-{dead}.1.tmp",  # of another machine
            "mine.tmp",
        )
    ]
    for path in (gone, *kept):
        path.write_bytes(b"half")
    remove_leftovers(tmp_path, tmp_path / "absent")
    assert not gone.exists()
    assert all(path.exists() for path in kept)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_first_write_into_a_folder_clears_it(tmp_path):
    left = tmp_path / f"merged.safetensors.{MACHINE}-{dead_process()}.1.tmp"
    left.write_bytes(b"half")
    write_bytes(tmp_path / "other", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_flipped_bit_of_a_lora_file_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(6.0), "y": torch.ones(2, dtype=torch.bfloat16)}, {"k": "v"})
    assert damage_of(path) == ""
    metadata = TensorFile(path).metadata
    assert metadata["k"] == "v"
    assert metadata[DATA_DIGEST].startswith("0x")
    content = bytearray(path.read_bytes())
    for place, words in ((len(content) - 3, "its data are not what was written"), (9, "")):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert words in damage_of(path) != ""
    path.write_bytes(content[:-1])
    assert damage_of(path) != ""
