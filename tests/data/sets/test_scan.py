"""Folders and captions: nothing is dropped silently; every problem is named at once."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from lora_loom.trainer.config.run import DatasetConfig
from lora_loom.trainer.data.sets.captions import plain
from lora_loom.trainer.data.sets.scan import scan
from lora_loom.trainer.errors import DataError


def put(folder, name, caption=None):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def captions(folder, **options):
    return [image.caption for image in scan(DatasetConfig(folder=str(folder), **options)).images]


def test_sidecars_with_trigger(tmp_path):
    put(tmp_path, "b.png", "a cat\n")
    put(tmp_path, "a.jpg", "\ufeffein Hund äöü")
    assert captions(tmp_path, trigger="sks") == ["sks ein Hund äöü", "sks a cat"]


def test_other_sources(tmp_path):
    put(tmp_path / "10_my_cat", "red_sofa.png")
    folder = tmp_path / "10_my_cat"
    assert captions(folder, captions="filename") == ["red sofa"]
    assert captions(folder, captions="folder") == ["my cat"]
    assert captions(folder, captions="fixed", caption="a thing") == ["a thing"]
    assert captions(folder) == ["red sofa"], "auto falls back to file names when there is no sidecar"


def test_auto_means_sidecars_as_soon_as_there_is_one(tmp_path):
    put(tmp_path, "a.png", "a cat")
    put(tmp_path, "b.png")
    with pytest.raises(DataError, match=r"b\.png has no caption: write b\.txt next to it"):
        captions(tmp_path)
    assert captions(tmp_path, caption="fallback") == ["a cat", "fallback"]


@pytest.mark.parametrize(
    ("kind", "name", "remedy"),
    [
        ("sidecar", "a.png", r"write a\.txt next to it"),
        ("filename", "___.png", "give it a name"),
        ("folder", "7_/a.png", "put it in a folder whose name describes it"),
    ],
)
def test_missing_caption_names_file_and_remedy(tmp_path, kind, name, remedy):
    path = put(tmp_path, name)
    with pytest.raises(DataError, match=f"{path.name} has no caption: {remedy}"):
        captions(path.parent, captions=kind)


def test_all_problems_at_once(tmp_path):
    for number in range(15):
        put(tmp_path, f"{number:02d}.png")
    put(tmp_path, "x.png", "fine")
    with pytest.raises(DataError) as error:
        captions(tmp_path)
    named = str(error.value).count("has no caption")
    assert 3 <= named < 10
    assert f"… and {15 - named} more" in str(error.value)


def test_empty_folder_and_its_reasons(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        captions(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no images \(.*png.*\)"):
        captions(tmp_path)
    (tmp_path / "a.xyz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"it holds \.xyz: convert them"):
        captions(tmp_path)


def test_sub_folders(tmp_path):
    put(tmp_path / "deep", "a.png", "deep cat")
    with pytest.raises(DataError, match=r"set dataset\.recursive = true"):
        captions(tmp_path)
    assert captions(tmp_path, recursive=True) == ["deep cat"]


def test_hidden_and_foreign_files_are_no_images(tmp_path):
    put(tmp_path, "a.png", "a cat")
    (tmp_path / ".thumb.png").write_bytes(b"x")
    (tmp_path / "notes.md").write_text("x")
    assert captions(tmp_path) == ["a cat"]


def test_caption_in_another_encoding(tmp_path):
    put(tmp_path, "a.png").with_suffix(".txt").write_bytes("ä".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8"):
        captions(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_captions_of_windows_editors(tmp_path, encoding):
    """Notepad and PowerShell write UTF-16 with a mark that says so, and line ends of their own."""
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    put(tmp_path, "a.png").with_suffix(".txt").write_bytes(mark + "eine grüne Tür\r\nж\r\n".encode(encoding))
    assert captions(tmp_path, caption_lines="first") == ["eine grüne Tür"]


def test_references(tmp_path):
    put(tmp_path / "images", "a.png", "make it red")
    put(tmp_path / "before", "a.jpg")
    [image] = scan(DatasetConfig(folder=str(tmp_path / "images"), references=str(tmp_path / "before"))).images
    assert image.references == (tmp_path / "before" / "a.jpg",)
    assert image.mask is None


def test_masks(tmp_path):
    put(tmp_path / "images", "a.png", "a cat")
    masks = tmp_path / "masks"
    masks.mkdir()
    options = {"masks": str(masks)}
    with pytest.raises(DataError, match=r"a\.png has no counterpart for dataset\.masks: put a\.png into"):
        captions(tmp_path / "images", **options)
    put(masks, "a.webp")
    [image] = scan(DatasetConfig(folder=str(tmp_path / "images"), **options)).images
    assert image.mask == masks / "a.webp"
    [image] = scan(DatasetConfig(folder=str(tmp_path / "images"), masks="alpha")).images
    assert image.mask == image.path


def row(**values):
    return json.dumps(values) + "\n"


def test_tables_in_the_style_of_hugging_face(tmp_path):
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    (tmp_path / "metadata.jsonl").write_text(
        row(file_name="a.png", text="a cat") + "\n" + row(file_name="./b.png", text="a dog")
    )
    assert captions(tmp_path, trigger="sks") == ["sks a cat", "sks a dog"], "auto takes the table"
    (tmp_path / "metadata.jsonl").rename(tmp_path / "other.jsonl")
    assert captions(tmp_path) == ["a", "b"]
    assert captions(tmp_path, captions="metadata", metadata="other.jsonl") == ["a cat", "a dog"]


def test_a_csv_table_with_a_named_column(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text('file_name,title,caption\na.png,"one, two",x\n', encoding="utf-8-sig")
    assert captions(tmp_path) == ["x"]
    assert captions(tmp_path, caption_field="title") == ["one, two"]
    with pytest.raises(DataError, match=r"metadata\.csv, row 1 has no 'titel' .*it has file_name, title, caption"):
        captions(tmp_path, caption_field="titel")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_of_spreadsheets(tmp_path, delimiter, encoding):
    """Delimiters of other languages, Excel's "Unicode text", line ends of Windows; a quoted text may hold any of them."""
    put(tmp_path, "a.png")
    lines = [["file_name", "text"], ["a.png", '"grün; rot, blau\tgelb"']]
    text = "".join(delimiter.join(row) + "\r\n" for row in lines)
    (tmp_path / "metadata.csv").write_bytes(text.encode(encoding))
    assert captions(tmp_path) == ["grün; rot, blau\tgelb"]


