"""Blocks that are recomputed: the gradients of plain ones, bit for bit, also where they share inputs and change them in place."""

import pytest
import torch
from torch import nn

from lora_loom.trainer.weights.recompute import Recomputation, recompute_forward

WIDTH = 24


class Block(nn.Module):
    """Changes its first input in place, as Flux's blocks do (a shadow's layers keep a copy of what they see), uses what all blocks share
    twice, and has an argument by name."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.mod = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x, shared, table=None):
        scale = self.mod(torch.tanh(shared))
        x += self.second(torch.tanh(self.first(x.clone())) * scale) * shared
        return x * table + scale, shared


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(5))

    def forward(self, x):
        shared = self.embed(x.mean(0, keepdim=True))
        table = torch.cos(self.embed(x[:1]))
        x = self.embed(x)
        for block in self.blocks:
            x, shared = block(x, shared, table=table)
        return x.square().mean()


def gradients(every=0, in_ram=False, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, x = Network().to(dtype), torch.randn(7, WIDTH).to(dtype)
    if every:
        recompute = Recomputation(in_ram=in_ram)
        for block in network.blocks[::every]:
            recompute_forward(block, recompute)
    found = []
    for _ in range(2):  # the first pass is compared with its recomputation, later ones are not
        network.zero_grad()
        network(x).backward()
        found.append({name: weight.grad.clone() for name, weight in network.named_parameters()})
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("every", "in_ram"), [(1, False), (2, False), (1, True)])
def test_gradients_are_those_of_plain_blocks_bit_for_bit(monkeypatch, every, in_ram, dtype):
    monkeypatch.setattr("lora_loom.trainer.weights.recompute.LEAST_IN_RAM", 0)
    for plain, recomputed in zip(gradients(dtype=dtype), gradients(every, in_ram, dtype), strict=True):
        assert [name for name in plain if not torch.equal(plain[name], recomputed[name])] == []


def test_only_what_is_changed_in_place_is_copied():
    """What blocks share is kept once for all of them."""
    network, kept = Network(), []
    recompute = Recomputation()
    recompute.keep = lambda tensor: kept.append(tensor) or tensor
    for block in network.blocks:
        recompute_forward(block, recompute)
    network(torch.randn(7, WIDTH)).backward()
    storages = {tensor.untyped_storage().data_ptr() for tensor in kept}
    assert len(kept) == 3 * 5
    assert len(storages) == 5 + 2
