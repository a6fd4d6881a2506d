"""What lies in a folder is read, or named in the report with the reason."""

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from lora_loom.trainer.config.run import DataConfig, DatasetConfig
from lora_loom.trainer.data.images import load
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.report import make_report, refuse_warnings
from lora_loom.trainer.data.sets.dataset import build_dataset
from lora_loom.trainer.data.sets.file_names import says_nothing
from lora_loom.trainer.data.sets.scan import folders_of, scan
from lora_loom.trainer.errors import DataError


def put(folder, name, caption=None, extension=".txt"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.effect_noise((48, 48), 80).convert("RGB")
    image.save(path, {".jfif": "jpeg", ".jxl": "png"}.get(path.suffix.lower()))
    if caption is not None:
        (path.parent / f"{path.stem}{extension}").write_text(caption, encoding="utf-8")
    return path


def scanned(folder, **options):
    return scan(DatasetConfig(folder=str(folder), **options))


def captions(folder, **options):
    return [image.caption for image in scanned(folder, **options).images]


def report(tmp_path, *sets):
    data = DataConfig(resolution=32)
    dataset = build_dataset(sets, data, 16, 0, FileIndex(tmp_path / "files.json"), lambda *p: None)
    return make_report(dataset)


@pytest.mark.parametrize("extension", [".TXT", ".Txt", ".CAPTION"])
def test_the_case_of_caption_extensions_does_not_matter(tmp_path, extension):
    put(tmp_path, "p0.JPG", "a cat", extension)
    found = scanned(tmp_path)
    assert [image.caption for image in found.images] == ["a cat"]
    assert found.about == [f"captions of {tmp_path}: 1 from caption files ({extension.lower()})"]
    assert found.notes == []


def test_the_case_of_suffixes_does_not_matter_for_masks_references_json_and_tables(tmp_path):
    put(tmp_path / "d", "p.PNG")
    put(tmp_path / "m", "p.JPG")
    put(tmp_path / "r", "p.Bmp")
    (tmp_path / "d" / "p.JSON").write_text('{"caption": "by json"}')
    (tmp_path / "d" / "metadata.JSONL").write_text('{"file_name": "p.png", "text": "by table"}')
    options = {"masks": str(tmp_path / "m"), "references": str(tmp_path / "r")}
    [image] = scanned(tmp_path / "d", captions="json", **options).images
    assert (image.caption, image.mask.name, image.references[0].name) == ("by json", "p.JPG", "p.Bmp")
    assert captions(tmp_path / "d", captions="metadata") == ["by table"]


def test_names_in_any_script_with_composed_and_separate_accents(tmp_path):
    separate = unicodedata.normalize("NFD", "é 猫")
    put(tmp_path, f"{separate}.png")
    (tmp_path / "é 猫.txt").write_text("a cat", encoding="utf-8")
    assert captions(tmp_path) == ["a cat"]
    (tmp_path / "é 猫.txt").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,text\né 猫.png,by table\n", encoding="utf-8")
    assert captions(tmp_path) == ["by table"]


def test_texts_under_other_names_are_named_and_can_be_chosen(tmp_path):
    for name in ("p0.jpg", "p1.jpg"):
        put(tmp_path, name, "by another tool", ".jpg.txt")
    found = scanned(tmp_path)
    assert [image.caption for image in found.images] == ["p0", "p1"]
    assert "2 from file names, such as 'p0'" in found.about[0]
    [note] = found.notes
    assert "2 text files next to the images are not read as captions: p0.jpg.txt, p1.jpg.txt" in note
    assert captions(tmp_path, caption_extension="jpg.txt") == ["by another tool"] * 2
    assert report(tmp_path, DatasetConfig(folder=str(tmp_path))).text().count("p0.jpg.txt") == 1


def test_extensions_are_tried_in_the_order_given(tmp_path):
    put(tmp_path, "p.png", "tags", ".txt")
    (tmp_path / "p.caption").write_text("a sentence")
    assert captions(tmp_path) == ["tags"]
    assert "p.caption" in scanned(tmp_path).notes[0]
    assert captions(tmp_path, caption_extension=".caption, .txt") == ["a sentence"]


def test_whatever_else_lies_in_the_folder_is_named(tmp_path):
    put(tmp_path, "p.png", "a cat")
    for name in ("clip.mp4", "list.csv", "notes.md", "p.npz", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    found = scanned(tmp_path)
    assert any("1 videos are left out, only images are read: clip.mp4" in note for note in found.notes)
    assert any("these are left out: list.csv" in note for note in found.notes)
    assert len(found.notes) == 2
    assert any("2 other files are left out: notes.md, p.npz" in line for line in found.about)


def test_captions_of_no_image_and_unread_tables_are_named_and_strict_refuses(tmp_path):
    put(tmp_path, "p.png", "a cat")
    (tmp_path / "gone.txt").write_text("of an image that is not here")
    (tmp_path / "metadata.csv").write_text("file_name,text\np.png,x\n")
    made = report(tmp_path / "cache", DatasetConfig(folder=str(tmp_path)))
    assert any("1 caption files belong to no image: gone.txt" in note for note in made.notes)
    assert any("not read, because captions come from elsewhere: metadata.csv" in note for note in made.notes)
    with pytest.raises(DataError, match=r"gone\.txt"):
        refuse_warnings(made)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails", "#recycle"])
def test_folders_of_systems_and_tools_are_left_out_and_named(tmp_path, name):
    put(tmp_path, "p.png", "a cat")
    put(tmp_path / "sub", "q.png", "a dog")
    put(tmp_path / name, "p-checkpoint.png", "stale")
    found = scanned(tmp_path, recursive=True)
    assert [image.caption for image in found.images] == ["a cat", "a dog"]
    assert any(name in line for line in found.about)
    assert found.notes == [], "nothing is left for the user to mend"


def test_a_folder_below_a_hidden_one_can_be_a_set(tmp_path):
    put(tmp_path / ".cache" / "set", "p.png", "a cat")
    assert captions(tmp_path / ".cache" / "set", recursive=True) == ["a cat"]


def test_linked_folders_are_read_once_and_circles_are_left_out(tmp_path):
    put(tmp_path / "d" / "x", "p0.png", "c 0")
    put(tmp_path / "elsewhere", "p1.png", "c 1")
    for name, target in {"linked": "elsewhere", "again": "elsewhere", "circle": "d", "twice": "d/x"}.items():
        (tmp_path / "d" / name).symlink_to(tmp_path / target)
    (tmp_path / "d" / "x" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "d" / "x" / "self.png").symlink_to(tmp_path / "d" / "x" / "self.png")
    found = scanned(tmp_path / "d", recursive=True)
    assert sorted(image.caption for image in found.images) == ["c 0", "c 1"]
    left_out = "\n".join(found.notes)
    assert all(name in left_out for name in ("circle", "twice", "gone.png", "self.png"))
    assert ("again" in left_out) != ("linked" in left_out), "one of two links to the same folder"


def test_sub_folders_that_are_not_read_are_named_unless_another_set_reads_them(tmp_path):
    put(tmp_path, "p.png", "a cat")
    put(tmp_path / "more" / "deep", "q.png", "a dog")
    put(tmp_path / "masks", "p.png")
    (tmp_path / "empty").mkdir()
    first = DatasetConfig(folder=str(tmp_path), masks=str(tmp_path / "masks"))
    [note] = scan(first).notes
    assert "sub-folders with images are not read: more; set dataset.recursive = true" in note
    second = DatasetConfig(folder=str(tmp_path / "more"), recursive=True)
    assert scan(first, folders_of([first, second])).notes == []


def test_an_empty_caption_file_is_refused_by_its_name_or_taken_when_asked_for(tmp_path):
    put(tmp_path, "p0.png", "a cat")
    put(tmp_path, "p1.png", "")
    with pytest.raises(DataError, match=r"p1\.txt is empty: .*dataset\.empty_captions = true"):
        scanned(tmp_path)
    asked = DatasetConfig(folder=str(tmp_path), empty_captions=True)
    assert [image.caption for image in scan(asked).images] == ["a cat", ""]
    assert captions(tmp_path, empty_captions=True, trigger="sks") == ["sks a cat", "sks"]
    refuse_warnings(report(tmp_path / "cache", asked))
    put(tmp_path, "p2.png")
    with pytest.raises(DataError, match=r"p2\.png has no caption: write p2\.txt"):
        scan(asked)


def test_an_empty_caption_in_a_table(tmp_path):
    put(tmp_path, "p.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "p.png", "text": ""}))
    with pytest.raises(DataError, match="empty caption in the table"):
        scanned(tmp_path)
    assert captions(tmp_path, empty_captions=True) == [""]


MEANINGLESS = [
    "IMG_2041",
    "DSC0001",
    "_DSC1234",
    "P1000123",
    "PXL_20240131_123456789",
    "IMG-20240131-WA0001",
    "0001",
    "20240131_123456",
    "IMG_E2041",
    "DJI_0001",
    "d41d8cd98f00b204e9800998ecf8427e",
    "123e4567-e89b-12d3-a456-426614174000",
    "ComfyUI_00001_",
    "photo_2024-01-31_10-11-12",
    "100_0001",
]
MEANINGLESS += [
    "Screenshot 2024-05-01 at 10.11.12",
    "image (3)",
    "IMG_2041 (1)",
    "WhatsApp Image 2024-01-31 at 10.11.12",
]


@pytest.mark.parametrize("stem", MEANINGLESS)
def test_names_that_say_nothing(stem):
    assert says_nothing(Path(f"{stem}.jpg"))


@pytest.mark.parametrize(
    "stem",
    [
        "a cat",
        "p0",
        "red_sofa",
        "IMG_2041 a cat",
        "7",
        "deadbeef",
        "cat_0001",
        "photo of a cat",
        "sam_001",
        "猫",
        "facade",
    ],
)
def test_names_that_say_something(stem):
    assert not says_nothing(Path(f"{stem}.jpg"))


def test_names_that_say_nothing_stop_a_run_or_the_trigger_is_trained_loudly(tmp_path):
    for name in ("IMG_2041.jpg", "IMG_2042.jpg", "a cat.jpg"):
        put(tmp_path, name)
    with pytest.raises(DataError, match=r"2 of 3 images have no caption.*'IMG_2041'.*dataset\.captions = 'filename'"):
        scanned(tmp_path)
    found = scanned(tmp_path, trigger="sks")
    assert [image.caption for image in found.images] == ["sks", "sks", "sks a cat"]
    assert "trained with the trigger or prefix alone: IMG_2041.jpg, IMG_2042.jpg" in found.notes[0]
    assert captions(tmp_path, caption="a thing") == ["a thing", "a thing", "a cat"]
    assert captions(tmp_path, captions="filename") == ["IMG 2041", "IMG 2042", "a cat"], "as earlier versions did"


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".tif", ".TIFF", ".webp"])
def test_kinds_of_images(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    Image.effect_noise((48, 48), 80).convert("RGB").save(path, {".jfif": "jpeg", ".JPE": "jpeg"}.get(suffix))
    made = report(tmp_path / "cache", DatasetConfig(folder=str(tmp_path)))
    assert made.roles == {"train": 1}
    assert made.unreadable == {}


def test_images_that_need_a_library_are_named_with_it(tmp_path, monkeypatch):
    put(tmp_path, "p.png", "a cat")
    for name in ("q.HEIC", "r.jxl", "s.psd"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr("lora_loom.trainer.data.sets.leftovers.image_suffixes", lambda: load.SUFFIXES)
    monkeypatch.setattr("lora_loom.trainer.data.sets.scan.image_suffixes", lambda: load.SUFFIXES)
    notes = "\n".join(scanned(tmp_path).notes)
    assert "1 .heic left out, pip install pillow-heif" in notes
    assert "1 .jxl left out, pip install pillow-jxl-plugin" in notes
    assert "s.psd" in notes
    (tmp_path / "p.png").unlink()
    with pytest.raises(DataError, match="holds no images.*pip install pillow-heif"):
        scanned(tmp_path)
