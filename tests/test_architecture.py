"""The shape of the code, kept as a test: which room may import which, and how large rooms and files may grow."""

from collections import Counter

import pytest

from tests.import_graph import ROOT, SOURCES, cycles, imported, module_name

# A room of trainer/ imports itself and the rooms before it; what stands on one line still has an order, from left to right.
ROOMS = [
    "errors",
    "choices",
    "types",
    "seeding",
    "eta",
    "drawing",
    "storage",
    "weights",
    "diffusion",
    "config",
    "distributed",
    "known_models",
    "families.common",
    "families",
    "base_model",
    "lora",
    "full",
    "data.images",
    "data.sets",
    "data.cache",
    "data",
    "importers",
    "training",
    "doctor",
    "memory_plan",
    "lora_tools",
    "hub",
    "runs",
    "sweep",
    "score",
    "comfy_api",
    "demo",
    "cli",
]
COMFY = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "server", "nodes"}
PATHS = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())


def room(module):
    return max((name for name in ROOMS if f"{module}.".startswith(f"trainer.{name}.")), key=len, default="")


def problems(path, source):
    me, names = module_name(path), imported(path, source)
    if me in ("trainer", "trainer.__main__") or me.startswith("nodes.host"):  # the front door; the seam to ComfyUI
        return names & {"nodes"}
    if me.startswith("nodes"):
        return names & COMFY | {name for name in imported(path, source, top_level_only=True) if "nodes.host" in name}
    upward = {name for name in names if name.startswith("trainer.") and ROOMS.index(room(name)) > ROOMS.index(room(me))}
    return names & COMFY | upward | {name for name in names if name.startswith("nodes.")}


@PATHS
def test_a_file_is_short_and_imports_only_what_its_room_may(path):
    source = path.read_text(encoding="utf-8")
    assert not problems(path, source)
    assert len(source.splitlines()) <= 400


def test_rooms_are_small():
    sizes = Counter(path.parent.relative_to(ROOT).as_posix() for path in SOURCES)
    assert sizes["trainer"] <= 8
    assert max(sizes.values()) <= 17, sizes.most_common(3)


def test_no_import_cycle():
    assert not cycles(
        {module_name(path): imported(path, path.read_text(encoding="utf-8")) - {module_name(path)} for path in SOURCES}
    )


FAMILIES = ROOT / "trainer/families"


def test_every_file_of_families_is_a_family():
    for path in SOURCES:
        if path.parent == FAMILIES and path.stem != "__init__":
            assert "\nFAMILY = " in path.read_text(encoding="utf-8"), path


def families_named(path, source):
    """Modules of families that a file outside of their folder imports: only discovery may name one."""
    known = {f"trainer.families.{one.stem}" for one in SOURCES if one.parent == FAMILIES and one.stem != "__init__"}
    return imported(path, source) & known if path.parent != FAMILIES else set()


@PATHS
def test_only_discovery_names_a_family(path):
    assert not families_named(path, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("place", ["trainer/sweep/run.py", "nodes/host/demo/model.py"])
def test_the_rule_notices_a_file_that_names_a_family(place):
    stem = "." * (1 + place.count("/")) + "trainer.families"
    assert families_named(ROOT / place, f"def f():\n    from {stem}.flux import VARIANTS")
    assert not families_named(ROOT / place, f"def f():\n    from {stem} import detect")


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("trainer/diffusion/loss.py", "from ..runs.session import Session"),  # upward
        ("trainer/config/toml.py", "from .. import cli"),  # a whole room, upward
        (
            "trainer/data/images/load.py",
            "def f():\n    from ..cache.store import Cache",
        ),  # inside a function, between siblings
        ("trainer/lora/patch.py", "import comfy.utils"),
        ("trainer/lora/patch.py", "from ...nodes.host import paths"),
        ("nodes/train.py", "from .host.runs import actions"),  # before a node runs
        ("nodes/train.py", "def f():\n    import folder_paths"),
        ("nodes/host/paths.py", "import nodes"),  # our own folder shadows it outside ComfyUI
    ],
)
def test_the_rules_notice_a_forbidden_import(place, line):
    assert not problems(ROOT / place, "import json")
    assert problems(ROOT / place, line)


def test_a_cycle_is_noticed():
    assert cycles({"a": ["b"], "b": ["c"], "c": ["a"]}) == ["a -> b -> c -> a"]
