"""Krea 2's own ways: what it reads of its text encoder, RAW or Turbo, norms that count from one, a plain error without the class."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_loom.trainer import families
from lora_loom.trainer.diffusion.packing import pack, unpack
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.families import krea2
from lora_loom.trainer.families.common.family import Loading
from lora_loom.trainer.families.common.newer_classes import newer_class
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.families.common.text.qwen_text import TEMPLATE_HEAD, TEMPLATE_TAIL, template_tokens
from lora_loom.trainer.families.common.tiny import random_network
from scripts import toy_texts
from tests.conftest import tiny_folder

FAMILY = families.get("krea2")


@pytest.fixture(scope="module")
def tiny():
    return FAMILY.tiny()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_it_predicts_what_diffusers_pipeline_asks_for(tiny):
    """The pipeline's own packing, places and stack of hidden states, over the same network."""
    from diffusers import Krea2Pipeline

    [text] = tiny.encoders.text.encode(["a cat"])
    noisy, sigma = noise(1, 16, 8, 12), torch.tensor([0.4])
    length = len(text["text"])
    with torch.no_grad():
        theirs = tiny.denoiser.module(
            hidden_states=pack(noisy),
            encoder_hidden_states=text["text"].reshape(1, length, len(krea2.TAPS), -1),
            timestep=sigma,
            position_ids=Krea2Pipeline.prepare_position_ids(length, 4, 6, torch.device("cpu")),
            return_dict=False,
        )[0]
    mine = tiny.denoiser.predict(noisy, sigma, FAMILY.condition([text], [], 1.0))
    assert torch.allclose(mine, unpack(theirs, 8, 12), atol=1e-6)


def test_a_text_is_the_hidden_states_of_diffusers_pipeline(tiny):
    """The pipeline pads in the middle of its template and lets positions skip the padding; without any the states are the same."""
    from diffusers import Krea2Pipeline

    module, tokenizer = tiny.encoders.text.module, tiny.encoders.text.tokenizer
    prompt = "a cat"
    ids = tokenizer([f"{TEMPLATE_HEAD}{prompt}{TEMPLATE_TAIL}"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = module(input_ids=ids, output_hidden_states=True).hidden_states
    head = template_tokens(tokenizer)
    expected = torch.stack([states[i] for i in krea2.TAPS], dim=2)[0, head:].flatten(1)
    [text] = tiny.encoders.text.encode([prompt])
    assert torch.allclose(text["text"], expected, atol=1e-5)
    words = Path(importlib.util.find_spec("diffusers").origin).parent / "pipelines" / "krea2" / "pipeline_krea2.py"
    assert str(krea2.TAPS) in words.read_text(encoding="utf-8")
    assert Krea2Pipeline.__init__.__defaults__


def test_qwen3_vl_reads_a_text_as_qwen3_does():
    """Whose parity with ComfyUI's class is recorded (tests/families/test_z_image.py): the positions of a text are equal on all axes."""
    from transformers import Qwen3Config, Qwen3Model, Qwen3VLConfig, Qwen3VLModel

    sizes = {**toy_texts.QWEN3, "head_dim": 16}
    plain = random_network(Qwen3Model, Qwen3Config(**sizes), 0)
    rope = {
        "rope_type": "default",
        "rope_theta": sizes["rope_theta"],
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen3VLConfig(
        text_config={**sizes, "rope_parameters": rope, "rope_scaling": rope},
        vision_config={**vision, "deepstack_visual_indexes": []},
    )
    seeing = random_network(Qwen3VLModel, config, 1)
    seeing.language_model.load_state_dict(plain.state_dict())
    ids = torch.tensor([toy_texts.BEFORE])
    with torch.no_grad():
        a, b = (model(input_ids=ids, output_hidden_states=True).hidden_states for model in (plain, seeing))
    assert len(a) == len(b) == 5
    for first, second in zip(a, b, strict=True):
        assert torch.allclose(first, second, atol=1e-5)


def test_a_text_beside_a_longer_one_does_not_see_the_padding(tiny):
    texts = tiny.encoders.text.encode(["cat", "a long prompt about dogs"])
    noisy, sigma = noise(2, 16, 8, 8), torch.tensor([0.3, 0.7])
    together = tiny.denoiser.predict(noisy, sigma, FAMILY.condition(texts, [], 1.0))
    for i, text in enumerate(texts):
        alone = tiny.denoiser.predict(noisy[i : i + 1], sigma[i : i + 1], FAMILY.condition([text], [], 1.0))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


@pytest.mark.parametrize(("name", "variant"), [("Krea-2-Turbo", "turbo"), ("Krea-2-Raw", "raw")])
def test_turbo_is_told_by_its_name(name, variant, tmp_path):
    shutil.copytree(tiny_folder("krea2"), tmp_path / name)
    assert families.choose("auto", "auto", open_source(str(tmp_path / name)))[1] == variant


@pytest.mark.parametrize(("said", "variant"), [("true", "turbo"), ("false", "raw")])
def test_a_folder_that_says_whether_it_is_distilled_is_believed_before_its_name(said, variant, tmp_path):
    folder = tmp_path / ("raw" if variant == "turbo" else "turbo")
    shutil.copytree(tiny_folder("krea2"), folder)
    (folder / "model_index.json").write_text(f'{{"_class_name": "Krea2Pipeline", "is_distilled": {said}}}')
    assert families.choose("auto", "auto", open_source(str(folder)))[1] == variant


def test_norms_that_count_from_one_are_wide_in_a_bf16_base():
    source = open_source(str(tiny_folder("krea2")))
    loading = Loading(dtype=torch.bfloat16, device=torch.device("cpu"))
    module = FAMILY.load_denoiser(source, "raw", loading).module
    norms = {name for name, part in module.named_modules() if type(part).__name__ == "Krea2RMSNorm"}
    assert norms
    assert {module.get_submodule(name).weight.dtype for name in norms} == {torch.float32}
    assert {part.weight.dtype for part in module.modules() if isinstance(part, nn.Linear)} == {torch.bfloat16}


def test_a_version_without_the_class_is_named():
    with pytest.raises(
        ConfigError, match=r"diffusers \d+\.\d+.* has no Krea3Transformer2DModel: pip install --upgrade diffusers"
    ):
        newer_class("diffusers", "Krea3Transformer2DModel")
