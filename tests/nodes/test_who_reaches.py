"""Requests that come through a tunnel, a proxy or a page with another name, and paths on other machines."""

import json
import logging

import pytest

from lora_loom.trainer.errors import ConfigError, DivergedError


@pytest.mark.parametrize(
    ("host_header", "headers", "private"),
    [
        ("127.0.0.1:8188", {}, True),
        ("localhost:8188", {}, True),
        ("[::1]:8188", {}, True),
        (None, {}, True),
        ("evil.example:8188", {}, False),
        ("192.168.1.5:8188", {}, False),
        ("127.0.0.1:8188", {"X-Forwarded-For": "1.2.3.4"}, False),
        ("localhost", {"Via": "1.1 proxy"}, False),
        ("[::1", {}, False),
    ],
)
def test_after_one_request_from_outside_absolute_paths_need_roots(
    host, tmp_path_factory, caplog, host_header, headers, private
):
    paths, reach, outside = host("paths"), host("reach"), tmp_path_factory.mktemp("sets")
    with caplog.at_level(logging.WARNING, "lora_loom"):
        for _ in range(3):
            reach.REACH.note(host_header, headers)
    assert len(caplog.records) == (0 if private else 1), "one line in the console"
    if private:
        assert paths.resolve_folder(str(outside), "folder") == outside
        return
    with pytest.raises(ConfigError, match=r"(?s)roots.*lora_loom\.json"):
        paths.resolve_folder(str(outside), "folder")
    paths.settings_file().write_text(json.dumps({"roots": [str(outside)]}))
    assert paths.resolve_folder(str(outside), "folder") == outside


@pytest.mark.parametrize(
    ("host_header", "refused"),
    [("127.0.0.1:8188", False), ("localhost", False), ("[::1]:8188", False), ("10.0.0.3:8188", False), (None, False),
     ("evil.example:8188", True), ("localhost.evil.example", True), ("127.0.0.1.evil.example", True), ("", True), ("[::1", True)],
)  # fmt: skip
def test_a_page_that_gave_its_own_name_to_this_machine_is_refused(host, host_header, refused):
    paths = host("paths")
    assert bool(paths.why_foreign_host(host_header)) == refused
    if refused and host_header == "evil.example:8188":
        assert "hosts" in paths.why_foreign_host(host_header)
        paths.settings_file().write_text(json.dumps({"hosts": ["Evil.Example"]}))
        assert not paths.why_foreign_host(host_header)


def test_a_server_for_others_is_asked_for_by_any_name(host):
    import comfy.cli_args

    comfy.cli_args.args.listen = "0.0.0.0"
    try:
        assert not host("paths").why_foreign_host("gpu.example")
    finally:
        comfy.cli_args.args.listen = "127.0.0.1"


@pytest.mark.parametrize("text", [r"\\host\share", "//host/share", r"\\?\C:\x", r"/\host\share", r"\\.\pipe\x"])
def test_a_path_on_another_machine_is_refused_before_it_is_touched(host, monkeypatch, text):
    paths = host("paths")
    monkeypatch.setattr(
        "os.path.realpath", lambda path, **_: pytest.fail(f"{path} was touched") if "host" in str(path) else path
    )
    with pytest.raises(ConfigError, match="another machine.*roots"):
        paths.resolve_folder(text, "folder")
    assert not paths.may_name(paths.Path("//host/share"))


def test_a_share_that_is_a_root_may_be_named_but_not_left(host):
    paths = host("paths")
    paths.settings_file().write_text(json.dumps({"roots": [r"\\nas\sets"]}))
    assert paths.may_name(paths.Path(r"\\NAS\sets\cats"))
    assert not paths.may_name(paths.Path(r"\\nas\sets\..\others"))
    with pytest.raises(ConfigError, match="is not a folder"):
        paths.resolve_folder(r"\\nas\sets\cats", "folder")


def test_an_origin_that_is_none_is_refused(host):
    assert host("page.answers").why_refused("application/json", "https://[::1", "host")


def test_errors_do_not_say_where_the_pack_is_installed():
    assert {kind.__module__ for kind in (ConfigError, DivergedError)} == {"lora_loom.trainer.errors"}
