"""FLUX.2's own ways: patches of latents with statistics, padding that the network reads, Klein or its base, its relatives."""

import json
import shutil

import pytest
import torch

from lora_loom.trainer import families
from lora_loom.trainer.families import flux2
from lora_loom.trainer.families.common.encoders import PatchedCodec
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.families.common.text import flux2_text
from lora_loom.trainer.families.common.tiny import tiny_patched_vae, tiny_qwen3
from tests.conftest import tiny_folder

FAMILY = families.get("flux2")


@pytest.fixture(scope="module")
def tiny():
    return FAMILY.tiny()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_latents_are_patches_normalised_by_the_vaes_statistics():
    """As diffusers' pipeline makes them: channels of a patch side by side, row before column."""
    vae = tiny_patched_vae(0)
    vae.bn.running_mean.copy_(noise(128))
    vae.bn.running_var.copy_(noise(128, seed=1).square() + 0.5)
    pixels = noise(1, 3, 64, 32).clamp(-1, 1)
    latents = vae.encode(pixels).latent_dist.mode()
    cut = latents.view(1, 32, 4, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 128, 4, 2)
    mean, variance = (getattr(vae.bn, f"running_{name}").view(1, -1, 1, 1) for name in ("mean", "var"))
    codec = PatchedCodec(vae)
    raw = codec.encode(pixels)
    assert codec.factor == 16
    assert torch.allclose(raw, (cut - mean) / (variance + 1e-4).sqrt(), atol=1e-6)
    assert torch.allclose(codec.decode(raw), vae.decode(latents).sample, atol=1e-4)


def test_kleins_texts_are_filled_and_the_network_reads_the_filling(tiny):
    """A network without a mask: what stands at the padding is a part of the prompt, as in ComfyUI."""
    [text] = tiny.encoders.text.encode(["cat"])
    assert text["text"].shape == (128, 48)
    noisy, sigma, cond = noise(1, 128, 4, 4), torch.tensor([0.5]), FAMILY.condition([text], [], 1.0)
    without = {**cond, "text": cond["text"][:, :100]}
    assert not torch.allclose(tiny.denoiser.predict(noisy, sigma, cond), tiny.denoiser.predict(noisy, sigma, without))


def test_devs_texts_have_zeros_before_them():
    model, tokenizer = tiny_qwen3(0, width=16, tokens=512, layers=4)
    text = flux2.dev_text(model, tokenizer, 300)
    [made] = text.encode(["cat"])
    words = len(flux2_text.DEV_TEMPLATE.format("cat")) + 1  # letters, and the token that begins
    assert made["text"].shape == (300, 48)
    assert not made["text"][: 300 - words].any()
    assert made["text"][300 - words :].any(dim=1).all()


def test_the_guidance_value_reaches_dev_alone():
    from diffusers import Flux2Transformer2DModel

    from lora_loom.trainer.families.common.tiny import random_network

    config = {**FAMILY.tiny().denoiser.module.config, "guidance_embeds": True}
    module = random_network(Flux2Transformer2DModel, {k: v for k, v in config.items() if not k.startswith("_")}, 0)
    noisy, sigma, text = noise(1, 128, 4, 4), torch.tensor([0.5]), [{"text": noise(20, 48)}]
    for denoiser, moves in ((flux2._denoiser(module, "dev"), True), (FAMILY.tiny().denoiser, False)):
        one, four = (denoiser.predict(noisy, sigma, FAMILY.condition(text, [], value)) for value in (1.0, 4.0))
        assert torch.allclose(one, four) != moves


@pytest.mark.parametrize(
    ("name", "index", "variant"),
    [
        ("FLUX.2-klein-4B", None, "klein"),
        ("FLUX.2-klein-base-4B", None, "klein-base"),
        ("mine", None, "klein-base"),
        ("mine", {"is_distilled": True}, "klein"),
        ("klein", {"is_distilled": False}, "klein-base"),
    ],
)
def test_klein_or_its_base_is_told_by_the_folder_or_its_name(name, index, variant, tmp_path):
    shutil.copytree(tiny_folder("flux2"), tmp_path / name)
    if index is not None:
        (tmp_path / name / "model_index.json").write_text(json.dumps(index))
    assert families.choose("auto", "auto", open_source(str(tmp_path / name)))[1] == variant


def test_modules_that_comfyui_knows_by_their_original_name_alone_are_saved_under_it(tiny):
    assert (
        tiny.denoiser.file_key("double_stream_modulation_img.linear")
        == "diffusion_model.double_stream_modulation_img.lin"
    )
    assert tiny.denoiser.file_key("single_transformer_blocks.0.attn.to_out") == (
        "transformer.single_transformer_blocks.0.attn.to_out"
    )