def test_a_json_list_of_rows(tmp_path):
    put(tmp_path, "a.png")
    table = tmp_path / "metadata.json"
    table.write_bytes(json.dumps([{"file_name": "a.png", "text": "a cat"}]).encode("utf-16"))
    assert captions(tmp_path) == ["a cat"]
    table.write_text("[1]")
    with pytest.raises(DataError, match="row 1 holds '1'"):
        captions(tmp_path)
    table.write_text("[")
    with pytest.raises(DataError, match="not valid JSON"):
        captions(tmp_path)


def test_json_files_that_are_not_read_name_the_source_that_reads_them(tmp_path):
    put(tmp_path, "red cat.png").with_suffix(".json").write_text('{"caption": "x"}')
    [note] = scan(DatasetConfig(folder=str(tmp_path))).notes
    assert 'red cat.json; dataset.captions = "json" reads' in note


def test_a_parquet_table(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    parquet.write_table(
        pyarrow.table(
            {"image": ["a.png", "b.png"], "caption": [["a cat", "a kitten"], ["a dog"]], "raw": [b"x", b"y"]}
        ),
        tmp_path / "metadata.parquet",
    )
    [first, second] = scan(DatasetConfig(folder=str(tmp_path))).images
    assert (first.forms.texts, second.forms.texts) == (("a cat", "a kitten"), ("a dog",))
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"x"}], "text": ["a"]}), tmp_path / "metadata.parquet")
    with pytest.raises(DataError, match="the images are inside the table, in image: lora-loom unpack .* writes them"):
        captions(tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"metadata\.parquet is not valid parquet"):
        captions(tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow \(pip install pyarrow\), or save it as metadata\.csv"):
        captions(tmp_path)


def test_kohyas_table_joins_caption_and_tags(tmp_path):
    path = put(tmp_path / "deep", "a.png")
    table = tmp_path / "meta.json"
    for name in (str(path), str(path.with_suffix("")), "deep/a.png", "deep/a", "a"):
        table.write_text(json.dumps({name: {"caption": "a cat", "tags": "sofa, red"}}))
        assert captions(tmp_path, recursive=True, captions="metadata", metadata="meta.json") == ["a cat, sofa, red"]


def test_a_table_is_looked_for_beside_the_image_and_above(tmp_path):
    put(tmp_path / "train", "a.png")
    put(tmp_path / "test", "a.png")
    (tmp_path / "metadata.jsonl").write_text(row(file_name="train/a.png", text="above"))
    (tmp_path / "test" / "metadata.jsonl").write_text(row(file_name="a.png", text="beside"))
    assert captions(tmp_path, recursive=True) == ["beside", "above"]


def test_what_a_table_lacks_and_what_it_has_too_much(tmp_path):
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    (tmp_path / "metadata.jsonl").write_text(row(file_name="a.png", text="a cat") + row(file_name="gone.png", text="x"))
    with pytest.raises(DataError, match=r"b\.png has no caption: add a line for it to the table"):
        captions(tmp_path)
    found = scan(DatasetConfig(folder=str(tmp_path), caption="thing"))
    assert [image.caption for image in found.images] == ["a cat", "thing"]
    assert len(found.notes) == 1
    assert "metadata.jsonl names 1 files that are not among the images: gone.png" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", "{", r"metadata\.jsonl, line 1 is not valid JSON"),
        ("metadata.jsonl", "[1]", r"metadata\.jsonl, row 1 holds '1'"),
        ("metadata.jsonl", '{"text": "x"}', r"metadata\.jsonl, row 1 does not name a file, it has text: add file_name"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "size": 3}',
            "row 1 has no caption, it has file_name, size: name one",
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "text": true}', "row 1: text = 'True' is not text"),
        ("metadata.json", '{"a": "x"}', r"metadata\.json: 'a' holds 'x'"),
        ("metadata.csv", "", r"a\.png has no caption"),
        ("metadata.jsonl", "\xe4", r"metadata\.jsonl is not UTF-8"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, name, content, message):
    put(tmp_path, "a.png")
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=message):
        captions(tmp_path, captions="metadata")
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"a\.png: no metadata\.jsonl, \.csv, \.parquet or \.json next to it"):
        captions(tmp_path, captions="metadata")


