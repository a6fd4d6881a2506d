"""A process that was killed while optimum-quanto compiled, or loaded what it had compiled, does not block those after it."""

import os
import time

import pytest
import torch

from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.weights.quanto_kernels import COMPILES_S, load, load_kernels


class Extension:
    """As quanto's: asking for `lib` compiles, under a lock file that is taken away when it is done."""

    def __init__(self, folder, error=None):
        self.build_directory, self._lib, self.error = str(folder / "build"), None, error
        self.lock = folder / "build" / "lock"

    @property
    def lib(self):
        assert not self.lock.exists(), "would wait for ever"
        if self.error:
            raise self.error
        self._lib = "loaded"
        return self._lib


def never(seconds):
    raise AssertionError("waits")


@pytest.fixture
def extension(tmp_path):
    (tmp_path / "build").mkdir()
    return Extension(tmp_path)


def test_a_first_use_needs_no_folder(tmp_path):
    extension = Extension(tmp_path)
    load(extension, "int4", never)
    assert extension._lib == "loaded"
    assert not list((tmp_path / "build").iterdir())


def test_what_is_loaded_is_not_asked_again(extension):
    extension._lib = "loaded"
    extension.lock.touch()
    load(extension, "int4", never)


def test_a_lock_of_a_killed_process_of_ours_goes_at_once(extension):
    extension.lock.touch()
    extension.lock.with_name("lora-loom").touch()
    load(extension, "int4", never)
    assert extension._lib == "loaded"
    assert not list(extension.lock.parent.iterdir())


def test_an_old_lock_of_another_program_goes(extension):
    extension.lock.touch()
    old = time.time() - COMPILES_S - 1
    os.utime(extension.lock, (old, old))
    load(extension, "int4", never)
    assert extension._lib == "loaded"


def test_another_program_that_compiles_is_waited_for(extension):
    extension.lock.touch()
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            extension.lock.unlink()

    load(extension, "int4", sleep)
    assert len(waited) == 3
    assert extension._lib == "loaded"


def test_without_a_compiler_it_is_one_line_with_the_remedy(tmp_path):
    extension = Extension(tmp_path, RuntimeError("Ninja is required to load C++ extensions\nmore"))
    with pytest.raises(ConfigError, match="int4.*Ninja is required.*use int8, float8 or nf4"):
        load(extension, "int4", never)
    assert not list((tmp_path / "build").iterdir())


def test_kinds_that_are_not_packed_load_nothing(monkeypatch):
    monkeypatch.setattr("lora_loom.trainer.weights.quanto_kernels.load", never)
    load_kernels("int8", torch.device("cpu"))
    load_kernels("nf4", torch.device("cpu"))
