"""The examples of docs/datasets.md are read by what they are written for."""

import json
import re
from pathlib import Path

import pytest

from lora_loom.trainer.config.dataset import DatasetConfig
from lora_loom.trainer.config.run import TrainConfig
from lora_loom.trainer.config.toml import parse, tomllib
from lora_loom.trainer.config.unused import refuse_unused_options
from lora_loom.trainer.data.sets.buckets import Buckets
from lora_loom.trainer.data.sets.kohya import kohya_sets
from lora_loom.trainer.data.sets.simpletuner import simpletuner_sets

PAGE = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
TOML, JSON = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("toml", "json"))


@pytest.mark.parametrize("text", TOML)
def test_examples_in_toml(text):
    data = tomllib.loads(text)
    if "datasets" in data:
        sets, notes = kohya_sets(data)
        assert len([parse(one, DatasetConfig) for one in sets]) == (2 if "subsets" in text else 1)
        assert notes == []
    else:
        refuse_unused_options(parse({"name": "x", "model": {"base": "b"}, **data}, TrainConfig))


def test_the_example_in_json():
    [text] = JSON
    sets, notes = simpletuner_sets(json.loads(text))
    assert [parse(one, DatasetConfig).repeats for one in sets] == [10]
    assert notes == []


@pytest.mark.parametrize("method", ["pixel_area", "pixel", "kohya", "off"])
def test_the_table_of_buckets(method):
    [shown] = re.findall(rf"\| `{method}` \| (\d+) x (\d+)", PAGE)
    assert Buckets(method=method, resolution=1024, step=64).target((1600, 900)) == tuple(map(int, shown))