def test_a_json_file_beside_the_image(tmp_path):
    path = put(tmp_path, "a.png").with_suffix(".json")
    for content, expected in [
        ('"a cat"', ("a cat",)),
        ('["a cat", "a kitten"]', ("a cat", "a kitten")),
        ('{"caption": "a cat", "score": 3}', ("a cat",)),
        ('{"tags": ["cat", "sofa"]}', ("cat, sofa",)),
    ]:
        path.write_text(content)
        [image] = scan(DatasetConfig(folder=str(tmp_path), captions="json")).images
        assert image.forms.texts == expected
    path.write_text("{")
    with pytest.raises(DataError, match=r"a\.json is not valid JSON"):
        captions(tmp_path, captions="json")
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png has no caption: write a\.json next to it"):
        captions(tmp_path, captions="json")


def test_several_lines(tmp_path):
    put(tmp_path, "a.png", "a cat\n\n a kitten \n")
    assert captions(tmp_path) == ["a cat\n\n a kitten"]
    assert captions(tmp_path, caption_lines="first") == ["a cat"]
    [image] = scan(
        DatasetConfig(folder=str(tmp_path), caption_lines="each", trigger="sks", prefix="photo,", suffix="end")
    ).images
    assert plain(image.forms) == ("sks photo, a cat end", "sks photo, a kitten end")


def test_kohyas_folders(tmp_path):
    put(tmp_path / "10_my_cat", "a.png", "a cat on a sofa")
    put(tmp_path / "10_my_cat", "b.png")
    put(tmp_path / "2_dog", "c.png")
    put(tmp_path / "notes", "d.png")
    put(tmp_path, "e.png")
    found = scan(DatasetConfig(folder=str(tmp_path), layout="kohya", repeats=3))
    assert [(i.path.name, i.caption, i.repeats) for i in found.images] == [
        ("a.png", "a cat on a sofa", 30),
        ("b.png", "my cat", 30),
        ("c.png", "dog", 6),
    ], "N times repeats, and the concept where there is no caption file"
    assert found.notes == [f"{tmp_path}: ignored because not in a folder named N_concept: notes, e.png"]
    (tmp_path / "e.png").unlink()
    with pytest.raises(DataError, match=r"holds no images .*sub-folders are named as kohya's .*layout = 'kohya'"):
        captions(tmp_path)
    with pytest.raises(DataError, match="no sub-folders named N_concept, such as 10_mycat"):
        captions(tmp_path / "2_dog", layout="kohya")


def listing(tmp_path, text, **options):
    (tmp_path / "list.csv").write_text(text)
    return scan(
        DatasetConfig(folder=str(tmp_path / "images"), metadata=str(tmp_path / "list.csv"), only_listed=True, **options)
    )


def test_only_what_a_table_names(tmp_path):
    """In its order, by names that start from the folder, from the table or anywhere, with and without suffix."""
    for name in ("a.png", "sub/b.PNG", "c.jpg", "unlisted.png"):
        put(tmp_path / "images" / Path(name).parent, Path(name).name)
    whole = tmp_path / "images" / "a.png"
    found = listing(tmp_path, f"path,caption\nimages/c.jpg,third\nsub/b,second\n{whole},first\n")
    assert [image.path.relative_to(tmp_path / "images").as_posix() for image in found.images] == [
        "c.jpg",
        "sub/b.PNG",
        "a.png",
    ]
    assert [image.caption for image in found.images] == ["third", "second", "first"]
    assert found.notes == []
    named = listing(tmp_path, "path,caption\na.png,x\n", captions="filename")
    assert [image.caption for image in named.images] == ["a"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.png", "names gone.png, which is neither in"),
        ("../secret.png", "secret.png, outside of dataset.folder"),
        ("s3://bucket/a.png", "s3://bucket/a.png is an address"),
        ("list.csv", "names list.csv, which is no image"),
    ],
)
def test_what_a_table_may_not_name(tmp_path, name, message):
    put(tmp_path / "images", "a.png")
    put(tmp_path, "secret.png")
    with pytest.raises(DataError, match=message):
        listing(tmp_path, f"path,caption\n{name},x\n")


def test_only_listed_needs_a_table(tmp_path):
    put(tmp_path, "a.png")
    with pytest.raises(DataError, match="no metadata.jsonl"):
        scan(DatasetConfig(folder=str(tmp_path), only_listed=True))
