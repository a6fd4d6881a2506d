"""Files that other trainers read: what they mean here, and what of them is ignored is reported."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lora_loom.trainer.config.dataset import DatasetConfig
from lora_loom.trainer.data.sets.captions import plain
from lora_loom.trainer.data.sets.dataset_file import gather_sets, read_dataset_file
from lora_loom.trainer.data.sets.scan import scan
from lora_loom.trainer.data.sets.simpletuner import simpletuner_sets
from lora_loom.trainer.errors import ConfigError, DataError, LoomError

KOHYA = """
[general]
shuffle_caption = true
keep_tokens = 2
caption_extension = ".txt"

[[datasets]]
resolution = 768
batch_size = 4
enable_bucket = true
max_bucket_reso = 1536
bucket_no_upscale = true

  [[datasets.subsets]]
  image_dir = "cat"
  num_repeats = 10
  class_tokens = "sks cat"
  caption_prefix = "sks,"
  caption_tag_dropout_rate = 0.1
  flip_aug = true
  color_aug = true
  enable_wildcard = true
  no_such_thing = 1

  [[datasets.subsets]]
  image_dir = "reg"
  is_reg = true
  custom_attributes = { diff_output_preservation = true, other = 1 }
  shuffle_caption = false
  alpha_mask = true

[[datasets]]
resolution = [512, 640]

  [[datasets.subsets]]
  image_dir = "cat"
  metadata_file = "meta.json"
  random_crop = true
