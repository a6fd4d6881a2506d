"""A small run with everything that a run folder holds, each file of it damaged in each way, and everything that reads it.

What is damaged is found in the folder, so that a new kind of file is tried from the day it is written.
"""

import builtins
import contextlib
import io
import json
import os
import re
import shutil
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

from lora_loom.trainer.config.toml import to_dict
from lora_loom.trainer.config.toml_text import to_toml
from lora_loom.trainer.errors import LoomError
from tests.conftest import pictures
from tests.kill_stages import whole_run
from tests.nodes.test_queued_again import IDLE

WAYS = ("missing", "empty", "{}", "[]", "not UTF-8", "half", "a folder", "unreadable")
NAME, OTHER = "run", "other"


def make(base):
    """A finished run in ComfyUI's folders below `base`, with checkpoints, samples, a sweep, scores, captions; beside it another run."""
    root = runs(base)
    root.mkdir(parents=True)
    shutil.copytree(pictures(), base / "input" / "images")
    config = with_captions(base, short=True)
    (base / "run.toml").write_text(to_toml(to_dict(with_captions(base, short=False))))
    from lora_loom.trainer.runs.headless import train
    from lora_loom.trainer.score.run import score_sheet
    from lora_loom.trainer.sweep.run import sweep, write_strips, write_tables
    from tests.conftest import SilentHost
    from tests.kill_stages import SIDES

    train(config, SilentHost())
    sheet = sweep(config, SilentHost())
    write_strips(sheet, **SIDES)
    write_tables(sheet, **SIDES)
    score_sheet(root / NAME / "strips", SilentHost())
    folder = root / NAME
    graph = {"prompt": {"1": {"class_type": "LoomTrain", "inputs": {"name": NAME}}}, "node": "1"}
    (folder / "graph.json").write_text(json.dumps(graph))
    (folder / "note.json").write_text(json.dumps({"note": "good", "starred": True}))
    shutil.copytree(folder, root / OTHER)


def runs(base):
    return base / "output" / "lora_loom"


def with_captions(base, *, short):
    config = whole_run(runs(base), steps=2 if short else 3, keep_checkpoints=0)
    sets = tuple(replace(one, folder=str(base / "input" / "images"), captions="sidecar") for one in config.dataset)
    output = replace(config.output, loras=str(base / "models" / "loras" / "lora_loom"))
    return replace(config, dataset=sets, output=output)


def kinds_of_files(base):
    """One file of each kind, as paths relative to `base`: numbers and digests in names make no other kind."""
    found = {}
    places = (runs(base) / NAME, base / "models" / "loras", base / "input" / "images", runs(base) / "cache")
    for place in places:
        for path in sorted(one for one in place.rglob("*") if one.is_file()):
            name = str(path.relative_to(base))
            found.setdefault(re.sub(r"[0-9a-f]{8,}|\d+", "#", name), name)
    return sorted(found.values())


