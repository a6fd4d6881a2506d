"""Images inside of tables: the same bytes and captions as files, whole or not at all, and what has to be chosen is said."""

import io
import json
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app
from lora_loom.trainer.config.dataset import DataConfig, DatasetConfig
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.sets.scan import scan
from lora_loom.trainer.data.unpack import dataset_of, is_table, unpack
from lora_loom.trainer.errors import ConfigError, DataError

pyarrow = pytest.importorskip("pyarrow")


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def picture(color, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, kind)
    return buffer.getvalue()


ROWS = [
    {"image": {"bytes": picture("red"), "path": "red.png"}, "text": "a red square"},
    {"image": {"bytes": picture("blue", "JPEG"), "path": "../../sub/blue.wrong"}, "text": "größer und blau"},
    {"image": {"bytes": picture("green", "WEBP"), "path": None}, "text": "a green square"},
    {"image": {"bytes": picture("black"), "path": "red.png"}, "text": "another of that name"},
]
BAD = [
    {"image": None, "text": "nothing"},
    {"image": {"bytes": None, "path": "far.png"}, "text": "a path"},
    {"image": {"bytes": b"no image", "path": None}, "text": "broken"},
    {"image": {"bytes": picture("red"), "path": None}, "text": ""},
]
NAMES = ["red.png", "blue.jpg", "000003.webp", "red-000004.png"]


