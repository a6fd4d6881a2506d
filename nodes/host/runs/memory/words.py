"""Settings of memory by the node inputs that they are here: nobody in a graph has a TOML file."""

import re

from .....trainer.errors import LoomError, RunOutOfMemoryError

WORDS = (
    (r"training\.batch_size = 1 with gradient_accumulation_steps = (\d+)", r"batch_size = 1 with accumulation = \1 in Loom Train LoRA"),
    (r"training\.batch_size", "batch_size in Loom Train LoRA"),
    (r"data\.resolution", "resolution in Loom Cache"),
    (r"network\.rank", "rank in Loom Train LoRA"),
    (r'optimizer\.name = "(\w+)"', r"name = \1 in Loom Optimizer"),
    (r'(?:memory|model)\.(\w+) = "?([\w ]+?)"?(?= and |[,.]|$)', r"\1 = \2 in Loom Memory"),
)  # fmt: skip
"""(pattern of a setting in a TOML file, the input of a node that it is here)."""


def in_the_graph(text: str) -> str:
    """A text in which each setting of a TOML file is the node input that it is: "base = stream in Loom Memory"."""
    for pattern, words in WORDS:
        text = re.sub(pattern, words, text)
    return text


def said_in_the_graph(error: LoomError) -> LoomError:
    """An error of the run as it is shown: where memory ran out, its remedies are inputs of nodes."""
    return type(error)(in_the_graph(str(error))) if isinstance(error, RunOutOfMemoryError) else error
