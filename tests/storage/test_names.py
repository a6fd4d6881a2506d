"""Names of runs: in any script, and never a way out of the folder."""

import unicodedata

import pytest

from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.storage.names import check_name


@pytest.mark.parametrize(
    "name",
    [
        "my-cat",
        "日本語 猫",
        "кошка",
        "แมวสีแดง",
        "बिल्ली",
        "قِطّة",
        "گربه\u200cها",  # noqa: RUF001
        "고양이",
        unicodedata.normalize("NFD", "Möwe é"),
        "_x",
        "007",
    ],
)
def test_names_in_any_script(name, tmp_path):
    assert check_name(name) == name
    (tmp_path / name).mkdir()


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "\u0301a",
        "\u200da",
        "-x",
        " x",
        "x.",
        "con",
        "NUL.txt",
        "a\nb",
        "a\u202eb",
        "a:b",
        "x" * 101,
        "猫" * 61,
    ],
)
def test_names_that_lead_out_or_that_some_system_refuses(name):
    with pytest.raises(ConfigError, match="name = "):
        check_name(name)
