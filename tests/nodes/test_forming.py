"""Rough pictures of samples that form: ComfyUI's law to colours, one event a second at most, and nothing that could end a run."""

import base64
import io
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lora_loom.nodes.host.forming import SIDE, Forming, as_data_url, to_rgb


def law(**more):
    return SimpleNamespace(latent_rgb_factors=[[0.5, 0.0, 0.0], [0.0, 0.25, 1.0]], **more)


def test_colours_are_factors_times_channels_plus_bias():
    latents = torch.tensor([[[[1.0, -1.0]], [[0.4, 2.0]]]])  # 1 x 2 pixels of 2 channels
    expected = [[(0.5 + 1) / 2, (0.1 + 1) / 2, (0.4 + 1) / 2], [(-0.5 + 1) / 2, (0.5 + 1) / 2, 1.0]]
    assert torch.allclose(to_rgb(latents, law()), torch.tensor([expected]))
    biased = to_rgb(latents, law(latent_rgb_factors_bias=[0.2, 0.0, 0.0]))
    assert torch.allclose(biased[..., 0], to_rgb(latents, law())[..., 0] + 0.1)


def test_packed_latents_are_laid_out_first():
    packed = torch.randn(1, 8, 3, 5)
    unpack = torch.nn.PixelShuffle(2)
    assert torch.equal(to_rgb(packed, law(latent_rgb_factors_reshape=unpack)), to_rgb(unpack(packed), law()))


@pytest.mark.parametrize("form", [SimpleNamespace(), SimpleNamespace(latent_rgb_factors=None), law()])
def test_no_picture_without_factors_that_fit(form):
    assert to_rgb(torch.zeros(1, 3, 4, 4), form) is None


def test_the_picture_is_a_small_jpeg():
    kind, _, content = as_data_url(torch.rand(8, 16, 3)).partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert (image.format, image.size) == ("JPEG", (SIDE, SIDE // 2))
    assert len(content) < 40_000


def test_events_are_rare_and_a_strange_format_ends_nothing():
    heard, now = [], [0.0]
    forming = Forming(
        name="cat", count=3, latent_format=law(), emit=lambda *said: heard.append(said), clock=lambda: now[0]
    )
    for moment in (0.0, 0.4, 0.9, 1.1, 1.5):
        now[0] = moment
        forming(120, 1, torch.zeros(1, 2, 4, 4))
    assert [kind for kind, _ in heard] == ["lora_loom.forming"] * 2
    said = heard[0][1]
    assert (said["name"], said["step"], said["number"], said["of"]) == ("cat", 120, 2, 3)
    now[0] = 9.0
    forming.latent_format = law(latent_rgb_factors_reshape=lambda x: x.reshape(7, 7))
    forming(121, 0, torch.zeros(1, 2, 4, 4))
    assert len(heard) == 2
