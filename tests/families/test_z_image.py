"""Z-Image's own ways: its clock and sign, its template, texts padded to 32 tokens, Turbo by its name, relatives refused."""

import importlib.util
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from lora_loom.trainer import families
from lora_loom.trainer.families import z_image
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.families.common.text.chat_text import ChatText
from lora_loom.trainer.families.common.tiny import random_network
from scripts import toy_texts
from scripts.host_toys import toy_tensor
from tests.conftest import HOST_FIXTURES, tiny_folder

FAMILY = families.get("z_image")


@pytest.fixture(scope="module")
def tiny():
    return FAMILY.tiny()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_diffusers_own_network_answers_with_the_other_sign_on_the_other_clock(tiny):
    from diffusers import ZImageTransformer2DModel

    plain = ZImageTransformer2DModel.from_pretrained(tiny_folder("z_image") / "transformer").eval()
    [text] = tiny.encoders.text.encode(["cat"])
    noisy, sigma = noise(1, 16, 8, 8), torch.tensor([0.9])
    with torch.no_grad():
        theirs = plain([noisy[0].unsqueeze(1)], 1 - sigma, [text["text"]], return_dict=False)[0][0].squeeze(1)
    mine = tiny.denoiser.predict(noisy, sigma, FAMILY.condition([text], [], 1.0))[0]
    assert torch.allclose(mine, -theirs, atol=1e-6)


def test_texts_of_unequal_length_do_not_see_the_padding(tiny):
    """One text fits 32 tokens and the other does not, so that what stands behind the first is a token's worth of padding, masked."""
    texts = tiny.encoders.text.encode(["cat", "a very long prompt about dogs " * 3])
    noisy, sigma = noise(2, 16, 8, 8), torch.tensor([0.3, 0.7])
    together = tiny.denoiser.predict(noisy, sigma, FAMILY.condition(texts, [], 1.0))
    for i, text in enumerate(texts):
        alone = tiny.denoiser.predict(noisy[i : i + 1], sigma[i : i + 1], FAMILY.condition([text], [], 1.0))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


def test_the_template_is_the_one_of_diffusers_pipeline():
    """Its pipeline has the tokenizer fill in the chat template, whose user turn is this, the thinking left open."""
    folder = Path(importlib.util.find_spec("diffusers").origin).parent / "pipelines" / "z_image"
    words = (folder / "pipeline_z_image.py").read_text(encoding="utf-8")
    assert "add_generation_prompt=True" in words
    assert "enable_thinking=True" in words
    assert "hidden_states[-2]" in words
    assert z_image.TEMPLATE.format("x") == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"


class Fixed:
    """A tokenizer that gives the fixture's tokens."""

    seen: ClassVar[list[str]] = []
    model_max_length, pad_token_id = 99, 0

    def __call__(self, wordings, **_):
        self.seen.extend(wordings)
        return {"input_ids": torch.tensor([toy_texts.BEFORE])}


@pytest.mark.parametrize("name", toy_texts.QWEN3_READS)
def test_qwen3_says_what_comfyuis_does(name):
    from transformers import Qwen3Config, Qwen3Model

    model = random_network(Qwen3Model, Qwen3Config(**toy_texts.QWEN3, head_dim=128), 0)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            tensor.copy_(toy_tensor(f"model.{key}", tuple(tensor.shape)))
    layers, padding = toy_texts.QWEN3_READS[name]
    length, kind = len(toy_texts.BEFORE) + padding, "tokens" if padding else "none"
    text = ChatText(model, Fixed(), template="<{}>", max_tokens=length, layers=layers, padding=kind)
    [mine] = text.encode(["p"])
    expected = load_file(HOST_FIXTURES / "texts.safetensors")[f"qwen3.{name}"]
    assert mine["text"].shape == expected.shape
    assert (mine["text"] - expected).norm() / expected.norm() < 1e-5
    assert Fixed.seen[-1] == "<p>"


@pytest.mark.parametrize(("name", "variant"), [("Z-Image-Turbo", "z-image-turbo"), ("Z-Image", "z-image")])
def test_turbo_is_told_by_its_name(name, variant, tmp_path):
    shutil.copytree(tiny_folder("z_image"), tmp_path / name)
    source = open_source(str(tmp_path / name))
    assert families.choose("auto", "auto", source)[1] == variant
    assert families.choose("auto", "z-image-turbo", source)[1] == "z-image-turbo", "what is asked for comes first"


@pytest.mark.parametrize("key", sorted(z_image.OTHERS))
def test_relatives_with_other_inputs_are_not_taken_for_it(key, tiny):
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny.denoiser.module.state_dict().items()}
    assert FAMILY.detect(shapes) == "z-image"
    assert FAMILY.detect({**shapes, key: (8, 8)}) is None
