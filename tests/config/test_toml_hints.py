"""A file that is no TOML says which line, and what to write instead."""

import pytest

from lora_loom.trainer.config.toml import read_toml
from lora_loom.trainer.errors import ConfigError

LINES = {
    "trigger = 007": "a text of digits, such as 007, stands in quotes",
    "trigger = sks": "a text stands in quotes",
    "folder = /data/cats": "a text stands in quotes",
    'folder = "C:\\Users\\me"': "a path with backslashes stands in single quotes, or has / instead",
    "folder = “cats”": "use straight quotes",
    'folder: "cats"': "write name = value",
    "flip = True": "write true or false",
    "caption = None": "leave the line out",
    'folder = "cats",': "a line ends without a comma",
    'folder = "cats" // mine': "comments begin with #",
    'folder = "cats': "close the quote",
    "resolution = 1024px": "write the number alone, or a text in quotes",
    "resolution = 1,024": "write numbers without commas",
    'folder = "a"\nfolder = "b"': "it is set twice, leave one",
}


@pytest.mark.parametrize("line", LINES)
def test_the_line_and_what_to_write_instead(tmp_path, line):
    path = tmp_path / "run.toml"
    path.write_text(f'name = "t"\n[[dataset]]\n{line}\nrepeats = 2\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="is not valid TOML") as error:
        read_toml(path)
    said = str(error.value)
    assert said.endswith(f"; {LINES[line]}")
    assert repr(line.splitlines()[-1]) in said


def test_other_errors_and_long_lines_stay_short(tmp_path):
    path = tmp_path / "run.toml"
    for text in ("x = [", "[[", "", "\0", "x = " + "[" * 5000, 'x = "' + "y" * 9000):
        path.write_text(text, encoding="utf-8")
        try:
            read_toml(path)
        except ConfigError as error:
            message = str(error)
            assert len(message) < 600