"""

TUNER = [
    {
        "id": "cats",
        "type": "local",
        "instance_data_dir": "cat",
        "crop": True,
        "crop_aspect": "closest",
        "crop_aspect_buckets": [1.0, 0.75],
        "crop_style": "center",
        "resolution": 1.05,
        "resolution_type": "area",
        "minimum_image_size": 0.25,
        "maximum_image_size": 4.0,
        "target_downsample_size": 2.25,
        "caption_strategy": "textfile",
        "instance_prompt": "sks,",
        "prepend_instance_prompt": True,
        "caption_shuffle": {"enable": True, "count": 3, "split_on": "comma", "position_start": 1, "seed": 7},
        "repeats": 9,
        "cache_dir_vae": "cache/vae",
        "skip_file_discovery": "vae",
        "metadata_backend": "discovery",
        "delete_unwanted_images": False,
        "probability": 0.5,
        "start_step": 100,
        "end_epoch": None,
        "max_num_samples": 40,
        "brand_new": 1,
        "conditioning_data": "masks",
    },
    {"id": "masks", "dataset_type": "conditioning", "conditioning_type": "mask", "instance_data_dir": "masks"},
    {"id": "off", "disabled": True, "instance_data_dir": "nowhere"},
    {"id": "text", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text", "write_batch_size": 16},
    {
        "id": "world",
        "instance_data_dir": "reg",
        "is_regularisation_data": True,
        "caption_strategy": "instanceprompt",
        "instance_prompt": "a photo",
        "resolution": 512,
        "resolution_type": "pixel",
        "minimum_image_size": 256,
    },
]


@pytest.fixture
def folder(tmp_path):
    for name in ("cat/a.png", "cat/b.png", "reg/a.png", "masks/a.png", "masks/b.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGBA", (8, 8)).save(path)
    (tmp_path / "cat" / "a.txt").write_text("a cat, sofa\na kitten, bed")
    (tmp_path / "cat" / "b.txt").write_text("a cat")
    (tmp_path / "reg" / "a.txt").write_text("a dog")
    (tmp_path / "meta.json").write_text(json.dumps({"a": {"tags": "x, y"}, "b": {"tags": "z"}}))
    return tmp_path


def read(folder, content, name=None):
    name = name or ("sets.toml" if isinstance(content, str) else "multidatabackend.json")
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_dataset_file(folder / name)


def test_kohyas_toml(folder):
    listed = read(folder, KOHYA)
    cat, reg, table = listed.sets
    assert cat == DatasetConfig(
        folder=str(folder / "cat"),
        repeats=10,
        captions="sidecar",
        caption="sks cat",
        caption_extension=".txt",
        caption_lines="each",
        prefix="sks,",
        wildcards=True,
        shuffle_tags=True,
        keep_tokens=1,
        tag_dropout=0.1,
        flip=True,
        random_hue=16.0,
        resolutions=(768,),
        buckets="kohya",
        min_side=256,
        max_side=1536,
        upscale=False,
    ), "one of the two kept tokens is the prefix's, which never moves"
    assert reg.teacher == "base"
    assert (reg.role, reg.shuffle_tags, reg.caption_lines, reg.masks) == ("regularisation", False, "first", "alpha")
    assert (table.captions, table.metadata) == ("metadata", str(folder / "meta.json"))
    assert (table.resolutions, table.buckets, table.crop) == ((572,), "off", "random")
    assert [[image.repeats for image in scan(one).images] for one in listed.sets] == [[10, 10], [1], [1, 1]]
    assert plain(scan(table).images[0].forms) == ("x, y",)


def test_what_of_kohyas_toml_is_ignored_is_reported(folder):
    notes = read(folder, KOHYA).notes
    assert any(
        "subset 1: color_aug turns hues by up to 16 degrees, in variants that are cached" in note for note in notes
    )
    assert "sets.toml: datasets 1, subset 1: batch_size = 4 is ignored; set training.batch_size" in notes
    assert "sets.toml: datasets 1, subset 1: unknown options are ignored: no_such_thing" in notes
    assert "sets.toml: datasets 1, subset 2, custom_attributes: unknown options are ignored: other" in notes
    assert any("resolution = [512, 640] is interpreted as its area, a square of 572 pixels" in note for note in notes)
    assert any("random_crop is one position per image" in note for note in notes)


def test_kohyas_options_of_the_place_in_the_run(folder):
    text = (
        '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "cat"\ncaption_dropout_every_n_epochs = 4\n'
    )
    listed = read(folder, text + "token_warmup_step = 200\ntoken_warmup_min = 2\n")
    [one] = listed.sets
    assert (one.caption_dropout_every_n_epochs, one.token_warmup_step, one.token_warmup_min) == (4, 200, 2)
    listed = read(folder, text + "token_warmup_step = 0.2\n")
    assert listed.sets[0].token_warmup_step == 0
    assert any("token_warmup_step = 0.2 is ignored; write it as a number of steps" in note for note in listed.notes)


def test_simpletuners_json(folder):
    listed = read(folder, TUNER)
    cats, world = listed.sets
    assert cats == DatasetConfig(
        folder=str(folder / "cat"),
        recursive=True,
        repeats=10,
        captions="sidecar",
        caption_lines="each",
        prefix="sks,",
        shuffle_tags=True,
        keep_tokens=1,
        caption_variants=4,
        masks=str(folder / "masks"),
        megapixels=(1.05,),
        buckets="pixel_area",
        aspects=(1.0, 0.75),
        min_size=500,
        max_size=2000,
        downsample=1500,
        size_metric="area",
        probability=0.5,
        start_step=100,
        max_num_samples=40,
    ), "nine repeats more are ten times seen"
    assert (world.role, world.teacher) == ("regularisation", "base"), "its regularisation is parent and student"
    assert (world.captions, world.caption) == ("fixed", "a photo")
    assert (world.buckets, world.resolutions, world.min_size, world.size_metric) == ("pixel", (512,), 256, "side")
    assert world.crop == "none"
    assert plain(scan(cats).images[0].forms) == ("sks, a cat, sofa", "sks, a kitten, bed")


def test_what_of_simpletuners_json_is_ignored_is_reported(folder):
    notes = "\n".join(read(folder, TUNER).notes)
    assert "cats: probability = 0.5 is this share of the set's images in each epoch" in notes
    assert "cats: unknown options are ignored: brand_new" in notes
    assert "cats, caption_shuffle: seed = 7 is ignored; the run's seed decides" in notes
    assert "off: left out because it is disabled" in notes
    assert "cache" not in notes, "where its caches lie matters to nobody here"


@pytest.mark.parametrize("name", ["delete_unwanted_images", "delete_problematic_images", "delete_nsfw_images"])
def test_nothing_is_ever_deleted(folder, name):
    with pytest.raises(ConfigError, match=rf"cats: {name} = True: images are never deleted here; remove this option"):
        read(folder, [{**TUNER[0], name: True}, *TUNER[1:]])
    with pytest.raises(ConfigError, match="never deleted"):
        read(folder, [TUNER[4], {**TUNER[2], name: True}])


def test_square_crops_are_measured_by_their_side(folder):
    [one] = read(folder, [{"instance_data_dir": "cat", "crop": True, "minimum_image_size": 512}]).sets
    assert (one.buckets, one.crop, one.size_metric, one.min_size) == ("off", "random", "side", 512)


def test_aspect_limits_and_faces(folder):
    entry = {"instance_data_dir": "cat", "crop": True, "crop_style": "face", "crop_aspect": "preserve"}
    listed = read(folder, [{**entry, "minimum_aspect_ratio": 0.5, "maximum_aspect_ratio": 2.0}])
    [one] = listed.sets
    assert (one.min_aspect, one.max_aspect, one.crop) == (0.5, 2.0, "face")
    assert listed.notes == ()


def test_kohyas_crop_round_faces(folder):
    text = '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "cat"\nface_crop_aug_range = "2.0,4.0"\n'
    listed = read(folder, text)
    assert listed.sets[0].crop == "face"
    assert any("face_crop_aug_range is interpreted as crop = 'face'" in note for note in listed.notes)


def test_simpletuners_csv_and_aws(folder):
    entry = {
        "id": "a",
        "type": "csv",
        "csv_file": "list.csv",
        "csv_cache_dir": "cat",
        "csv_url_column": "url",
        "csv_caption_column": "text",
    }
    (folder / "list.csv").write_text("url,text\na.png,a cat\n")
    [one] = read(folder, [{**entry, "caption_strategy": "csv"}]).sets
    assert (one.only_listed, one.file_field, one.caption_field) == (True, "url", "text")
    [image] = scan(one).images
    assert (image.path, image.caption) == (folder / "cat" / "a.png", "a cat")
    (folder / "list.csv").write_text("url,text\nhttps://example.com/a.png,a cat\n")
    with pytest.raises(
        DataError, match=r"https://example.com/a.png is an address, and nothing is downloaded here: fetch"
    ):
        scan(one)
    with pytest.raises(
        ConfigError,
        match=r"type = 'aws': only local, csv and huggingface can be read; fetch the images first \(aws s3 sync",
    ):
        read(folder, [{"id": "a", "type": "aws", "aws_bucket_name": "b"}])


def test_a_set_without_a_cache_of_latents_names_the_setting(folder):
    asked = {"id": "a", "instance_data_dir": "cat", "caption_strategy": "filename", "vae_cache_disable": True}
    notes = read(folder, [asked]).notes
    assert [note for note in notes if 'a: vae_cache_disable = True is ignored; set memory.cache = "online"' in note]
    assert not [note for note in read(folder, [{**asked, "vae_cache_disable": False}]).notes if "vae_cache" in note]


def test_captions_from_parquet_columns(folder):
    entry = {"instance_data_dir": "cat", "caption_strategy": "parquet", "metadata_backend": "parquet"}
    table = {"path": "t.parquet", "filename_column": "id", "caption_column": "long", "fallback_caption_column": "x"}
    listed = read(folder, [{**entry, "parquet": table}])
    [one] = listed.sets
    assert (one.captions, one.file_field, one.caption_field) == ("metadata", "id", "long")
    assert "set 1, parquet: unknown options are ignored: fallback_caption_column" in listed.notes[0]


def test_reference_images_of_edit_models(folder):
    helper = {
        "id": "b",
        "dataset_type": "conditioning",
        "conditioning_type": "reference_strict",
        "instance_data_dir": "masks",
    }
    [one] = read(folder, [{"instance_data_dir": "cat", "conditioning_data": ["b"]}, helper]).sets
    assert one.references == (str(folder / "masks"),)
    with pytest.raises(ConfigError, match="no entry of dataset_type 'conditioning' has that id"):
        read(folder, [{"instance_data_dir": "cat", "conditioning_data": "c"}, helper])
    with pytest.raises(ConfigError, match="'controlnet' cannot be trained here"):
        read(
            folder,
            [{"instance_data_dir": "cat", "conditioning_data": "b"}, {**helper, "conditioning_type": "controlnet"}],
        )


def test_our_own_toml(folder):
    text = '[[dataset]]\nfolder = "cat"\nresolutions = [512, 768]\n\n[[dataset]]\nfolder = "reg"\nrole = "validation"\n'
    first, second = read(folder, text).sets
    assert first == DatasetConfig(folder=str(folder / "cat"), resolutions=(512, 768))
    assert (second.folder, second.role) == (str(folder / "reg"), "validation")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt: use a .toml"),
        ("a.toml", "x = [", "a.toml is not valid TOML"),
        ("a.toml", "x = 1", "a.toml: it holds x: write one [[dataset]] table per set"),
        ("a.toml", '[[dataset]]\nfolder = "cat"\n[training]', "it holds dataset, training"),
        ("a.toml", '[[dataset]]\nfoldr = "cat"', "set 1 (no folder): dataset.folder is missing"),
        ("a.toml", '[[dataset]]\nfolder = "cat"\nrepeats = 0', "set 1 (cat): dataset.repeats = 0"),
        ("a.toml", "datasets = 3", "datasets = 3 is not a list of tables: write [[datasets]]"),
        ("a.toml", "[[datasets]]\nsubsets = [1]", "datasets.subsets = 1 is not a table"),
        ("a.toml", "general = 1\n[[datasets]]", "general = 1 is not a table: write [general]"),
        ("a.toml", "[[datasets]]", "datasets 1: it has no subsets, it names no images: write [[datasets.subsets]]"),
        ("a.toml", "[[datasets]]\nresolution = 'x'\n[[datasets.subsets]]", "subset 1: resolution = 'x': use one number"),
        ("a.toml", "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 'x'", "num_repeats = 'x': use a number"),
        ("a.toml", "[[datasets]]\n[[datasets.subsets]]\nimage_dir = true", "image_dir = True: use a text"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "{}", "it is not a list of datasets"),
        ("a.json", "[1]", "it is not a list of datasets"),
        ("a.json", "[]", "describes no images: add a set"),
        ("a.json", '[{"instance_data_dir": "cat", "type": "aws"}]', "type = 'aws': only local, csv and huggingface can be read; fetch the images"),
        ("a.json", '[{"type": "huggingface"}]', "type = 'huggingface' needs dataset_name"),
        ("a.json", '[{"dataset_type": "video"}]', "dataset_type = 'video': only image and eval can be read"),
        ("a.json", '[{"caption_strategy": "magic"}]', "caption_strategy = 'magic': use one of filename"),
        ("a.json", '[{"crop": "yes"}]', "crop = 'yes': use true or false"),
        ("a.json", '[{"repeats": 1.5}]', "repeats = 1.5: use a whole number"),
        ("a.json", '[{"crop": true, "crop_aspect": "closest"}]', "needs crop_aspect_buckets"),
        ("a.json", "[{}]", "set 1 (): dataset.folder = ''"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(folder, name, content, message):
    with pytest.raises(LoomError) as error:
        read(folder, content, name)
    assert message in str(error.value)
    assert name in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.toml"):
        read_dataset_file(tmp_path / "gone.toml")


def test_sets_of_a_run_come_from_its_tables_and_from_files(folder):
    own = DatasetConfig(folder="x", role="validation")
    (folder / "sets.toml").write_text(KOHYA)
    listed = gather_sets([own], [str(folder / "sets.toml")])
    assert [one.role for one in listed.sets] == ["validation", "train", "regularisation", "train"]
    assert listed.notes
    with pytest.raises(ConfigError, match="no set has role = 'train'"):
        gather_sets([own], [])


def test_every_path_is_judged(folder):
    asked = []

    def find(path, option):
        asked.append((path, option))
        raise ConfigError("no")

    (folder / "sets.toml").write_text('[[dataset]]\nfolder = "../cat"')
    with pytest.raises(ConfigError, match=r"sets\.toml: set 1 \(\.\./cat\): no"):
        read_dataset_file(folder / "sets.toml", find)
    assert asked == [(str(folder / "../cat"), "folder")]


@pytest.mark.parametrize(
    ("extension", "caption"), [(".caption", "a sentence"), (".tags", "of a tagger"), (".txt", "a, b")]
)
def test_kohyas_caption_extension_decides_among_several_files(tmp_path, extension, caption):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    for suffix, text in {".txt": "a, b", ".caption": "a sentence", ".tags": "of a tagger"}.items():
        (tmp_path / f"p{suffix}").write_text(text)
    general = f"[general]\ncaption_extension = '{extension}'\n"
    [one] = read(tmp_path, f"{general}[[datasets]]\n[[datasets.subsets]]\nimage_dir = '.'\nclass_tokens = 'thing'").sets
    assert [image.caption for image in scan(one).images] == [caption]


def test_kohyas_own_extension_goes_first_where_its_file_names_none(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    (tmp_path / "p.txt").write_text("a, b")
    [one] = read(tmp_path, "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '.'").sets
    assert scan(one).images[0].caption == "a, b"
    (tmp_path / "p.caption").write_text("a sentence")
    assert scan(one).images[0].caption == "a sentence"


@pytest.mark.parametrize("place", [".", "d"])
def test_tables_by_relative_paths_from_the_files_folder_or_the_images(tmp_path, monkeypatch, place):
    """The file itself is named by a relative path too, as from the folder of a run."""
    monkeypatch.chdir(tmp_path)
    for name in ("p0", "p1"):
        put = tmp_path / "d" / f"{name}.png"
        put.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(put)
    (tmp_path / place / "meta.json").write_text('{"p0": {"caption": "zero", "tags": "t1, t2"}, "p1": {"tags": "only"}}')
    (tmp_path / "k.toml").write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'd'\nmetadata_file = 'meta.json'")
    [one] = read_dataset_file(Path("k.toml")).sets
    assert [image.caption for image in scan(one).images] == ["zero, t1, t2", "only"]


def test_simpletuners_table_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "d" / "p0.png")
    (tmp_path / "d" / "p.csv").write_text("file_name,long\np0.png,a long prompt\n")
    table = {"path": "d/p.csv", "filename_column": "file_name", "caption_column": "long"}
    entry = {"id": "c", "type": "local", "instance_data_dir": "d", "caption_strategy": "parquet", "parquet": table}
    (tmp_path / "m.json").write_text(json.dumps([entry]))
    [one] = read_dataset_file(Path("m.json")).sets
    assert scan(one).images[0].caption == "a long prompt"


MUSUBI = """
[general]
resolution = [640, 1024]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true

