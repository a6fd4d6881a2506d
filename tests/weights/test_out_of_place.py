"""A forward that writes over its tensors, run out of place: the same values, gradients, and arguments as they were."""

import pytest
import torch
from torch import nn

from lora_loom.trainer.weights.out_of_place import out_of_place_class


class Block(nn.Module):
    """Writes over its argument in every way that ComfyUI's blocks do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, gate):
        x += self.one(x)
        x.addcmul_(self.two(x), gate)
        return torch.add(x, self.one(x), out=x), gate


class Reference(Block):
    """The same without writing over anything."""

    def forward(self, x, gate):
        x = x + self.one(x)
        x = x + self.two(x) * gate
        return x + self.one(x), gate


@pytest.fixture
def inputs():
    source = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, generator=source), torch.randn(4, generator=source)


def test_values_and_gradients_are_those_without_writing(inputs):
    x, gate = inputs
    kept, found = x.clone(), []
    for kind in (Reference, out_of_place_class(Block)):
        block = kind()
        made, same = block(x, gate)
        assert same is gate
        found.append((made, *torch.autograd.grad(made.square().sum(), list(block.parameters()))))
    torch.testing.assert_close(found[1], found[0])
    assert torch.equal(x, kept)


def test_without_it_autograd_refuses(inputs):
    with pytest.raises(RuntimeError, match="out="):
        Block()(inputs[0].clone(), inputs[1])


def test_the_class_keeps_its_name_and_kind():
    made = out_of_place_class(Block)
    assert made.__name__ == "Block"
    assert issubclass(made, Block)
    assert out_of_place_class(Block) is made


class Viewed(nn.Module):
    """Writes over rows, as part of a tensor that goes on."""

    def forward(self, x, more):
        x = x * 1
        x[1:].addcmul_(more[1:], more[1:])
        return x


def test_a_view_is_written_over_so_that_its_base_sees_it(inputs):
    x = inputs[0]
    torch.testing.assert_close(out_of_place_class(Viewed)()(x, x)[1:], x[1:] + x[1:] * x[1:])
