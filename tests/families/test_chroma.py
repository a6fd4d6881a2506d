"""Chroma's own ways: the table of its modulations, texts at their own length, relatives refused."""

import pytest
import torch
from diffusers import ChromaTransformer2DModel

from lora_loom.trainer import families
from lora_loom.trainer.diffusion.packing import pack, position_ids, unpack
from lora_loom.trainer.families import chroma
from tests.conftest import tiny_folder

FAMILY = families.get("chroma")


@pytest.fixture(scope="module")
def tiny():
    return FAMILY.tiny()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_it_predicts_what_diffusers_class_does(tiny):
    """The class with a table of its own is diffusers' otherwise; the velocity and the clock are the same."""
    plain = ChromaTransformer2DModel.from_pretrained(tiny_folder("chroma") / "transformer").eval()
    [text] = tiny.encoders.text.encode(["a cat"])
    noisy, sigma = noise(1, 16, 8, 12), torch.tensor([0.4])
    with torch.no_grad():
        theirs = plain(
            hidden_states=pack(noisy),
            encoder_hidden_states=text["text"][None],
            timestep=sigma,
            img_ids=position_ids(8, 12),
            txt_ids=torch.zeros(len(text["text"]), 3),
            return_dict=False,
        )[0]
    mine = tiny.denoiser.predict(noisy, sigma, FAMILY.condition([text], [], 1.0))
    assert torch.allclose(mine, unpack(theirs, 8, 12), atol=1e-6)


def test_the_table_of_the_modulations_is_real_where_weights_are_loaded_from_meta():
    small = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 1, "approximator_hidden_dim": 8}
    with torch.device("meta"):
        network = chroma.network_class()(**small)
    table = network.time_text_embed.mod_proj
    plain = ChromaTransformer2DModel(**small)
    assert not table.is_meta
    assert torch.equal(table, plain.time_text_embed.mod_proj)
    assert network.x_embedder.weight.is_meta


def test_texts_of_unequal_length_are_run_apart(tiny):
    texts = tiny.encoders.text.encode(["cat", "a long prompt about dogs"])
    assert len(texts[0]["text"]) < len(texts[1]["text"])
    noisy, sigma = noise(2, 16, 8, 8), torch.tensor([0.3, 0.7])
    together = tiny.denoiser.predict(noisy, sigma, FAMILY.condition(texts, [], 1.0))
    for i, text in enumerate(texts):
        alone = tiny.denoiser.predict(noisy[i : i + 1], sigma[i : i + 1], FAMILY.condition([text], [], 1.0))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


def test_the_pixel_model_of_the_same_blocks_is_not_taken_for_it(tiny):
    """Chroma Radiance paints pixels through a NeRF head."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny.denoiser.module.state_dict().items()}
    assert FAMILY.detect(shapes) == "chroma"
    assert FAMILY.detect({**shapes, "nerf_image_embedder.embedder.0.weight": (64, 67)}) is None


def test_a_layer_of_the_modulations_is_saved_under_the_name_comfyui_knows(tiny):
    assert tiny.denoiser.file_key("transformer_blocks.0.attn.to_q") == "transformer.transformer_blocks.0.attn.to_q"
    assert (
        tiny.denoiser.file_key("distilled_guidance_layer.layers.0.linear_1")
        == "diffusion_model.distilled_guidance_layer.layers.0.in_layer"
    )