[[datasets]]
image_directory = "cat"
cache_directory = "cache"
control_directory = "reg"
num_repeats = 3

[[datasets]]
resolution = 512
enable_bucket = false
image_directory = "reg"
"""


def test_musubis_toml(folder):
    listed = read(folder, MUSUBI)
    cat, reg = listed.sets
    assert (cat.folder, cat.reference_folders, cat.repeats) == (str(folder / "cat"), (str(folder / "reg"),), 3)
    assert (cat.resolutions, cat.buckets, cat.min_side, cat.max_side) == ((810,), "kohya", 400, 1616)
    assert (reg.resolutions, reg.buckets, reg.caption_suffixes) == ((512,), "off", (".txt",))
    (folder / "reg" / "a.txt").write_text("")
    assert [image.caption for image in scan(reg).images] == [""], "it trains empty captions"
    notes = "\n".join(listed.notes)
    assert "batch_size = 1 is ignored; set training.batch_size" in notes
    assert "resolution = [640, 1024] is interpreted as its area, a square of 810 pixels" in notes
    assert "cache_directory" not in notes


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("image_dir = 'reg'", "datasets 2: it has no subsets, image_dir belongs below it"),
        ("resolution = 512", "datasets 2: it has no subsets, it names no images"),
        ("video_directory = 'reg'", "datasets 2: video_directory = 'reg': only images are trained"),
        ("image_jsonl_file = 'a.jsonl'", "datasets 2: image_jsonl_file = 'a.jsonl': write the captions to metadata.jsonl"),
    ],
)  # fmt: skip
def test_a_table_without_subsets_never_vanishes(folder, second, message):
    with pytest.raises(ConfigError, match=message):
        read(folder, f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'cat'\n[[datasets]]\n{second}")


def test_numbers_where_texts_are_meant(folder):
    [one] = read(folder, "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'cat'\nclass_tokens = 2024").sets
    assert one.caption == "2024"


@pytest.mark.parametrize("kind", ["json", "toml"])
def test_folders_are_found_where_the_guides_put_them(kind, tmp_path):
    """The file lies in config/, its paths start from the folder above: SimpleTuner's root, or the one that a command runs in."""
    (tmp_path / "config").mkdir()
    (tmp_path / "datasets" / "cat").mkdir(parents=True)
    texts = {
        "json": json.dumps([{"id": "cat", "type": "local", "instance_data_dir": "datasets/cat"}]),
        "toml": '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "datasets/cat"\n',
    }
    path = tmp_path / "config" / f"data.{kind}"
    path.write_text(texts[kind])
    assert [one.folder for one in read_dataset_file(path).sets] == [str(tmp_path / "datasets" / "cat")]
    (tmp_path / "config" / "datasets" / "cat").mkdir(parents=True)
    assert [one.folder for one in read_dataset_file(path).sets] == [str(tmp_path / "config" / "datasets" / "cat")], (
        "its own first"
    )


