"""What the engine says is said by nodes and their inputs in a graph: each of them exists, and no command is left."""

import ast
import dataclasses
import re
import typing
from pathlib import Path

import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.nodes.node import LoomNode
from lora_loom.nodes.words import ELSEWHERE, INPUTS, ONLY_THERE, RENAMED, in_the_graph, said_in_the_graph
from lora_loom.trainer.config.run import TrainConfig
from lora_loom.trainer.errors import ConfigError, RunOutOfMemoryError
from lora_loom.trainer.weights.devices import out_of_memory_remedy

ENGINE = Path(__file__).parents[2] / "trainer"
OF_THE_COMMAND_LINE = ("cli", "comfy_api", "importers", "demo", "data/unpack.py", "data/captioner.py", "config/toml.py")
"""Parts of the engine whose texts nobody in a graph reads."""
NO_NODE_DOES_IT = {
    "full fine-tuning": "train from the command line (lora-loom train FILE)",
    "a prompt's own options": "(--w, --s …)",
    "images in a table": "lora-loom unpack",
    "a hub": "hf download",
    "pip's option": "pip install --upgrade",
    "pushing to a hub": "lora-loom push",
    "a run of the command line": "give --set model.base=PATH",
    "several processes": "`lora-loom plan`",
    "files for a sweep of the command line": "with --lora",
    "the same": "--lora X holds no",
}
SETTINGS = {
    'memory.base = "stream"': "base = stream in Loom Memory",
    'memory.base = "stream" and memory.compile = false': "base = stream in Loom Memory and compile = false in Loom Memory",
    "memory.vae_tiling = true, or": "vae_tiling = true in Loom Cache, or",
    "training.batch_size = 1 with gradient_accumulation_steps = 8": "batch_size = 1 with gradient_accumulation_steps = 8 in Loom Train LoRA",
    'optimizer.name = "adamw8bit"': "name = adamw8bit in Loom Optimizer",
    "set dataset.captions = 'filename' to": "set captions = filename in Loom Dataset to",
    "optimizer.learning_rate = 0.5: use": "learning_rate = 0.5 in Loom Train LoRA: use",
    "lower data.resolution.": "lower resolution in Loom Cache.",
    "schedule.kind = 'cosine' falls": "schedule = cosine in Loom Optimizer falls",
    "model.family = 'x'": "model.family = 'x'",
}


@pytest.mark.parametrize(("setting", "words"), SETTINGS.items())
def test_settings_are_inputs(setting, words):
    assert in_the_graph(setting) == words


def shown(title):
    """The names that a node shows for its inputs."""
    [node] = [node for node in NODE_CLASS_MAPPINGS.values() if title in (node.TITLE, node.TITLE.split(" (folder)")[0])]
    inputs = node.INPUT_TYPES()
    return {
        options.get("display_name", name)
        for group in ("required", "optional")
        for name, (_, options) in inputs.get(group, {}).items()
    }


def test_each_input_is_shown_by_its_node():
    for nodes in INPUTS.values():
        for title, names in nodes.items():
            assert set(names.split()) <= shown(title), title
    for words in RENAMED.values():
        names, title = words.split(" in ")
        assert set(names.split(", ")) <= shown(title)


def options(cls=TrainConfig, prefix=""):
    """Every option of a run's file by its dotted name."""
    hints = typing.get_type_hints(cls)
    for name, hint in ((one.name, hints[one.name]) for one in dataclasses.fields(cls)):
        sections = [one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)]
        if prefix or not sections:
            yield f"{prefix}{name}"
        elif sections:
            yield from options(sections[0], f"{name}.")


def test_every_option_has_an_input_or_a_reason_why_a_graph_has_none():
    inputs = {
        f"{table}.{name}" for table, nodes in INPUTS.items() for names in nodes.values() for name in names.split()
    }
    said = [*inputs, *RENAMED, *ELSEWHERE, *ONLY_THERE]
    assert sorted(said) == sorted(set(said))
    assert set(said) == set(options())


def texts_of(path):
    """Every text of a file of the engine but its docstrings; X stands for what is put in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in inside | docs:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_text_of_the_engine_leaves_a_command_to_a_reader_in_the_graph():
    commands = re.compile(r"(?<![\w-])--[a-z]|lora-loom [a-z]")
    found, left = 0, []
    for path in sorted(ENGINE.rglob("*.py")):
        if path.relative_to(ENGINE).as_posix().startswith(OF_THE_COMMAND_LINE):
            continue
        for text in texts_of(path):
            if not commands.search(text):
                continue
            found += 1
            if commands.search(in_the_graph(text)) and not any(known in text for known in NO_NODE_DOES_IT.values()):
                left.append(f"{path.name}: {in_the_graph(text)}")
    assert found > 10
    assert not left


def test_where_memory_runs_out_the_remedies_are_inputs():
    error = said_in_the_graph(
        RunOutOfMemoryError(f"out of GPU memory: {out_of_memory_remedy()}. The checkpoint of step 3 is kept")
    )
    assert isinstance(error, RunOutOfMemoryError)
    assert "on_oom = adapt in Loom Memory, lower resolution in Loom Cache or batch_size in Loom Train LoRA" in str(
        error
    )
    assert not re.search(r"\b(memory|model|data|training|network|optimizer)\.\w", str(error))


class Node(LoomNode):
    """A node that fails, or reports."""

    def run(self, *, fails):
        if fails:
            raise ConfigError("network.rank = 0: use 1 or more")
        return {"ui": {"text": ["lower data.resolution"], "images": [1]}, "result": ("lower data.resolution", 3)}


def test_errors_and_reports_of_a_node_have_its_words():
    with pytest.raises(ConfigError, match="^rank = 0 in Loom Train LoRA: use 1 or more$"):
        Node().run(fails=True)
    words = "lower resolution in Loom Cache"
    assert Node().run(fails=False) == {"ui": {"text": [words], "images": [1]}, "result": (words, 3)}