def parquet(path, rows):
    from pyarrow import parquet as writer

    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def arrow(path, rows):
    """As `datasets` saves to disk: a stream of record batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def run(source, target, **options):
    return unpack(source, target, lambda n, total: None, **options)


@pytest.mark.parametrize("kind", ["file", "download", "save_to_disk"])
def test_images_come_out_byte_for_byte_and_train_with_their_captions(tmp_path, kind):
    source = tmp_path / "data"
    if kind == "file":
        source = parquet(source / "x.parquet", ROWS)
    elif kind == "download":
        parquet(source / "data/train-00000-of-00002.parquet", ROWS[:3])
        parquet(source / "data/train-00001-of-00002.parquet", ROWS[3:])
    else:
        arrow(source / "data-00000-of-00001.arrow", ROWS)
        (source / "state.json").write_text("{}")
    done = run(source, tmp_path / "out")
    assert (done.images, done.left_out, done.columns) == (4, [], ("image", "text"))
    for name, row in zip(NAMES, ROWS, strict=True):
        assert (tmp_path / "out" / name).read_bytes() == row["image"]["bytes"]
    found = scan(DatasetConfig(folder=str(tmp_path / "out")))
    assert {one.path.name: one.caption for one in found.images} == dict(zip(NAMES, [r["text"] for r in ROWS], strict=True))  # fmt: skip
    assert found.notes == []


def test_rows_that_are_left_out_are_named(tmp_path):
    done = run(parquet(tmp_path / "x.parquet", ROWS + BAD), tmp_path / "out")
    assert done.images == 4
    assert [line.split(" ", 2)[2] for line in done.left_out] == [
        "has no image", "only names a file, far.png", "holds no image that can be read", "has no caption",
    ]  # fmt: skip
    with pytest.raises(DataError, match="no row has an image and a caption"):
        run(parquet(tmp_path / "y.parquet", [BAD[2], BAD[3]]), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_splits_and_columns_are_chosen(tmp_path):
    parquet(tmp_path / "d/train-00000-of-00001.parquet", ROWS[:1])
    parquet(tmp_path / "d/test-00000-of-00001.parquet", ROWS[1:])
    with pytest.raises(ConfigError, match="--split, of test, train"):
        run(tmp_path / "d", tmp_path / "out")
    with pytest.raises(ConfigError, match="has test, train"):
        run(tmp_path / "d", tmp_path / "out", split="dev")
    assert run(tmp_path / "d", tmp_path / "out", split="test").images == 3
    arrow(tmp_path / "saved/train/data-00000-of-00001.arrow", ROWS)
    arrow(tmp_path / "saved/val/data-00000-of-00001.arrow", ROWS[:2])
    assert run(tmp_path / "saved", tmp_path / "val", split="val").images == 2
    odd = [{"left": row["image"], "right": row["image"], "words": row["text"]} for row in ROWS]
    source = parquet(tmp_path / "odd.parquet", odd)
    with pytest.raises(ConfigError, match="several columns of images, left, right: .* --image-column"):
        run(source, tmp_path / "odd")
    with pytest.raises(ConfigError, match="has left, right, words: name its captions with --caption-column"):
        run(source, tmp_path / "odd", image="left")
    with pytest.raises(ConfigError, match="has no column 'word', it has"):
        run(source, tmp_path / "odd", image="left", caption="word")
    assert run(source, tmp_path / "odd", image="left", caption="words").images == 4


def test_what_cannot_be_unpacked(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot be read as a table"):
        run(tmp_path / "x.parquet", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.parquet"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ConfigError, match="exists: name a new folder"):
        run(parquet(tmp_path / "y.parquet", ROWS), tmp_path / "empty")
    with pytest.raises(ConfigError, match="no column of images, only text"):
        run(parquet(tmp_path / "z.parquet", [{"text": "a"}]), tmp_path / "out")


def test_the_command(tmp_path):
    result = command("unpack", parquet(tmp_path / "x.parquet", ROWS), tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output.splitlines()[-1])["images"] == 4
    assert [json.loads(line)["file_name"] for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()] == NAMES  # fmt: skip


def built(tmp_path, *sets, seed=0):
    index = FileIndex(tmp_path / "cache" / "files.json")
    return dataset_of(sets, DataConfig(resolution=32, min_side=16), 16, seed, index, lambda *_: None)


@pytest.mark.parametrize("kind", ["file", "folder", "split", "arrow"])
def test_a_hugging_face_dataset_is_a_set(tmp_path, kind):
    """Images inside of tables are trained as files of the same bytes and captions would be, and rows that cannot be are named."""
    if kind == "arrow":
        arrow(tmp_path / "pets" / "data-00000-of-00001.arrow", [*ROWS, *BAD])
    else:
        parquet(tmp_path / "pets" / "data" / "train-00000-of-00001.parquet", [*ROWS, *BAD])
    if kind == "split":
        parquet(tmp_path / "pets" / "data" / "test-00000-of-00001.parquet", ROWS[:1])
    folder = tmp_path / "pets" / ("data/train-00000-of-00001.parquet" if kind == "file" else "")
    dataset = built(tmp_path, DatasetConfig(folder=str(folder), trigger="sks"))
    assert [(e.path.name, e.captions[0]) for e in dataset.examples] == sorted(
        (name, f"sks {row['text']}") for name, row in zip(NAMES, ROWS, strict=True)
    )
    assert {e.path.read_bytes() for e in dataset.examples} == {row["image"]["bytes"] for row in ROWS}
    assert "4 images inside of tables" in dataset.about[0]
    assert any("4 rows are left out: row 5 has no image" in note for note in dataset.notes)


def test_a_dataset_is_written_once_and_again_when_it_changes(tmp_path):
    table = parquet(tmp_path / "pets" / "a.parquet", ROWS)
    one = DatasetConfig(folder=str(tmp_path / "pets"))
    first = built(tmp_path, one)
    times = {e.path: e.path.stat().st_mtime_ns for e in first.examples}
    again = built(tmp_path, one)
    assert {e.path: e.path.stat().st_mtime_ns for e in again.examples} == times
    assert again.digest == first.digest
    parquet(table, ROWS[:2])
    assert len(built(tmp_path, one).examples) == 2


def test_columns_are_named_by_the_options_of_tables(tmp_path):
    rows = [{"picture": row["image"], "other": row["image"], "words": row["text"]} for row in ROWS]
    parquet(tmp_path / "pets" / "a.parquet", rows)
    with pytest.raises(ConfigError, match="several columns of images, picture, other"):
        built(tmp_path, DatasetConfig(folder=str(tmp_path / "pets")))
    one = DatasetConfig(folder=str(tmp_path / "pets"), file_field="picture", caption_field="words")
    assert len(built(tmp_path, one).examples) == 4


def test_a_folder_of_images_with_a_table_is_none(tmp_path):
    (tmp_path / "a.png").write_bytes(picture("red"))
    parquet(tmp_path / "metadata.parquet", [{"file_name": "a.png", "text": "a cat"}])
    assert not is_table(tmp_path)
    assert [e.path for e in built(tmp_path, DatasetConfig(folder=str(tmp_path))).examples] == [tmp_path / "a.png"]


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    parquet(tmp_path / "pets" / "a.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow \(pip install pyarrow\)"):
        built(tmp_path, DatasetConfig(folder=str(tmp_path / "pets")))


def test_a_dataset_of_the_hub_that_is_not_there_names_the_command_that_fetches_it():
    with pytest.raises(DataError, match="hf download someone/cats --repo-type dataset --local-dir someone/cats"):
        scan(DatasetConfig(folder="someone/cats"))
    with pytest.raises(DataError) as error:
        scan(DatasetConfig(folder="/cats"))
    assert "hub" not in str(error.value)
