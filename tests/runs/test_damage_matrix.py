"""Every kind of file that a run leaves, damaged in every way, before everything that reads it: one plain line, or it goes on without.

Never a traceback, and never for other runs. The commands that train or render are tried in the slow tests.
"""

import importlib
import shutil

import pytest

from tests.damage import LONG, WAYS, attempt, commands, concerns, damaged, graph_readers, kinds_of_files, make
from tests.nodes.stubs import stubbed

KINDS = 30
"""No fewer kinds of files lie in the folders of a run; a run that leaves others has others tried."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    base = tmp_path_factory.mktemp("damage") / "comfyui"
    for name in ("input", "output", "temp", "user", "models/loras"):
        (base / name).mkdir(parents=True)
    make(base)
    return base


def test_kinds_of_files_are_found(whole):
    kinds = kinds_of_files(whole)
    assert len(kinds) >= KINDS, kinds
    assert {name.rpartition(".")[2] for name in kinds} >= {
        "json",
        "jsonl",
        "png",
        "safetensors",
        "txt",
        "html",
        "csv",
        "lock",
    }


@pytest.mark.parametrize("way", WAYS)
def test_what_reads_quickly(whole, way):
    """Every kind of file before every node, every route and every command that neither trains nor renders."""
    wrong = {}
    with stubbed(whole):
        readers = graph_readers(whole, lambda name: importlib.import_module(f"lora_loom.nodes.host.{name}"))
        quick = {name: act for name, act in commands(whole).items() if name not in LONG}
        for file in kinds_of_files(whole):
            with damaged(whole / file, way):
                found = {name: attempt(act) for name, act in readers.items() if concerns(name, file)}
                found |= {name: act() for name, act in quick.items() if concerns(name, file)}
            wrong |= {f"{file}, {name}": said for name, said in found.items() if said}
    assert not wrong, "\n\n".join(f"{key}: {said}" for key, said in wrong.items())


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(len(WAYS)))
def test_what_trains_and_renders(whole, tmp_path, turn):
    """Another way for each kind of file in each turn, so that one turn alone has all ways and all kinds."""
    files = enumerate(kinds_of_files(whole), turn)
    check_long(whole, tmp_path, [(file, WAYS[number % len(WAYS)]) for number, file in files])


def check_long(whole, place, tried):
    wrong = {}
    for number, (file, way) in enumerate(tried):
        for name in (one for one in LONG if concerns(one, file)):
            shutil.copytree(whole, base := place / f"{number}-{name}")
            config = base / "run.toml"
            config.write_text(config.read_text().replace(str(whole), str(base)))
            with damaged(base / file, way):
                said = commands(base)[name]()
            shutil.rmtree(base)
            if said:
                wrong[f"{file} {way}, {name}"] = said
    assert not wrong, "\n\n".join(f"{key}: {said}" for key, said in wrong.items())
