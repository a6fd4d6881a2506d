"""A grown denoiser starts as the smaller one: the same products, one block more that changes nothing."""

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from scripts.demo_base.denoiser import config
from scripts.demo_base.grow import HEAD, grown, repeated, widened


def network(blocks: int) -> SD3Transformer2DModel:
    """Random weights everywhere: diffusers starts some layers at zero, behind which a difference could hide."""
    torch.manual_seed(blocks)
    made = SD3Transformer2DModel(**config(blocks)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return made


def prediction(module: SD3Transformer2DModel) -> Tensor:
    generator = torch.Generator().manual_seed(7)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        return module(drawn(2, 16, 8, 8), drawn(2, 5, 64), drawn(2, 64), torch.tensor([300.0, 800.0])).sample


def test_the_product_of_a_widened_layer_is_the_smaller_ones_product_with_its_rows_repeated() -> None:
    weight, row = torch.randn(6 * 128, 128), torch.randn(128)
    wide = widened("some.linear.weight", weight, 128, 192, torch.Generator().manual_seed(0))
    copies = repeated(128, 192)
    expected = torch.cat([chunk[copies] for chunk in (weight @ row).split(128)])
    torch.testing.assert_close(wide @ row[copies], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [2, 3])
def test_without_layer_norm_a_grown_network_predicts_what_the_smaller_one_does(blocks, monkeypatch) -> None:
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: x)
    small = network(blocks)
    large = network(blocks + 1)
    large.load_state_dict(grown(small.state_dict(), blocks=blocks))
    torch.testing.assert_close(prediction(large), prediction(small), rtol=1e-6, atol=1e-6)


def test_copies_of_a_channel_get_different_gradients() -> None:
    large = network(3)
    large.load_state_dict(grown(network(2).state_dict(), blocks=2))
    large(torch.randn(1, 16, 8, 8).double(), torch.randn(1, 5, HEAD).double(), torch.randn(1, 64).double(), torch.tensor([500.0])).sample.square().mean().backward()  # fmt: skip
    gradient = large.transformer_blocks[0].attn.to_q.weight.grad
    assert not torch.allclose(gradient[:HEAD], gradient[2 * HEAD :], rtol=1e-3)
