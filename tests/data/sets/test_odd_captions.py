"""Captions as people's tools leave them: read as they were meant, or refused with the remedy, once."""

import json
import unicodedata

import pytest
from PIL import Image

from lora_loom.trainer.config.run import DatasetConfig
from lora_loom.trainer.data.sets.scan import scan
from lora_loom.trainer.errors import DataError

from .test_scan import captions, put


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_marked_encodings(tmp_path, encoding):
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("ein Kätzchen\r\nschläft".encode(encoding))
    assert captions(tmp_path) == ["ein Kätzchen\nschläft"]


@pytest.mark.parametrize(
    "content",
    ["a cat".encode("utf-16-le"), b"\0" * 40, b"a\0cat", "süß".encode("cp1252"), "赤い猫".encode("shift-jis")],
)
def test_what_is_no_utf_8_is_refused_and_never_trained(tmp_path, content):
    """UTF-16 without its mark is valid UTF-8 where it is ASCII: a NUL behind each letter."""
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text: save it as UTF-8"):
        captions(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.png," + content + b"\n")
    with pytest.raises(DataError, match=r"metadata\.csv is not UTF-8 text"):
        captions(tmp_path)


def test_a_text_of_invisible_characters_is_empty(tmp_path):
    put(tmp_path, "a.png", "\u200b\ufeff \u2060")
    with pytest.raises(DataError, match=r"a\.txt is empty"):
        captions(tmp_path)
    assert captions(tmp_path, empty_captions=True) == [""]


@pytest.mark.parametrize("where", ["name", "json"])
def test_halves_of_characters_are_refused(tmp_path, where):
    """A name that is not UTF-8 and a lone surrogate in JSON are texts that no tokenizer takes."""
    if where == "json":
        put(tmp_path, "a.png")
        (tmp_path / "a.json").write_text('{"caption": "a \\ud83d cat"}')
        options = {"captions": "json"}
    else:
        try:
            put(tmp_path, "caf\udce9.png")
        except (UnicodeEncodeError, OSError):
            pytest.skip("this system has no such names")
        options = {"captions": "filename"}
    with pytest.raises(DataError, match="no valid character at place"):
        captions(tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("cat.png.txt", r"cat\.png\.txt is there: set dataset\.caption_extension = '\.png\.txt'"),
        ("cat.tags", r"cat\.tags is there: set dataset\.caption_extension = '\.tags'"),
        ("Cat.txt", r"Cat\.txt is there: rename it to cat\.txt"),
        ("dog.txt", r"write cat\.txt next to it"),
    ],
)
def test_a_text_under_another_name_is_named_where_the_caption_is_missing(tmp_path, name, remedy):
    put(tmp_path, "cat.png")
    put(tmp_path, "other.png", "a caption, so that files are what is read")
    (tmp_path / name).write_text("a cat")
    with pytest.raises(DataError, match=remedy):
        captions(tmp_path)


def test_a_table_that_is_left_aside_is_named_where_a_caption_is_missing(tmp_path):
    put(tmp_path, "a.png", "a cat")
    put(tmp_path, "b.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "a dog"}')
    with pytest.raises(
        DataError, match=r"metadata\.jsonl is not read where there are caption files: dataset\.captions = 'metadata'"
    ):
        captions(tmp_path)


def test_the_source_of_captions_with_separate_accents_is_named_by_its_extension(tmp_path):
    put(tmp_path, unicodedata.normalize("NFD", "é") + ".png")
    (tmp_path / (unicodedata.normalize("NFC", "é") + ".txt")).write_text("a cat")
    about = scan(DatasetConfig(folder=str(tmp_path))).about
    assert about == [f"captions of {tmp_path}: 1 from caption files (.txt)"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", '{"file_name": 7, "text": 42}'),
        ("metadata.jsonl", '{"File_Name": "7.png", " Text ": "42"}'),
        ("metadata.jsonl", '[{"file_name": "7.png", "text": [42, null, ""]}]'.replace("null, ", "")),
        ("metadata.json", '{"7": {"caption": 42}}'),
        ("metadata.csv", "File_Name, Text\n7.png,42\n"),
        ("METADATA.CSV", "file_name,text\n7.png,42,,\n"),
        ("metadata.tsv", "file_name\ttext\n7.png\t42\n"),
        ("7.json", "42"),
        ("7.json", '{"Caption": 42}'),
    ],
)
def test_numbers_and_headers_are_taken_as_they_are_meant(tmp_path, name, content):
    put(tmp_path, "7.png")
    (tmp_path / name).write_text(content)
    kind = "json" if name == "7.json" else "auto"
    assert captions(tmp_path, captions=kind) == ["42"]


def test_a_parquet_table_of_numbers(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name in ("1.png", "2.png"):
        put(tmp_path, name)
    table = pyarrow.table({"File_Name": [1, 2], "text": [5.5, float("nan")]})
    parquet.write_table(table, tmp_path / "metadata.parquet")
    assert captions(tmp_path, caption="nothing said") == ["5.5", "nothing said"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,text\na.png,a cat, on a mat\n", r"row 1 has more cells .* put texts with ',' in quotes"),
        ("file_name;text\na.png;a cat; on a mat\n", r"row 1 has more cells .* put texts with ';' in quotes"),
        ('file_name,text\na.png,"a cat\nb.png,a dog\n', "a quote is not closed, so the rest of the table is one cell"),
        ("file_name,text,text\na.png,a cat,a dog\n", "has the column 'text' twice"),
    ],
)
def test_a_csv_table_that_would_lose_a_part_of_its_captions(tmp_path, content, message):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        captions(tmp_path)


def test_what_a_quoted_cell_holds(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"a ""red"" cat,\non a mat"\n')
    assert captions(tmp_path) == ['a "red" cat,\non a mat']


def test_several_rows_for_a_file_are_its_captions_and_are_named(tmp_path):
    put(tmp_path, "a.png")
    rows = [{"file_name": "a.png", "text": "a cat"}, {"file_name": "a.png", "text": "a red cat"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = scan(DatasetConfig(folder=str(tmp_path)))
    assert found.images[0].forms.texts == ("a cat", "a red cat")
    assert (
        f"{tmp_path / 'metadata.jsonl'} has several rows for 1 files, whose captions are all trained: a.png"
        in found.about
    )


def test_a_table_that_cannot_be_used_is_read_and_named_once(tmp_path, monkeypatch):
    from lora_loom.trainer.data.sets import scan as module

    for number in range(30):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.jsonl").write_text("{")
    reads = []
    read = module.read_table
    monkeypatch.setattr(module, "read_table", lambda *args: reads.append(args) or read(*args))
    with pytest.raises(DataError) as error:
        captions(tmp_path)
    assert len(reads) == 1
    assert str(error.value).count("\n") == 0
