"""LoomDataset and LoomDatasetFile outside ComfyUI: options reach the engine, and no path leads where it may not."""

import json

import pytest
from PIL import Image

from lora_loom.nodes.dataset import LoomCache, LoomDataset, LoomDatasetFile, LoomDatasetImages
from lora_loom.nodes.sockets.values import DatasetValue
from lora_loom.trainer.config.dataset import DatasetConfig
from lora_loom.trainer.data.sets.scan import scan
from lora_loom.trainer.errors import ConfigError


@pytest.fixture
def cats(host):
    folder = host.base / "input" / "cats"
    folder.mkdir()
    for name, size in (("a", (8, 8)), ("b", (12, 8))):
        Image.new("RGB", size).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{name}, sofa")
    return folder


@pytest.fixture
def reached_from_outside(host):
    import comfy.cli_args

    comfy.cli_args.args.listen = "0.0.0.0"
    yield
    comfy.cli_args.args.listen = "127.0.0.1"


def defaults(node):
    groups = node.INPUT_TYPES()
    return {
        name: entry[1].get("default", entry[0][0] if isinstance(entry[0], list) else None)
        for group in ("required", "optional")
        for name, entry in groups.get(group, {}).items()
        if name != "previous"
    }


def test_a_folder_is_enough_and_the_form_gives_the_engines_own_defaults(cats):
    value, sheet, report = LoomDataset().run(**{**defaults(LoomDataset), "folder": "cats"})
    assert value.sets == (DatasetConfig(folder=str(cats)),)
    assert sheet.shape[0] == 1
    assert report.splitlines()[0] == "2 images"


def test_advanced_options_reach_the_engine(cats):
    options = {"resolutions": "512, 768", "aspects": "1.0;0.75", "shuffle_tags": True, "crop": "top", "min_size": 8}
    value, _, _ = LoomDataset().run(**{**defaults(LoomDataset), "folder": "cats", **options})
    assert value.sets == (
        DatasetConfig(
            folder=str(cats), resolutions=(512, 768), aspects=(1.0, 0.75), shuffle_tags=True, crop="top", min_size=8
        ),
    )
    with pytest.raises(ConfigError, match=r"resolutions = '512 768': write numbers with commas"):
        LoomDataset().run(**{**defaults(LoomDataset), "folder": "cats", "resolutions": "512 768"})


def test_saved_workflows_keep_their_meaning():
    """Pages save widgets by position: new ones come after those that were there."""
    names = list(LoomDataset.INPUT_TYPES()["optional"])
    first = ["caption", "trigger", "repeats", "role", "caption_dropout", "weight", "flip", "recursive", "masks",
             "references", "background"]  # fmt: skip
    assert names[: len(first)] == first


def test_a_file_of_sets(host, cats):
    (host.base / "input" / "sets.toml").write_text(
        '[[datasets]]\nresolution = 512\nbatch_size = 2\n[[datasets.subsets]]\nimage_dir = "cats"\nnum_repeats = 3\n'
    )
    earlier = DatasetValue(sets=(DatasetConfig(folder=str(cats)),), notes=("before",))
    value, _, report = LoomDatasetFile().run("sets.toml", earlier)
    assert [one.repeats for one in value.sets] == [1, 3]
    assert value.notes == (
        "before",
        "sets.toml: datasets 1, subset 1: batch_size = 2 is ignored; set training.batch_size",
    )
    assert value.notes[1].replace("training.batch_size", "batch_size in Loom Train LoRA") in report.splitlines()
    assert str(host.base) not in report, "where ComfyUI's folders lie is not shown"
    assert "input/cats: 2 images, train, each seen 3 x per epoch" in report


def test_a_changed_file_or_image_changes_the_node(host, cats):
    (host.base / "input" / "sets.toml").write_text('[[dataset]]\nfolder = "cats"\n')
    first = LoomDatasetFile.IS_CHANGED("sets.toml")
    assert first == LoomDatasetFile.IS_CHANGED("sets.toml")
    (cats / "a.txt").write_text("something else")
    second = LoomDatasetFile.IS_CHANGED("sets.toml")
    (host.base / "input" / "sets.toml").write_text('[[dataset]]\nfolder = "cats"\nrepeats = 2\n')
    assert len({first, second, LoomDatasetFile.IS_CHANGED("sets.toml")}) == 3
    assert "is not a file" in LoomDatasetFile.IS_CHANGED("gone.toml")


