"""Names and folders from a workflow, which may come from anybody."""

import base64
import hashlib
import json
import re

import pytest

from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.sweep.html_page import to_html

BAD_NAMES = [
    "",
    "..",
    ".",
    "../x",
    "a/b",
    "a\\b",
    "/etc",
    "C:",
    "c:\\x",
    "a\0b",
    "con",
    "NUL.txt",
    "x.",
    " x",
    "<script>",
    "x" * 300,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_run_cannot_be_named_so_that_it_leaves_its_folder(host, name):
    with pytest.raises(ConfigError, match="name"):
        host("paths").run_folder(name)


def test_a_good_name_is_a_folder_in_the_output_directory(host):
    folder = host("paths").run_folder("my-lora_2.1")
    assert folder.path == host.base / "output" / "lora_loom" / "my-lora_2.1"


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "../../etc", "pics/../../x", "no-such"])
def test_a_folder_that_may_not_be_used_is_refused(host, text):
    with pytest.raises(ConfigError, match="folder"):
        host("paths").resolve_folder(text, "folder")


def test_a_link_out_of_the_input_directory_is_followed_before_it_is_judged(host):
    (host.base / "elsewhere").mkdir()
    (host.base / "input" / "link").symlink_to(host.base / "elsewhere")
    with pytest.raises(ConfigError, match="is outside"):
        host("paths").resolve_folder("link", "folder")


def test_an_absolute_path_needs_a_local_server_or_the_settings_file(host, tmp_path_factory):
    outside = tmp_path_factory.mktemp("sets")
    paths = host("paths")
    import comfy.cli_args

    assert paths.resolve_folder(str(outside), "folder") == outside
    comfy.cli_args.args.listen = "0.0.0.0,::"
    try:
        with pytest.raises(ConfigError, match="roots") as error:
            paths.resolve_folder(str(outside), "folder")
        assert str(paths.settings_file()) in str(error.value)
        paths.settings_file().write_text(json.dumps({"roots": [str(outside.parent)]}))
        assert paths.resolve_folder(str(outside), "folder") == outside
        paths.settings_file().write_text("[1")
        with pytest.raises(ConfigError, match="is not valid"):
            paths.resolve_folder(str(outside), "folder")
    finally:
        comfy.cli_args.args.listen = "127.0.0.1"


@pytest.mark.parametrize(
    "name", ["../run.json", "/etc/passwd", "C:/x.png", "a\\b.png", "a\0.png", "x.exe", "lock", "samples"]
)
def test_files_outside_a_run_or_of_other_types_are_not_served(host, name):
    run = host.base / "output" / "lora_loom" / "run"
    (run / "samples").mkdir(parents=True)
    for file in (run / "x.exe", run / "lock", run.parent / "run.json"):
        file.write_text("x")
    assert host("page.routes").servable(run, name) is None


def test_a_link_in_a_run_is_followed_before_a_file_is_served(host):
    run = host.base / "output" / "lora_loom" / "run"
    run.mkdir(parents=True)
    (host.base / "secret.txt").write_text("x")
    (run / "log.txt").symlink_to(host.base / "secret.txt")
    (run / "run.json").write_text("{}")
    assert host("page.routes").servable(run, "log.txt") is None
    assert host("page.routes").servable(run, "run.json") == run / "run.json"


@pytest.mark.parametrize(
    ("kind", "origin", "refused"),
    [
        ("application/json", None, False),
        ("application/json", "http://host:8188", False),
        ("application/json", "http://HOST:8188", False),
        ("application/json", "http://evil", True),
        ("application/json", "null", True),
        ("application/json", "http://host:8188.evil", True),
        ("text/plain", None, True),
        ("application/x-www-form-urlencoded", "http://host:8188", True),
    ],
)
def test_actions_come_from_our_own_pages_as_json(host, kind, origin, refused):
    assert bool(host("page.answers").why_refused(kind, origin, "host:8188")) == refused


def test_loras_are_named_as_loraloader_lists_them(host):
    paths = host("paths")
    assert paths.lora_name("my-run").replace("\\", "/") == "lora_loom/my-run/my-run.safetensors"
    assert paths.lora_name("my-run", 250).replace("\\", "/") == "lora_loom/my-run/my-run-000250.safetensors"
    file = paths.lora_root() / paths.lora_name("my-run", 250)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    assert paths.find_lora(paths.lora_name("my-run", 250)) == file
    assert file.is_relative_to(paths.lora_folder())
    with pytest.raises(ConfigError, match=r"no LoRA .*my-run\.safetensors"):
        paths.find_lora(paths.lora_name("my-run"))


def test_images_are_named_as_the_page_asks_for_them(host):
    """`/view?filename=…&subfolder=…&type=…`: the file must be where that leads to."""
    paths = host("paths")
    shown = paths.preview("curve.png", b"content")
    assert shown == {"filename": "curve.png", "subfolder": "lora_loom", "type": "temp"}
    assert (host.base / "temp" / shown["subfolder"] / shown["filename"]).read_bytes() == b"content"
    inside = host.base / "output" / "lora_loom" / "run" / "samples" / "a.png"
    assert paths.display_path(inside) == {"filename": "a.png", "subfolder": "lora_loom/run/samples", "type": "output"}


def test_a_path_on_another_drive_is_outside(host, monkeypatch):
    """Windows has no common path of two drives, and says so with a ValueError."""
    paths = host("paths")
    assert paths.is_inside(host.base / "input" / "x", host.base)
    monkeypatch.setattr("os.path.commonpath", lambda both: (_ for _ in ()).throw(ValueError("different drives")))
    assert not paths.is_inside(host.base / "input" / "x", host.base)


def test_only_the_script_that_a_compare_page_states_may_run_and_never_with_this_servers_rights(host, tmp_path):
    policy, page = host("page.routes").page_policy, tmp_path / "strip.html"
    page.write_text(to_html([], "cats"))
    text = page.read_text()
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = policy(page).split("; ")
    assert parts[0] == "sandbox allow-scripts"  # without allow-same-origin: the page has an origin of its own
    assert parts[-1] == f"script-src 'sha256-{digest}'"
    assert "default-src 'none'" in parts
    page.write_text("<script>alert(1)</script>")
    assert policy(page).startswith("sandbox; default-src 'none'")
    assert "script" not in policy(page)
    drawing = tmp_path / "x.svg"
    drawing.write_text(text)
    assert "script" not in policy(drawing)


def test_a_page_of_a_run_is_named_by_the_run(host):
    paths = host("paths")
    folder = paths.root() / "cat"
    (folder / "strips").mkdir(parents=True)
    page = folder / "strips" / "strip.html"
    assert paths.page_of_run(page) is None
    (folder / "run.json").write_text("{}")
    assert paths.page_of_run(page) == {"run": "cat", "file": "strips/strip.html"}
    assert paths.page_of_run(host.base / "strip.html") is None
