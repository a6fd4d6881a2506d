"""Qwen-Image's own ways: latents per channel, the template's head, texts of unequal length, blocks that cannot learn."""

import pytest
import torch

from lora_loom.trainer import families
from lora_loom.trainer.families import qwen_image
from lora_loom.trainer.families.common.encoders import KlCodec, load_codec
from lora_loom.trainer.families.common.family import Loading
from lora_loom.trainer.families.common.latent_spaces import QWEN_MEAN, QWEN_STD
from lora_loom.trainer.families.common.text import qwen_text
from lora_loom.trainer.lora.targets import resolve_targets
from tests.conftest import tiny_folder

CPU = Loading(dtype=None, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def tiny():
    return families.get("qwen_image").tiny()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_latents_are_normalised_per_channel_by_the_vaes_own_numbers(tiny):
    space = families.get("qwen_image").latent_space
    config = tiny.vae.config
    assert list(QWEN_MEAN) == config.latents_mean
    assert list(QWEN_STD) == config.latents_std
    raw = noise(2, 16, 4, 4)
    mean, std = (torch.tensor(values).view(1, 16, 1, 1) for values in (config.latents_mean, config.latents_std))
    assert torch.allclose(space.to_model(raw), (raw - mean) / std, atol=1e-6)


def test_the_text_is_the_templates_last_state_without_its_head(tiny):
    text = tiny.encoders.text
    head = text.tokenizer([qwen_text.TEMPLATE_HEAD])["input_ids"][0]
    assert text.head_tokens == len(head) - 1, "all of the head, without the toy tokenizer's end mark"
    whole = text.tokenizer(
        [f"{qwen_text.TEMPLATE_HEAD}cat{qwen_text.TEMPLATE_TAIL}"], return_tensors="pt", max_length=512
    )
    states = text.module(**{k: whole[k] for k in ("input_ids", "attention_mask")}, output_hidden_states=True)
    [mine] = text.encode(["cat"])
    assert torch.allclose(mine["text"], states.hidden_states[-1][0, text.head_tokens :], atol=1e-5)


def test_the_template_is_diffusers_own():
    import inspect

    from diffusers import QwenImagePipeline

    source = inspect.getsource(QwenImagePipeline.__init__)
    written = (qwen_text.TEMPLATE_HEAD + "{}" + qwen_text.TEMPLATE_TAIL).replace("\n", "\\n")
    assert f'"{written}"' in source
    assert "prompt_template_encode_start_idx = 34" in source


def test_texts_of_unequal_length_do_not_see_the_padding(tiny):
    family = families.get("qwen_image")
    texts = tiny.encoders.text.encode(["cat", "a very long prompt about dogs"])
    assert texts[0]["text"].shape[0] < texts[1]["text"].shape[0]
    noisy, sigma = noise(2, 16, 8, 8), torch.tensor([0.3, 0.7])
    together = tiny.denoiser.predict(noisy, sigma, family.condition(texts, [], 1.0))
    for i in range(2):
        alone = tiny.denoiser.predict(noisy[i : i + 1], sigma[i : i + 1], family.condition([texts[i]], [], 1.0))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


def test_the_last_blocks_text_output_is_no_target(tiny):
    module = tiny.denoiser.module
    for preset in qwen_image.TARGETS:
        paths = resolve_targets(module, tiny.denoiser.target_presets, preset)
        assert "transformer_blocks.0.attn.to_add_out" in paths
        assert not {"transformer_blocks.1.attn.to_add_out", "transformer_blocks.1.attn.add_q_proj"} & set(paths)
        assert not [path for path in paths if path.startswith("transformer_blocks.1.txt_mlp")]
        assert "transformer_blocks.1.attn.add_k_proj" in paths


def test_what_is_left_out_changes_nothing(tiny):
    """The left-out modules are idle: other weights there give the same prediction."""
    family, other = families.get("qwen_image"), families.get("qwen_image").tiny()
    cond = family.condition(tiny.encoders.text.encode(["cat"]), [], 1.0)
    noisy, sigma = noise(1, 16, 8, 8), torch.tensor([0.5])
    for name in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.2", "txt_mlp.net.0.proj"):
        other.denoiser.module.get_submodule(f"transformer_blocks.1.{name}").weight.data.mul_(-2)
    assert torch.equal(tiny.denoiser.predict(noisy, sigma, cond), other.denoiser.predict(noisy, sigma, cond))


def test_the_vae_of_a_folder_is_the_film_one():
    codec = load_codec(tiny_folder("qwen_image"), CPU)
    assert not isinstance(codec, KlCodec)
    assert codec.factor == 8


def test_layered_files_are_not_taken():
    shapes = {"txt_norm.weight": (8,), "transformer_blocks.0.img_mod.1.weight": (8, 8)}
    family = families.get("qwen_image")
    assert family.detect(shapes) == "qwen-image"
    assert family.detect({**shapes, qwen_image.LAYERED: (2, 8)}) is None
