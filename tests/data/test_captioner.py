"""Captions by a program or a function: what is asked, what is written, what stays, and what fails with which words."""

import json
import sys

import pytest
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app
from lora_loom.trainer.data.captioner import (
    captions_by_function,
    captions_by_program,
    images_to_caption,
    write_captions,
)
from lora_loom.trainer.errors import ConfigError, DataError, StoppedError

EACH = "import sys; print('a photo of', sys.argv[1].rpartition('/')[2])"
LINES = """
import json, sys
asked = [json.loads(line)["image"] for line in sys.stdin]
print("loading a model", file=sys.stderr)
for image in reversed(asked):
    print(json.dumps({"image": image, "caption": "größer " + image[-5:]}))
"""


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def put(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


def python(code, *arguments):
    return [sys.executable, "-c", code, *arguments]


def captioned(folder, program, **options):
    wanted, _ = images_to_caption(folder, ".txt", **{"recursive": False, "overwrite": False, **options})
    return write_captions(wanted, captions_by_program(program, list(wanted), 60), lambda n, total: None, lambda: False)


def test_a_program_for_each_image_gets_its_path_as_it_is(tmp_path):
    """No shell: nothing in a name is an instruction."""
    put(tmp_path, "a b.png", "$(touch x); 'c'.JPG")
    captioned(tmp_path, python(EACH, "{image}"))
    assert (tmp_path / "a b.txt").read_text() == "a photo of a b.png\n"
    assert (tmp_path / "$(touch x); 'c'.txt").read_text() == "a photo of $(touch x); 'c'.JPG\n"
    assert not (tmp_path / "x").exists()


def test_a_program_that_is_started_once_answers_in_any_order(tmp_path):
    names = [f"{number:03d}.png" for number in range(300)]
    put(tmp_path, *names)
    done = captioned(tmp_path, python(LINES))
    assert len(done.written) == 300
    assert (tmp_path / "007.txt").read_text(encoding="utf-8") == "größer 7.png\n"


def test_captions_that_are_there_stay_unless_asked(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png", "c.jpg")
    (tmp_path / "a.TXT").write_text("mine")
    (tmp_path / "b.caption").write_text("mine too")
    wanted, kept = images_to_caption(tmp_path, ".txt", recursive=False, overwrite=False)
    assert (list(wanted.values()), kept) == ([tmp_path / "c.txt"], 2)
    captioned(tmp_path, python(EACH, "{image}"), overwrite=True)
    assert (tmp_path / "a.TXT").read_text() == "a photo of a.png\n"
    assert (tmp_path / "b.caption").read_text() == "a photo of b.png\n"
    assert not (tmp_path / "b.txt").exists()


def test_sub_folders_only_where_asked(tmp_path):
    put(tmp_path / "deep", "a.png")
    with pytest.raises(DataError, match="--recursive"):
        images_to_caption(tmp_path, ".txt", recursive=False, overwrite=False)
    captioned(tmp_path, python(EACH, "{image}"), recursive=True)
    assert (tmp_path / "deep/a.txt").is_file()


@pytest.mark.parametrize(
    ("program", "kind", "said"),
    [
        (["no-such-program-here"], ConfigError, "cannot be started"),
        (["no-such-program-here", "{image}"], ConfigError, "cannot be started"),
        (python("import sys; sys.exit('out of luck')"), DataError, "ended with code 1: out of luck"),
        (
            python("import sys; sys.exit('out of luck')", "{image}"),
            DataError,
            r"ended with code 1 for .*a\.png: out of",
        ),
        (python("print('hello')"), DataError, "'hello': each line .* messages belong to stderr"),
        (python("import json; print(json.dumps({'image': '/x.png', 'caption': 'c'}))"), DataError, "not asked for"),
        (python("pass"), DataError, r"no answer for .*a\.png; 0 captions are written"),
        (python("import sys; sys.stdout.buffer.write(b'\\xff')", "{image}"), DataError, "not UTF-8"),
    ],
)
def test_what_goes_wrong_is_said(tmp_path, program, kind, said):
    put(tmp_path, "a.png")
    with pytest.raises(kind, match=said):
        captioned(tmp_path, program)
    assert not (tmp_path / "a.txt").exists()


def test_a_program_that_takes_too_long(tmp_path):
    put(tmp_path, "a.png")
    slow = captions_by_program(python("import time; time.sleep(60)", "{image}"), [tmp_path / "a.png"], 0.5)
    with pytest.raises(DataError, match="more than 0.5 s .* --timeout"):
        next(slow)


def test_no_words_write_no_file_and_a_stop_keeps_what_is_done(tmp_path):
    put(tmp_path, "a.png", "b.png")
    wanted, _ = images_to_caption(tmp_path, ".txt", recursive=False, overwrite=False)
    first, second = wanted
    done = write_captions(wanted, [(first, " \n"), (second, "b")], lambda n, total: None, lambda: False)
    assert done.empty == [first]
    assert not (tmp_path / "a.txt").exists()
    with pytest.raises(StoppedError, match="1 captions are written"):
        write_captions(wanted, [(second, "b"), (first, "a")], lambda n, total: None, lambda: True)


def test_a_function(tmp_path):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "tagger.py").write_text(
        "def tags(images):\n    for one in images:\n        yield 'a ' + one.stem\n"
        "def fails(images):\n    raise KeyError('model')\n"
        "def numbers(images):\n    return [1, 2]\n"
    )
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    address = f"{tmp_path / 'tagger.py'}:"
    assert list(captions_by_function(f"{address}tags", images)) == [(images[0], "a a"), (images[1], "a b")]
    for name, kind, said in (
        ("nothing", ConfigError, "is no function"),
        ("fails", DataError, "KeyError"),
        ("numbers", DataError, "not text"),
    ):
        with pytest.raises(kind, match=said):
            list(captions_by_function(f"{address}{name}", images))
    with pytest.raises(ConfigError, match="cannot be imported"):
        list(captions_by_function("no_such_module_here:tags", images))


def test_the_command(tmp_path):
    put(tmp_path, "a.png")
    result = command("caption", tmp_path, "--json", "--", *python(EACH, "{image}"))
    assert result.exit_code == 0, result.output
    assert json.loads(result.output.splitlines()[-1])["written"] == [str(tmp_path / "a.txt")]
    again = command("caption", tmp_path, "--", *python(EACH, "{image}"))
    assert "1 images have one already" in again.output
    assert "name one captioner" in command("caption", tmp_path).output