@pytest.mark.parametrize("option", ["masks", "references", "metadata"])
def test_what_lies_outside_the_folder_is_watched_too(host, cats, option):
    other = host.base / "input" / "other"
    other.mkdir()
    (other / "a.csv").write_text("file_name,text\n")
    options = {**defaults(LoomDataset), "folder": "cats", option: "other/a.csv" if option == "metadata" else "other"}
    first = LoomDataset.IS_CHANGED(**options)
    assert first == LoomDataset.IS_CHANGED(**options)
    (other / "a.csv").write_text("file_name,text\na.png,another\n")
    assert LoomDataset.IS_CHANGED(**options) != first
    assert "is not a fol" in LoomDataset.IS_CHANGED(**{**options, "folder": "gone"})


@pytest.mark.parametrize(
    ("name", "message"), [("", "name a file"), ("../x.toml", "is outside"), ("gone.toml", "is not a file")]
)
def test_a_file_that_may_not_be_used(host, name, message):
    with pytest.raises(ConfigError, match=message):
        LoomDatasetFile().run(name)


@pytest.mark.parametrize("option", ["folder", "masks", "references", "metadata"])
def test_paths_inside_a_file_are_judged_as_well(host, reached_from_outside, cats, tmp_path_factory, option):
    """Anybody may have put the file there: what it names is no more trusted than the workflow."""
    outside = tmp_path_factory.mktemp("secret")
    (outside / "metadata.jsonl").write_text("{}")
    place = outside / "metadata.jsonl" if option == "metadata" else outside
    options = {"folder": "cats", "captions": "metadata", option: str(place)}
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
    (host.base / "input" / "sets.toml").write_text(f"[[dataset]]\n{lines}\n")
    with pytest.raises(ConfigError, match=rf"{option} = .*absolute paths outside the folders of ComfyUI are refused"):
        LoomDatasetFile().run("sets.toml")


def test_a_table_named_in_the_form_is_judged(host, reached_from_outside, cats, tmp_path_factory):
    table = tmp_path_factory.mktemp("secret") / "metadata.jsonl"
    table.write_text("{}")
    options = {**defaults(LoomDataset), "folder": "cats", "captions": "metadata"}
    for name in (str(table), "../../secret.jsonl"):
        with pytest.raises(ConfigError, match="metadata"):
            LoomDataset().run(**{**options, "metadata": name})
    (cats / "t.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{"file_name": "b.png", "text": "y"}\n')
    value, _, _ = LoomDataset().run(**{**options, "metadata": "t.jsonl"})
    assert value.sets[0].metadata == str(cats / "t.jsonl")


def test_kohyas_folders_are_seen_and_watched(host, cats):
    cats.rename(host.base / "input" / "10_cats")
    options = {**defaults(LoomDataset), "folder": ".", "layout": "kohya"}
    value, _, report = LoomDataset().run(**options)
    assert value.sets[0].layout == "kohya"
    assert "2 images, train, each seen 10 x per epoch" in report
    first = LoomDataset.IS_CHANGED(**options)
    (host.base / "input" / "10_cats" / "a.txt").write_text("something else")
    assert LoomDataset.IS_CHANGED(**options) != first


def test_graph_images_may_have_captions_that_vary(host):
    import torch

    options = {
        name: value
        for name, value in defaults(LoomDatasetImages).items()
        if name not in ("images", "captions", "masks")
    }
    images = torch.zeros(2, 8, 8, 3)
    made, _, report = LoomDatasetImages().run(
        images, "a, b, c\nd", **{**options, "shuffle_tags": True, "prefix": "sks,"}
    )
    [one] = made.sets
    assert one == DatasetConfig(folder=one.folder, captions="sidecar", shuffle_tags=True, prefix="sks,")
    assert [image.caption for image in scan(one).images] == ["sks, a, b, c", "sks, d"]
    assert "2 images, train, each seen 1 x per epoch" in report


def test_captions_made_anew_are_refused_where_they_are_encoded_in_advance(host):
    value = DatasetValue(sets=(DatasetConfig(folder="x", shuffle_tags=True, caption_variants=0),))
    with pytest.raises(ConfigError, match="LoomCache encodes captions in advance; use 2 or more"):
        LoomCache().run(dataset=value, vae=object(), clip=object(), resolution=64, buckets="off", bucket_step=8)


def test_noise_levels_of_one_dataset(cats):
    value, _, _ = LoomDataset().run(**{**defaults(LoomDataset), "folder": "cats", "timestep_range": "0.0, 0.5"})
    assert value.sets[0].timestep_range == (0.0, 0.5)
    with pytest.raises(ConfigError, match=r"timestep_range = '0.5': write two numbers, such as 0.0, 0.5"):
        LoomDataset().run(**{**defaults(LoomDataset), "folder": "cats", "timestep_range": "0.5"})
