"""What is recomputed: the LoRA stays the same to the bit, and less is held."""

import pytest
import torch
from torch import nn

from lora_loom.trainer import families
from lora_loom.trainer.config.run import MemoryConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.lora.checkpointing import checkpoint_feed_forwards, feed_forwards
from lora_loom.trainer.memory_plan.meter import LiveBytes
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.weights import recompute
from lora_loom.trainer.weights.recompute import Recomputation
from tests.conftest import SilentHost, make_config
from tests.runs.test_streamed_runs import written

OFF = {"checkpoint": "off"}
WAYS = {
    "all": {"checkpoint": "all"},
    "every 2": {"checkpoint": "every 2"},
    "ffn": {"checkpoint": "ffn"},
    "in ram": {"checkpoint_offload": True},
    "ffn in ram": {"checkpoint": "ffn", "checkpoint_offload": True},
    "streamed": {"checkpoint": "every 2", "checkpoint_offload": True, "base": "stream"},
}


def run(root, family, memory):
    memory = {"gradient_checkpointing": True, **memory}
    train(make_config(family, root, memory=memory, training={"steps": 2, "batch_size": 1}), SilentHost())
    return written(root)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What a run writes that recomputes nothing."""
    return run(tmp_path_factory.mktemp("off"), "sd", OFF)


@pytest.mark.parametrize("way", WAYS)
def test_the_lora_is_the_same_to_the_bit(tmp_path, monkeypatch, plain, way):
    monkeypatch.setattr(recompute, "LEAST_IN_RAM", 0)
    assert run(tmp_path, "sd", WAYS[way]) == plain


@pytest.mark.parametrize(
    ("family", "expected"),
    [("sd", "transformer_blocks.0.ff"), ("flux", "transformer_blocks.0.ff_context"), ("lumina2", "layers.0.feed_forward")],
)  # fmt: skip
def test_feed_forwards_are_found_by_structure(family, expected):
    module = families.get(family).tiny().denoiser.module
    found = feed_forwards(module)
    assert any(path.endswith(expected) for path in found)
    assert not any("attn" in path or "norm" in path for path in found)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls, self.linear = 0, nn.Linear(64, 64)

    def forward(self, x_BD):
        self.calls += 1
        return x_BD + torch.tanh(self.linear(x_BD))


def through(blocks, recomputation, x_BD):
    for block in blocks:
        x_BD = recomputation(block, x_BD)
    return x_BD


def test_one_block_in_so_many_is_recomputed():
    blocks, x_BD = [Block() for _ in range(6)], torch.randn(3, 64, requires_grad=True)
    recomputation = Recomputation(every=3)
    for _ in range(2):
        through(blocks, recomputation, x_BD).sum().backward()
    assert [block.calls for block in blocks] == [4, 2, 2, 4, 2, 2]


def test_inputs_in_ram_are_not_held_where_they_were(monkeypatch):
    """Counted on shapes, where RAM is no device."""
    monkeypatch.setattr(recompute, "LEAST_IN_RAM", 0)
    blocks = nn.ModuleList(Block() for _ in range(8)).to("meta").requires_grad_(False)

    def most(in_ram):
        x_BD = torch.empty(100, 64, device="meta", requires_grad=True)
        meter = LiveBytes()
        meter.hold([*blocks.parameters(), x_BD])
        before = meter.live
        with meter:
            through(blocks, Recomputation(in_ram=in_ram), x_BD).sum()
        return (meter.peak - before) // (100 * 64 * 4)

    assert most(in_ram=False) >= 8
    assert most(in_ram=True) <= 4


def test_a_network_without_feed_forwards_is_refused():
    with pytest.raises(ConfigError, match="no modules of their own; use 'all'"):
        checkpoint_feed_forwards(nn.ModuleList([Block()]), MemoryConfig(checkpoint="ffn"))


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ({"gradient_checkpointing": False, "checkpoint": "every 2"}, "leave one of them out"),
        ({"checkpoint": "off", "checkpoint_offload": True}, "nothing to recompute from"),
        ({"checkpoint": "ffn", "shard": True}, "recomputes whole blocks"),
    ],
)
def test_what_excludes_each_other_is_refused(memory, words):
    with pytest.raises(ConfigError, match=words):
        MemoryConfig(**memory).check()
