"""A prompt library: names label the strip, the cells are those of the bare prompts, a bad file is named."""

import json

import pytest

from lora_loom.trainer.config.prompt_library import Prompt, all_prompts, listed_prompts, read_library
from lora_loom.trainer.config.run import SweepConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.sweep.cells import Rendering, plan_cells
from lora_loom.trainer.sweep.run import make_axes
from lora_loom.trainer.sweep.strip import arrange

RENDERING = Rendering(size=(64, 64), steps=2, sampler="euler", scheduler="normal", model="m")


@pytest.fixture
def library(tmp_path):
    def write(data):
        path = tmp_path / "prompts.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"night": "a cat at night", "day": " a cat by day "}, {"a cat at night": "night", "a cat by day": "day"}),
        (["a cat", {"prompt": "a dog"}, {"name": "b", "prompt": "a bird"}], {"a cat": "", "a dog": "", "a bird": "b"}),
        ({"night": {"prompt": "a cat"}, "x": {"name": "y", "prompt": "z"}}, {"a cat": "night", "z": "y"}),
        ("\ufeff" + '{"空": "青い空"}', {"青い空": "空"}),
    ],
)
def test_its_forms(library, data, found):
    assert list(read_library(library(data), "sweep.prompt_library").items()) == list(found.items())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "is not valid JSON"),
        ("3", r'write {"name": "prompt", …}'),
        ("{}", "holds no prompt"),
        ({"a": ""}, "entry a: '' is not a prompt"),
        ({"a": 3}, "entry a: 3 is not a prompt"),
        ([{"name": "a"}], "entry 1: None is not a prompt"),
        ([{"name": "a", "prompt": "b", "negative": "c"}], "entry a|entry 1: 'negative' is not known"),
        ({"a": "x", "b": "x"}, "'x' occurs twice"),
        ([{"name": "a", "prompt": "b"}, {"name": "a", "prompt": "c"}], "two prompts are called 'a'"),
        ('{"a": "x", "a": "y"}', "'a' occurs twice"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_bad_files_are_named(library, data, message):
    path = library(data)
    with pytest.raises(ConfigError, match=message) as error:
        read_library(path, "sweep.prompt_library")
    assert str(path) in str(error.value)
    with pytest.raises(ConfigError, match=r"sweep\.prompt_library = .*nowhere\.json' cannot be read"):
        read_library(path.with_name("nowhere.json"), "sweep.prompt_library")


def test_names_label_the_strip_and_change_no_cell(library, tmp_path):
    path = library({"night": "a cat at night, long and with many words", "day": "a cat by day"})
    named = make_axes(SweepConfig(prompts=("a dog",), prompt_library=str(path)), (), 0)
    bare = make_axes(SweepConfig(prompts=("a dog", "a cat at night, long and with many words", "a cat by day")), (), 0)
    cells, same = (plan_cells(axes, [RENDERING], tmp_path) for axes in (named, bare))
    assert [cell.id for cell in cells] == [cell.id for cell in same], "renaming a prompt renders nothing anew"
    [grid] = arrange(cells, columns=["checkpoint"], rows=["prompt"], title="t")
    assert grid.rows == ("a dog", "night", "day")
    assert grid.caption == "night: a cat at night, long and with many words\nday: a cat by day"
    pages = arrange(cells, columns=["checkpoint"], rows=["seed"], title="t")
    assert [page.caption for page in pages] == [cell.prompt for cell in cells]


def test_a_sweep_needs_a_prompt():
    with pytest.raises(
        ConfigError, match=r"sweep\.prompts is empty: give at least one prompt, or a sweep\.prompt_library"
    ):
        make_axes(SweepConfig(), (), 0)


def test_sd_scripts_text_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(
        "# a comment\n\na cat, well-fed --n blurred, low --w 512 --h 768 --d 7 --l 7.5 --s 28\nplain -- text\n",
        encoding="utf-8",
    )
    assert listed_prompts(["a dog"], str(path), "validation.prompt_library") == [
        Prompt(text="a dog"),
        Prompt(text="a cat, well-fed", negative="blurred, low", width=512, height=768, seed=7, scale=7.5, steps=28),
        Prompt(text="plain -- text"),
    ]
    with pytest.raises(ConfigError, match=r"options of its own .*axes of the sweep"):
        all_prompts([], str(path), "sweep.prompt_library")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat --ss euler", "line 1: --ss is not known; known are --w, --h, --s, --l, --d, --n"),
        ("a cat --w wide", "--w wide is no number"),
        ("a cat --s 0", "use 1 or more"),
        ("--w 512", "has no prompt"),
        ("# nothing", "holds no prompt"),
    ],
)
def test_lines_that_mean_nothing_are_refused(line, message, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(line)
    with pytest.raises(ConfigError, match=message):
        listed_prompts([], str(path), "validation.prompt_library")
