"""What is remembered of files: nothing is read twice, nothing is believed that may have changed, nothing is lost."""

import json
import multiprocessing
import os
import shutil
import time

import pytest
from PIL import Image

from lora_loom.trainer.data.images import index as index_module
from lora_loom.trainer.data.images import probe as look_module
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.images.probe import probe
from lora_loom.trainer.demo.scenes import random_scene
from tests.conftest import pictures


def silent(*progress):
    pass


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(pictures(), tmp_path / "images")
    return tmp_path / "images"


def images(folder):
    return sorted(folder.glob("*.png"))


def looked_up(tmp_path, folder):
    index = FileIndex(tmp_path / "files.json")
    return index.look_up(images(folder), silent), index.read


def test_each_file_is_read_once(tmp_path, folder):
    first, read = looked_up(tmp_path, folder)
    assert read == 6
    assert looked_up(tmp_path, folder) == (first, 0)


def test_an_edit_that_keeps_size_and_time_is_seen(tmp_path, folder):
    """As some tools do that write metadata: the system's own change time tells."""
    before, _ = looked_up(tmp_path, folder)
    path = images(folder)[2]
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    index = FileIndex(tmp_path / "files.json")
    survey = index.survey(images(folder), silent)
    assert path in survey.problems or survey.facts[path].digest != before[path].digest


def test_a_file_written_this_moment_is_not_believed_yet(tmp_path):
    """Within one tick of the clock a second write changes neither time nor size."""
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    now = time.time_ns()
    os.utime(path, ns=(now, now - now % 1_000_000_000))  # as FAT keeps it
    index = FileIndex(tmp_path / "files.json")
    index.look_up([path], silent)
    index.look_up([path], silent)
    assert index.read == 2
    os.utime(path, (0, 0))
    index.look_up([path], silent)
    index.look_up([path], silent)
    assert index.read == 3


def test_a_kill_keeps_what_was_saved(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(index_module, "SAVE_EVERY_S", 0.0)
    index = FileIndex(tmp_path / "files.json")
    kept = []

    def progress(done, total):
        if done == 4:
            kept.append(len(FileIndex(index.path).facts))

    index.look_up(images(folder), progress)
    assert kept == [4]


def _index(target, folder, names):
    FileIndex(target).look_up([folder / name for name in names], silent)


def test_processes_that_share_an_index_add_to_each_other(tmp_path, folder):
    names = [path.name for path in images(folder)]
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "fork")
    workers = [
        context.Process(target=_index, args=(tmp_path / "files.json", folder, part)) for part in (names[:3], names[3:])
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert looked_up(tmp_path, folder)[1] == 0


def test_what_is_gone_is_forgotten_on_request(tmp_path, folder):
    looked_up(tmp_path, folder)
    images(folder)[0].unlink()
    assert FileIndex(tmp_path / "files.json").forget_missing() == 1
    assert len(FileIndex(tmp_path / "files.json").facts) == 5


def test_every_problem_is_named_and_the_rest_is_used(tmp_path, folder):
    paths = images(folder)
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    survey = FileIndex(tmp_path / "files.json").survey([*paths, folder / "gone.png"], silent)
    assert len(survey.facts) == 5
    assert list(survey.problems) == [paths[1], folder / "gone.png"]
    assert "1.png is damaged" in survey.problems[paths[1]]
    assert "gone.png cannot be read: No such file" in survey.problems[folder / "gone.png"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"version": 1}', '{"version": 3, "files": {"a": [1]}}', '{"version": 3, "files": 3}'],
)
def test_a_damaged_index_costs_only_reading(tmp_path, folder, content):
    (tmp_path / "files.json").write_text(content)
    assert looked_up(tmp_path, folder)[1] == 6
    assert json.loads((tmp_path / "files.json").read_text())["version"] == 3


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_cut_is_found_wherever_it_is(tmp_path, suffix):
    """Although JPEGs are decoded to a thumbnail only."""
    import random

    path = tmp_path / f"a.{suffix}"
    random_scene(random.Random(3)).draw().resize((300, 200)).save(path)
    whole = path.read_bytes()
    assert probe(path, whole).size == (300, 200)
    for share in (0.3, 0.6, 0.9, 0.99):
        with pytest.raises(index_module.DataError, match=f"a.{suffix} is damaged"):
            probe(path, whole[: int(share * len(whole))])


def test_fingerprints_are_near_for_copies_and_far_for_others(tmp_path):
    import io
    import random

    rng = random.Random(5)
    scenes = [random_scene(rng).draw().resize((256, 256)) for _ in range(8)]

    def fingerprint(image, kind="png", **options):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return int(probe(tmp_path, buffer.getvalue()).fingerprint, 16)

    prints = [fingerprint(scene) for scene in scenes]
    for scene, mark in zip(scenes, prints, strict=True):
        copies = [
            fingerprint(scene, "jpeg", quality=70),
            fingerprint(scene.resize((400, 400))),
            fingerprint(scene.convert("RGBA")),
        ]
        turned = Image.Exif()
        turned[0x0112] = 6
        copies.append(fingerprint(scene.rotate(90), "jpeg", quality=90, exif=turned))
        assert max((mark ^ copy).bit_count() for copy in copies) <= 4
    assert min((a ^ b).bit_count() for i, a in enumerate(prints) for b in prints[:i]) > 4


def test_without_imagehash_all_else_works(tmp_path, folder, monkeypatch):
    """In an environment that was not updated; once it is there, fingerprints are made up for."""
    for module in (look_module, index_module):
        monkeypatch.setattr(module, "can_fingerprint", lambda: False)
    facts, read = looked_up(tmp_path, folder)
    assert read == 6
    assert {known.fingerprint for known in facts.values()} == {""}
    assert looked_up(tmp_path, folder)[1] == 0
    monkeypatch.undo()
    facts, read = looked_up(tmp_path, folder)
    assert read == 6
    assert all(len(known.fingerprint) == 16 for known in facts.values())
