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


class Gated(nn.Module):
    """Writes over rows of a tensor whose norm was taken, and which goes on; a view that was made before shows it."""

    def forward(self, x, gate):
        x = x.sin()
        first, normed = x[:1], torch.nn.functional.rms_norm(x, (4,))
        x[1:].addcmul_(normed[1:], gate)
        x[:1].mul_(gate)
        return x * torch.nn.functional.rms_norm(x, (4,)), first


def test_of_a_view_the_whole_is_written_over(inputs):
    x, gate = (one.double().requires_grad_() for one in inputs)
    whole, first = out_of_place_class(Gated)()(x, gate)
    normed = torch.nn.functional.rms_norm(x.sin(), (4,))
    y = torch.cat([x.sin()[:1] * gate, x.sin()[1:] + normed[1:] * gate])
    expected = y * torch.nn.functional.rms_norm(y, (4,))
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(first, y[:1])
    mine, reference = (torch.autograd.grad(one.square().sum(), (x, gate)) for one in (whole, expected))
    torch.testing.assert_close(mine, reference)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        Gated()(x, gate)[0].square().sum().backward()
