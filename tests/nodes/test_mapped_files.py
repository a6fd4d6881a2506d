"""The files that ComfyUI maps a MODEL from, with storages marked as its loader marks them."""

import os

import pytest
import torch
from torch import nn

from lora_loom.trainer.errors import ModelFileError


@pytest.fixture(autouse=True)
def _no_leases(monkeypatch):
    """As where there are none; with one, who writes to a mapped file waits."""
    monkeypatch.setattr("lora_loom.trainer.storage.leases._lease", lambda path: None)


posix = pytest.mark.skipif(os.name == "nt", reason="Windows does not let anybody shorten a file that is mapped")


class Map:
    """Stands for ComfyUI's ModelMMAP."""


class Slice:
    def __init__(self, descriptor):
        self.file_ref = descriptor


def mapped_network(path):
    network, whole = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), Map()
    descriptor = os.open(path, os.O_RDONLY)
    for parameter in network.parameters():
        storage = parameter.untyped_storage()
        storage._comfy_tensor_mmap_refs = (whole, None)
        storage._comfy_tensor_file_slice = Slice(descriptor)
    return network, descriptor


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(1000))
    return path


@posix
def test_a_file_that_was_shortened_is_named(host, file):
    network, descriptor = mapped_network(file)
    files = host("backend.sharing.mapped_files").HostFiles(network)
    files.check()
    os.truncate(file, 10)
    with pytest.raises(ModelFileError, match="had 1,000 bytes and has 10"):
        files.check()
    os.close(descriptor)
    files.check()  # ComfyUI has dropped that copy


@posix
def test_the_files_of_a_new_copy_are_watched_from_when_it_is_used(host, file, tmp_path):
    network, _ = mapped_network(file)
    files = host("backend.sharing.mapped_files").HostFiles(network)
    other = tmp_path / "other.safetensors"
    other.write_bytes(bytes(500))
    copy, _ = mapped_network(other)
    for mine, theirs in zip(network.parameters(), copy.parameters(), strict=True):
        with torch.no_grad():
            mine.set_(theirs.untyped_storage(), theirs.storage_offset(), theirs.shape, theirs.stride())
    os.truncate(file, 10)
    files.check()
    os.truncate(other, 10)
    with pytest.raises(ModelFileError, match="had 500 bytes"):
        files.check()


@posix
def test_who_would_write_to_a_file_of_comfyui_ends_the_run_first(host, file, monkeypatch):
    asked = []
    monkeypatch.setattr("lora_loom.trainer.storage.leases.Lease.is_asked_for", property(lambda lease: asked))
    network, descriptor = mapped_network(file)
    files = host("backend.sharing.mapped_files").HostFiles(network)
    network(torch.ones(4))
    asked.append(True)
    for look in (files.check, lambda: network(torch.ones(4))):
        with pytest.raises(ModelFileError, match=r"model\.safetensors.* is about to be written to by another program"):
            look()
    os.close(descriptor)


def test_a_network_in_plain_memory_has_no_files(host):
    host("backend.sharing.mapped_files").HostFiles(nn.Linear(2, 2)).check()
