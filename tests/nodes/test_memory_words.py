"""What a memory plan of the graph proposes is said by the nodes' inputs, all of which exist."""

import re

import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.trainer.errors import RunError, RunOutOfMemoryError
from lora_loom.trainer.weights.devices import out_of_memory_remedy

SETTINGS = {
    'memory.base = "stream"': "base = stream in Loom Memory",
    'memory.base = "stream" and memory.compile = false': "base = stream in Loom Memory and compile = false in Loom Memory",
    "memory.gradient_checkpointing = true": "gradient_checkpointing = true in Loom Memory",
    'memory.checkpoint = "all"': "checkpoint = all in Loom Memory",
    "memory.checkpoint_offload = true": "checkpoint_offload = true in Loom Memory",
    "training.batch_size = 1 with gradient_accumulation_steps = 8": "batch_size = 1 with accumulation = 8 in Loom Train LoRA",
    'optimizer.name = "adamw8bit"': "name = adamw8bit in Loom Optimizer",
    'model.quantize = "nf4"': "quantize = nf4 in Loom Memory",
    "data.resolution": "resolution in Loom Cache",
    "network.rank": "rank in Loom Train LoRA",
}


@pytest.mark.parametrize(("setting", "words"), SETTINGS.items())
def test_settings_are_inputs(host, setting, words):
    assert host("runs.memory.words").in_the_graph(setting) == words
    nodes = {node.TITLE: node for node in NODE_CLASS_MAPPINGS.values()}
    [title] = set(re.findall(r"in (Loom [A-Z]\w+(?: LoRA)?)", words))
    inputs = {name for group in nodes[title].INPUT_TYPES().values() for name in group}
    used = set(re.findall(r"(\w+)(?= = | in Loom)", words)) - {
        "stream",
        "true",
        "false",
        "all",
        "nf4",
        "adamw8bit",
        "8",
    }
    assert used <= inputs


def test_where_memory_runs_out_the_remedies_are_inputs(host):
    said = host("runs.memory.words").said_in_the_graph
    error = said(RunOutOfMemoryError(f"out of GPU memory: {out_of_memory_remedy()}. The checkpoint of step 3 is kept"))
    assert isinstance(error, RunOutOfMemoryError)
    assert "on_oom = adapt in Loom Memory, lower resolution in Loom Cache or batch_size in Loom Train LoRA" in str(
        error
    )
    assert not re.search(r"\b(memory|model|data|training|network|optimizer)\.\w", str(error))
    other = RunError("memory.base = 'stream' is no business of this")
    assert said(other) is other
