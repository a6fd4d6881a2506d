"""Masked padding of T5: it changes nothing, neither in the prediction nor in gradients, as diffusers' own masks have it."""

from dataclasses import replace

import diffusers.models.attention_processor as processors
import pytest
import torch
import torch.nn.functional as F

from lora_loom.trainer import families
from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig, TextConfig
from lora_loom.trainer.diffusion.packing import pack, position_ids, unpack
from lora_loom.trainer.errors import ConfigError, LoomError
from lora_loom.trainer.families.common.encoders import T5Text, tokenize
from lora_loom.trainer.families.common.tiny import tiny_t5
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.types import Geometry
from tests.conftest import SilentHost, make_config, tiny_folder

PROMPTS = ["a red cat on a mat", "dog"]
SIZE = 8


def encoded(family, *, masked):
    tiny = families.all_families()[family].tiny()
    tiny.encoders.text.t5.masked = masked
    return tiny.encoders.text.encode(PROMPTS)


def conditioning(family, texts):
    made = families.all_families()[family].condition(texts, [Geometry.whole((64, 64))] * len(texts), 1.0)
    return {name: tensor.clone() for name, tensor in made.items()}


def noisy(batch):
    return torch.randn(batch, 16, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def by_diffusers(family, denoiser, given, mask_BL, monkeypatch):
    """The prediction with the padding in the text, and masked as attention."""
    latents, sigma = noisy(len(mask_BL)), torch.full((len(mask_BL),), 0.6)
    every_BL = mask_BL.bool()
    tokens = SIZE * SIZE // 4
    if family == "flux":
        whole = torch.cat([every_BL, torch.ones(len(mask_BL), tokens, dtype=torch.bool)], dim=1)
        made = denoiser.module(
            hidden_states=pack(latents), encoder_hidden_states=given["text"], pooled_projections=given["pooled"],
            timestep=sigma, guidance=given["guidance"], img_ids=position_ids(SIZE, SIZE), txt_ids=torch.zeros(given["text"].shape[1], 3),
            joint_attention_kwargs={"attention_mask": whole[:, None, None]}, return_dict=False,
        )[0]  # fmt: skip
        return unpack(made, SIZE, SIZE)
    whole = torch.cat([torch.ones(len(mask_BL), tokens, dtype=torch.bool), every_BL], dim=1)
    plain = F.scaled_dot_product_attention

    def attention(query, key, value, **options):
        joint = key.shape[-2] == whole.shape[1]
        return plain(query, key, value, attn_mask=whole[:, None, None] if joint else None, **options)

    with monkeypatch.context() as patch:
        patch.setattr(processors.F, "scaled_dot_product_attention", attention)
        return denoiser.predict(latents, sigma, given)


def gradients(denoiser, prediction):
    weights = [
        p for name, p in denoiser.module.named_parameters() if name.endswith(("to_q.weight", "add_k_proj.weight"))
    ]
    for weight in weights:
        weight.requires_grad_(True)
    return torch.autograd.grad(prediction().square().sum(), weights)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_masked_padding_changes_nothing_and_unmasked_does(family, monkeypatch):
    denoiser = families.all_families()[family].tiny().denoiser
    short = encoded(family, masked=True)
    lengths = [len(text["text"]) for text in short]
    assert lengths[0] > lengths[1], "two lengths in one batch"
    ours = lambda: denoiser.predict(noisy(2), torch.full((2,), 0.6), conditioning(family, short))  # noqa: E731
    most = max(lengths) + 4
    mask = torch.tensor([[1] * length + [0] * (most - length) for length in lengths])
    padded = torch.stack([F.pad(text["text"], (0, 0, 0, most - len(text["text"]))) for text in short])
    given = {**conditioning(family, short), "text": padded}
    given.pop("text_length")
    garbage = {**given, "text": torch.where(mask[..., None].bool(), padded, 7.0)}
    for one in (given, garbage):
        theirs = by_diffusers(family, denoiser, one, mask, monkeypatch)
        assert torch.allclose(ours(), theirs, atol=1e-5)
    mine = gradients(denoiser, ours)
    of_mask = gradients(denoiser, lambda: by_diffusers(family, denoiser, garbage, mask, monkeypatch))
    for first, second in zip(mine, of_mask, strict=True):
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-5 * float(second.abs().max()))
    unmasked = [by_diffusers(family, denoiser, one, torch.ones_like(mask), monkeypatch) for one in (given, garbage)]
    assert not torch.allclose(*unmasked, atol=1e-3)