@contextmanager
def damaged(path, way):
    """The file is damaged meanwhile."""
    before = path.read_bytes()
    contents = {
        "empty": b"",
        "{}": b"{}",
        "[]": b"[]",
        "not UTF-8": b"\xff\xfe\0\x80",
        "half": before[: len(before) // 2],
    }
    with contextlib.ExitStack() as stack:
        if way in ("missing", "a folder"):
            path.unlink()
        if way == "a folder":
            path.mkdir()
        elif way == "unreadable":
            stack.enter_context(unreadable(path))
        elif way != "missing":
            path.write_bytes(contents[way])
        yield
    if path.is_dir():
        shutil.rmtree(path)
    if path.parent.is_dir():
        path.write_bytes(before)


@contextmanager
def unreadable(path):
    """As if its permissions were taken away; root, as which tests run in containers, may read everything."""
    import safetensors

    def guarded(real):
        def opening(file, *args, **kwargs):
            if isinstance(file, str | os.PathLike) and Path(file) == path and _reads(args, kwargs):
                raise PermissionError(13, "Permission denied", str(file))
            return real(file, *args, **kwargs)

        return opening

    with contextlib.ExitStack() as stack:
        for module, name in ((builtins, "open"), (io, "open"), (safetensors, "safe_open")):
            stack.enter_context(patch.object(module, name, guarded(getattr(module, name))))
        yield


def _reads(args, kwargs):
    mode = kwargs.get("mode", args[0] if args else "r")
    return not isinstance(mode, str) or "w" not in mode


def command(*words):
    """What is wrong with how a command of the command line ended; "" where it did its work or said one plain line."""
    from lora_loom.trainer.cli import main as cli

    said, printed = io.StringIO(), io.StringIO()
    with redirect_stderr(said), redirect_stdout(printed):
        try:
            cli.main([str(word) for word in words])
        except SystemExit as ended:
            if ended.code in (0, None):
                return ""
    text = said.getvalue()
    if "Traceback" in text or "unexpected" in text:
        return text[-800:]
    return "" if text.count("error:") == 1 or printed.getvalue().strip() else f"no plain line, but {text[-300:]!r}"


def commands(base):
    """{what reads: how}: commands that take long come last."""
    folder, config = runs(base) / NAME, base / "run.toml"
    loras = base / "models" / "loras" / "lora_loom" / NAME
    return {
        "list": partial(command, "list", runs(base)),
        "strip": partial(command, "strip", folder / "strips"),
        "card": partial(command, "card", folder, "--output", base / "card.md", "--overwrite"),
        "inspect": partial(command, "inspect", folder / "loras" / f"{NAME}.safetensors"),
        "inspect what is published": partial(command, "inspect", loras / f"{NAME}.safetensors"),
        "cache verify": partial(command, "cache", "verify", runs(base) / "cache"),
        "cache stats": partial(command, "cache", "stats", runs(base) / "cache"),
        "score": partial(command, "score", folder / "strips"),
        "sweep": partial(command, "sweep", config),
        "doctor": partial(command, "doctor", config),
        "train": partial(command, "train", config),
    }


LONG = ("score", "sweep", "doctor", "train")
CONCERN = {
    "strip": "strips/",
    "LoomStrip": "strips/",
    "LoomSweep": "strips/",
    "score": "strips/|loras/|cache|images/|metrics|run.json",
    "sweep": "strips/|loras/|checkpoints/|run.json",
    "doctor": "images/|cache/|loras/|run.json",
    "inspect": "run/loras/",
    "inspect what is published": "models/loras/",
    "cache verify": "cache/",
    "cache stats": "cache/",
    "LoomWait": "run/[^/]+$",
    "card": "run/[^/]+$|samples/|loras/",
    "GET data": "images/",
    "GET files": "run/",
}
"""{what reads: what of a path it reads}; what is not named here is tried with every file. It only saves time."""


def concerns(name, file):
    return re.search(CONCERN.get(name, ""), file) is not None


def attempt(act, *arguments):
    """What is wrong with how a function of the graph ended: nothing, if it returned or raised one of our errors."""
    try:
        act(*arguments)
    except LoomError as error:
        return "" if "unexpected" not in str(error) else str(error)
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        import traceback

        return f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"
    return ""


def graph_readers(base, host):
    """{what reads: how}: nodes and routes. `host` imports a module of nodes/host over `base`."""
    records, actions, sheets, paths = (host(name) for name in ("runs.records", "runs.actions", "sweep.sheets", "paths"))
    routes, editing, settings = host("page.routes"), host("encoding.editing"), host("runs.settings_of_run")
    folder, strips = paths.run_folder(NAME), runs(base) / NAME / "strips"

    def listed():
        found = {one["name"]: one for one in records.list_runs(IDLE)}
        assert found[OTHER]["state"] == "finished", "another run is hidden"
        json.dumps(list(found.values()))

    def page():
        if folder.exists():
            json.dumps(records.details(folder, IDLE))

    def checkpoints():
        value = sheets.collect(actions.open_run(NAME), "", "all", 1, include_base=True)
        sheets._swept(value)

    def sweep():
        loaded = host("sweep.sheets").load_sheet(strips)
        sheets.missing(loaded.cells)

    def drawn():
        values = __import__("lora_loom.nodes.sockets.values", fromlist=["SheetValue"])
        value = values.SheetValue(folder=str(strips), name="sheet", title=NAME)
        sheets.drawn_strip(value, "grid", "checkpoint", "prompt, seed", "")

    def files():
        for path in sorted((runs(base) / NAME).rglob("*")):
            served = routes.servable(folder.path, path.relative_to(folder.path).as_posix())
            if served is not None and served.suffix in (".html", ".svg"):
                routes.page_policy(served)

    def captions():
        seen = editing.look("images", 64, 32)
        for one in seen["images"]:
            editing.thumbnail("images", one["name"])

    return {
        "GET runs": listed,
        "GET run": page,
        "GET metrics": lambda: json.dumps(folder.read_metrics()),
        "GET settings": lambda: json.dumps(settings.settings(folder)) if folder.exists() else None,
        "GET graph": lambda: records.kept_graph(folder),
        "POST continue": lambda: records.stored_graph(folder),
        "GET files": files,
        "GET data": captions,
        "POST note": lambda: records.note_of(folder),
        "LoomTrain": lambda: (actions.needs_start(NAME), actions.needs_start(NAME, "new"), actions.state_of(NAME)),
        "LoomRun": lambda: actions.open_run(NAME),
        "LoomWait": lambda: actions.wait(actions.open_run(NAME)),
        "LoomCheckpoints": lambda: (actions.states(), checkpoints()),
        "LoomSweep": sweep,
        "LoomStrip": drawn,
    }