def test_our_own_file_counts_from_its_folder_alone(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "cat").mkdir()
    path = tmp_path / "config" / "data.toml"
    path.write_text('[[dataset]]\nfolder = "cat"\n')
    assert [one.folder for one in read_dataset_file(path).sets] == [str(tmp_path / "config" / "cat")]


def test_simpletuners_random_shapes_are_drawn(tmp_path):
    entry = {
        "id": "a",
        "instance_data_dir": "x",
        "crop": True,
        "crop_aspect": "random",
        "crop_aspect_buckets": [1.0, 0.5],
        "crop_style": "center",
    }
    [made], notes = simpletuner_sets([entry])
    assert (made["aspects"], made["aspect_choice"], made["crop"]) == ([1.0, 0.5], "random", "center")
    assert not [note for note in notes if "aspect" in note]


def test_simpletuners_hub_datasets_are_the_fetched_folder():
    columns = {"image_column": "picture", "caption_column": "description"}
    entry = {
        "id": "a",
        "type": "huggingface",
        "dataset_name": "me/cats",
        "caption_strategy": "huggingface",
        "huggingface": columns,
    }
    [made], notes = simpletuner_sets([entry])
    assert (made["folder"], made["file_field"], made["caption_field"]) == ("me/cats", "picture", "description")
    assert made["captions"] == "metadata"
    assert any("hf download me/cats --repo-type dataset --local-dir me/cats" in note for note in notes)
