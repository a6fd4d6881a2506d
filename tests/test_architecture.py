"""The shape of the code, kept as a test: who may import whom, and how long a file may grow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMFY = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "server", "nodes"}
MAX_LINES = 400
# A module of trainer/ may import only from its own layer or one above it in this list.
LAYERS = [
    {"errors", "names", "launch", "seeding", "records", "axes", "pace", "fonts", "text_drawing", "prompt_library"},
    {"config", "config_base", "config_data", "config_texts", "files", "tensor_files"},
    {"config_file", "idle_options", "identity", "schedule", "memory", "watch", "trackers", "server_client"},
    {"workflow", "server_words", "remote_runs"},
    {"submit"},
    {"processes"},
    {
        "diffusion",
        "data.images",
        "data.saliency",
        "data.look",
        "data.buckets",
        "data.captions",
        "picture_statistics",
        "clip_encoder",
        "ranking",
    },
    {"denoiser", "frozen", "optim", "sharding"},
    {"lora"},
    {"families", "sample"},
    {"data"},
    {"step", "objective_settings"},
    {"loop", "evaluate", "base_model", "text_places", "lora_places", "lora_convert", "base_tools"},
    {"checkpoint", "lora_formats", "text_lora"},
    {"runs", "cell_graph"},
    {"shown"},
    {"validation", "session", "sweep", "strip", "sheet_page", "score", "score_report"},
    {"run"},
    {"run_sweep"},
    {"run_score"},
    {"demo"},
    {"console", "cli", "cli_common", "cli_tools", "cli_convert", "cli_server", "server_console", "cli_cache"},
    {"__main__", ""},
]
SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("nodes/**/*.py"), *ROOT.glob("trainer/**/*.py")])
TRAINER = sorted(ROOT.glob("trainer/**/*.py"))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "trainer").with_suffix("").parts).removesuffix("__init__").rstrip(".")


def layer(module: str) -> int:
    """The most specific entry decides."""
    best, found = -1, None
    for index, names in enumerate(LAYERS):
        for name in names:
            if (module == name or (name and module.startswith(name + "."))) and len(name) > best:
                best, found = len(name), index
    assert found is not None, f"trainer/{module} is in no layer: add it to LAYERS"
    return found


def imports(path: Path) -> list[str]:
    """Absolute dotted names imported by `path`, relative imports resolved against the pack root."""
    package = list(path.relative_to(ROOT).with_suffix("").parts)[:-1]
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            found += [".".join([*stem, alias.name]) for alias in node.names]
    return found


def trainer_imports(path: Path) -> list[str]:
    """Modules of trainer/ that `path` imports."""
    modules = {module_name(other) for other in TRAINER}
    targets = []
    for name in imports(path):
        if name.startswith("trainer."):
            target = name.removeprefix("trainer.")
            while target and target not in modules:
                target = target.rpartition(".")[0]
            targets.append(target)
    return targets


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_file_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", TRAINER, ids=shown)
def test_trainer_imports_only_upward_and_never_comfyui(path):
    me = module_name(path)
    for name in imports(path):
        assert name.split(".")[0] not in COMFY, f"{shown(path)} imports {name}"
    for target in trainer_imports(path):
        assert layer(target) <= layer(me), f"{me} must not import {target}"


def test_no_import_cycle():
    graph = {module_name(path): set(trainer_imports(path)) - {module_name(path)} for path in TRAINER}
    seen, stack = set(), []

    def visit(module: str) -> None:
        assert module not in stack, " -> ".join([*stack[stack.index(module) :], module])
        if module not in seen:
            stack.append(module)
            for target in sorted(graph.get(module, ())):
                visit(target)
            stack.pop()
            seen.add(module)

    for module in sorted(graph):
        visit(module)


@pytest.mark.parametrize("path", sorted(ROOT.glob("nodes/**/*.py")), ids=shown)
def test_nodes_never_import_comfyuis_nodes_module(path):
    assert "nodes" not in imports(path), "our nodes/ folder shadows it outside ComfyUI"


@pytest.mark.parametrize("path", [p for p in sorted(ROOT.glob("nodes/**/*.py")) if "host" not in p.parts], ids=shown)
def test_only_the_seam_imports_comfyui(path):
    for name in imports(path):
        top = name.split(".")[0]
        ours = top == "nodes" and name != "nodes"  # a relative import of our own folder; a bare one is ComfyUI's module
        assert ours or top not in COMFY, f"{shown(path)} imports {name}: go through nodes/host/"


def test_a_family_is_known_to_no_other_file():
    shared = {
        "__init__",
        "base",
        "source",
        "keymap",
        "modules",
        "encoders",
        "tiny",
        "unet",
        "unet_names",
        "qwen_text",
        "lora_names",
        "lora_layouts",
        "host_graphs",
        "wording",
        "prompt_weights",
    }
    families = {p.stem for p in (ROOT / "trainer/families").glob("*.py")} - shared
    assert families
    for path in TRAINER:
        if path.parent.name == "families" and path.stem in families:
            continue
        for name in imports(path):
            assert not (name.startswith("trainer.families.") and name.split(".")[2] in families), shown(path)


def test_the_same_rules_fail_on_a_bad_import(tmp_path, monkeypatch):
    """The rules above can fail: the layer of a low module is below that of a high one, and ComfyUI's names are known."""
    assert layer("step") < layer("run")
    assert layer("data.images") < layer("data.cache")
    with pytest.raises(AssertionError, match="in no layer"):
        layer("brand_new")