def test_t5_reads_what_it_reads_with_a_mask():
    module, tokenizer = tiny_t5(2, width=32)
    [short] = T5Text(module, tokenizer, max_tokens=16, masked=True)(PROMPTS[1:])
    [padded] = T5Text(module, tokenizer, max_tokens=16)(PROMPTS[1:])
    ids = tokenize(tokenizer, PROMPTS[1:], 16)
    with torch.no_grad():
        whole = module(ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state[0]
    assert len(short) == int(ids["attention_mask"].sum()) < len(padded) == 16
    assert torch.allclose(short, whole[: len(short)], atol=1e-5)
    assert not torch.allclose(short, padded[: len(short)], atol=1e-3)
    [empty, long] = T5Text(module, tokenizer, max_tokens=4, masked=True)(["", "a red cat on a mat in a house"])
    assert (len(empty) >= 1, len(long)) == (True, 4)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("chroma", "never reads the padding of its text"), ("lumina2", "never reads the padding of its text"),
        ("krea2", "never reads the padding of its text"), ("z_image", "never reads the padding of its text"),
        ("qwen_image", "never reads the padding of its text"), ("sd", "has no T5"), ("sdxl", "has no T5"), ("flux2", "has no T5"),
    ],
)  # fmt: skip
def test_others_are_refused_with_the_reason(family, reason):
    with pytest.raises(ConfigError, match=rf"text\.t5_attention_mask = True would do nothing: {family} .* {reason}"):
        opened(family, masked=True)


def opened(family, *, masked=False):
    return open_base(ModelConfig(base=str(tiny_folder(family)), device="cpu"), TextConfig(t5_attention_mask=masked))


def test_libreflux_masks_whatever_the_settings_say_and_neither_of_them_is_warned_of_as_distilled():
    folder = str(tiny_folder("flux"))
    libre, booru, dev = (
        open_base(ModelConfig(base=folder, variant=name, device="cpu"), TextConfig())
        for name in ("libreflux", "fluxbooru", "dev")
    )
    assert (libre.reading.t5_attention_mask, libre.settings.by_length, libre.settings.guidance_embedding) == (
        True,
        True,
        False,
    )
    assert (booru.reading.t5_attention_mask, booru.settings.guidance_embedding, dev.reading.t5_attention_mask) == (
        False,
        True,
        False,
    )
    assert libre.warnings() == booru.warnings() == []
    assert libre.encoder_identity().text == open_base(
        ModelConfig(base=folder, variant="libreflux", device="cpu"), TextConfig(t5_attention_mask=True)
    ).encoder_identity().text  # fmt: skip


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_caches_of_before_go_on_being_found(family, monkeypatch):
    off, on = (opened(family, masked=masked).encoder_identity() for masked in (False, True))
    assert off.text != on.text
    assert off.vae == on.vae
    variants = families.all_families()[family].variants
    for name, variant in variants.items():
        before = tuple(option for option in variant.text_options if option != "t5_attention_mask")
        monkeypatch.setitem(variants, name, replace(variant, text_options=before))
    assert opened(family).encoder_identity() == off


def test_an_sd3_without_t5_says_so(tmp_path):
    import shutil

    folder = shutil.copytree(tiny_folder("sd3"), tmp_path / "base")
    shutil.rmtree(folder / "text_encoder_3")
    base = open_base(ModelConfig(base=str(folder), device="cpu"), TextConfig(t5_attention_mask=True))
    with pytest.raises(ConfigError, match=r"has no T5 \(text_encoder_3\)"):
        base.load_encoders()


def test_a_run_with_a_batch_of_two_lengths_and_samples(tmp_path):
    def config(*, masked):
        return make_config(
            "flux", tmp_path, text={"t5_attention_mask": masked}, training={"steps": 2, "save_every": 2, "batch_size": 2},
            validation={"prompts": ["a cat"], "sample_every": 2, "sample_steps": 1, "width": 64, "height": 64},
        )  # fmt: skip

    assert train(config(masked=True), SilentHost()).state == "finished"
    with pytest.raises(LoomError, match=r"text\.t5_attention_mask"):
        train(config(masked=False), SilentHost())
