"""How texts are read: CLIP's chunks and layers as ComfyUI reads them (recorded), Lumina2's system prompt; all of it is part
of what the cache knows a text by."""

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lora_loom.trainer import families
from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig, TextConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.families import sd, sd3
from lora_loom.trainer.families.common.encoders import ClipText, T5Text, penultimate, side_by_side
from lora_loom.trainer.families.common.family import stack_repeating
from lora_loom.trainer.families.common.text.lumina2_text import SYSTEM_PROMPT
from lora_loom.trainer.families.common.text.prompt_weights import escaped, segments
from lora_loom.trainer.families.common.tiny import random_network, tiny_t5
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.types import Geometry
from scripts import toy_texts
from scripts.host_toys import toy_tensor
from tests.conftest import HOST_FIXTURES, SilentHost, make_config, pictures, tiny_folder

TEXTS = HOST_FIXTURES / "texts.safetensors"


def toy_clip(activation, layers=None):
    """transformers' class with the weights that ComfyUI's had when the fixture was recorded."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    settings = {**toy_texts.CLIP, "hidden_act": activation}
    settings["num_hidden_layers"] = layers or settings["num_hidden_layers"]
    module = random_network(CLIPTextModelWithProjection, CLIPTextConfig(**settings), 0)
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            tensor.copy_(toy_tensor(key, tuple(tensor.shape)))
    return module


READERS = {
    "sd1": {},
    "sd1-skip2": {"skip": 2},
    "sd2": {"skip": 2},
    "sdxl-l": {"skip": 2, "normalise": False},
    "sdxl-g": {"skip": 2, "normalise": False},
    "sdxl-g-skip3": {"skip": 3, "normalise": False},
}


@pytest.mark.parametrize("name", list(toy_texts.CLIPS))
def test_clip_reads_long_prompts_as_comfyui_does(name):
    """The same chunks of tokens, hidden states of the same layer, the same pooled vector."""
    case, recorded = toy_texts.CLIPS[name], load_file(TEXTS)
    clip = ClipText(toy_clip(case.activation), toy_texts.Letters(case.pad), max_tokens=77, chunks=3, **READERS[name])
    lengths = []
    for label, prompt in toy_texts.PROMPTS.items():
        expected = {part: recorded[f"clip.{name}.{label}.{part}"] for part in ("tokens", "hidden", "pooled")}
        assert torch.equal(clip.tokens(prompt), expected["tokens"])
        [hidden], [pooled] = clip([prompt])
        assert torch.allclose(hidden, expected["hidden"], atol=2e-5)
        if "sdxl" in name:
            assert torch.allclose(pooled, expected["pooled"], atol=2e-5)
        lengths.append(len(hidden))
    assert lengths == [77, 154, 231]


@pytest.mark.parametrize("name", list(toy_texts.CLIPS))
def test_weights_are_read_as_comfyui_does(name):
    case, recorded = toy_texts.CLIPS[name], load_file(TEXTS)
    how = {"max_tokens": 77, "chunks": 3, **READERS[name]}
    clip, literal = (
        ClipText(toy_clip(case.activation), toy_texts.Letters(case.pad), weighted=weighted, **how)
        for weighted in (True, False)
    )
    for label, prompt in toy_texts.WEIGHTED.items():
        expected = {part: recorded[f"clip.{name}.{label}.{part}"] for part in ("tokens", "hidden")}
        assert torch.equal(clip.tokens(prompt), expected["tokens"]), label
        [hidden], _ = clip([prompt])
        assert torch.allclose(hidden, expected["hidden"], atol=2e-5), label
        assert not torch.equal(literal.tokens(prompt), expected["tokens"])
        assert torch.equal(clip.tokens(escaped(prompt.replace("\\", ""))), literal.tokens(prompt.replace("\\", "")))
    assert torch.equal(clip(["a cat"])[0][0], literal(["a cat"])[0][0])


def test_weights_have_a_gradient_and_a_batch_is_each_alone():
    clip = penultimate(toy_clip("gelu"), toy_texts.Letters(0), chunks=3, weighted=True)
    prompts = [*toy_texts.WEIGHTED.values(), "a cat"]
    together, _ = clip.with_gradient(prompts)
    for prompt, mine in zip(prompts, together, strict=True):
        assert torch.allclose(clip([prompt])[0][0], mine.detach(), atol=1e-6)
    clip.module.requires_grad_(True)
    weight = clip.module.text_model.encoder.layers[0].mlp.fc1.weight
    gradients = [
        torch.autograd.grad(clip.with_gradient([p])[0][0].sum(), weight)[0] for p in ("a (cat:1)", "a (cat:3)")
    ]
    assert not torch.allclose(*gradients)


@given(st.text(alphabet="ab ():1.\\", max_size=24))
def test_an_escaped_prompt_is_one_segment_of_itself(prompt):
    plain = prompt.replace("\\", "")
    assert "".join(text for text, _ in segments(escaped(plain))) == plain
    assert {weight for _, weight in segments(escaped(plain))} <= {1.0}


def test_a_batch_of_prompts_is_each_prompt_alone():
    clip = penultimate(toy_clip("gelu"), toy_texts.Letters(0), chunks=3)
    together, pooled = clip(list(toy_texts.PROMPTS.values()))
    for prompt, hidden, vector in zip(toy_texts.PROMPTS.values(), together, pooled, strict=True):
        [alone], [mine] = clip([prompt])
        assert torch.allclose(alone, hidden, atol=1e-6)
        assert torch.allclose(mine, vector, atol=1e-6)


def test_fewer_chunks_cut_the_end_off():
    short, long = (ClipText(toy_clip("gelu"), toy_texts.Letters(), max_tokens=77, chunks=n) for n in (1, 3))
    prompt = toy_texts.PROMPTS["longer"]
    assert torch.equal(short.tokens(prompt), long.tokens(prompt)[:1])
    assert torch.allclose(short([prompt])[0][0], long([prompt])[0][0][:77], atol=1e-6)


def test_a_cut_sd2_encoder_gives_the_layer_that_the_whole_one_has():
    """diffusers keeps 23 of 24 layers; skipping counts from the whole network's end, as in ComfyUI."""
    whole = toy_clip("gelu", 24)
    cut = toy_clip("gelu", 23)
    text = {}
    for module in (whole, cut):
        for wanted in (0, 2, 3):
            skip = sd._skip(module, "sd2", wanted)
            clip = ClipText(module, toy_texts.Letters(0), max_tokens=77, skip=skip)
            text[id(module), wanted] = clip(["a cat"])[0][0]
    for wanted in (0, 2, 3):
        assert torch.allclose(text[id(whole), wanted], text[id(cut), wanted], atol=1e-6)
    assert torch.equal(text[id(cut), 0], text[id(cut), 2])
    assert not torch.allclose(text[id(cut), 2], text[id(cut), 3], atol=1e-3)
    with pytest.raises(ConfigError, match="lacks the last layer; use 2 or more"):
        sd._skip(cut, "sd2-v", 1)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_unequal_texts_batch_as_cross_attention_sees_them(name):
    """A text that is repeated to its neighbour's length gives what it gives alone."""
    family = families.get(name)
    tiny = family.tiny()
    source = torch.Generator().manual_seed(0)
    width = 32 if name == "sd" else 64
    texts = [{"text": torch.randn(n, width, generator=source), "pooled": torch.ones(32)} for n in (4, 6)]
    if name == "sd":
        texts = [{"text": text["text"]} for text in texts]
    assert stack_repeating(texts)["text"].shape == (2, 12, width)
    place = Geometry(original=(64, 64), resized=(64, 64), crop_left=0, crop_top=0, target=(64, 64))
    noisy, sigma = torch.randn(2, 4, 8, 8, generator=source), torch.tensor([1.0, 1.0])
    together = tiny.denoiser.predict(noisy, sigma, family.condition(texts, [place, place], 1.0))
    for i, text in enumerate(texts):
        alone = tiny.denoiser.predict(noisy[i : i + 1], sigma[:1], family.condition([text], [place], 1.0))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


def test_sdxl_takes_the_shorter_of_two_encoders():
    first, second = torch.ones(1, 154, 2), torch.ones(1, 77, 3)
    [text] = side_by_side(list(first), list(second))
    assert text.shape == (77, 5)


def test_sd3_reads_long_prompts_as_comfyui_does():
    """Chunks of both CLIPs on features, in T5's width, T5 behind (its tokens are given)."""
    clips = [
        penultimate(toy_clip(toy_texts.CLIPS[name].activation), toy_texts.Letters(toy_texts.CLIPS[name].pad), chunks=3)
        for name in ("sdxl-l", "sdxl-g")
    ]
    text = sd3.SD3Text(clips, lambda prompts: [toy_tensor("t5", toy_texts.T5)] * len(prompts), width=toy_texts.T5[1])
    recorded, lengths = load_file(TEXTS), []
    for (label, _), made in zip(toy_texts.PROMPTS.items(), text.encode(list(toy_texts.PROMPTS.values())), strict=True):
        assert torch.allclose(made["text"], recorded[f"sd3.{label}.hidden"], atol=2e-5)
        lengths.append(len(made["text"]))
    assert lengths == [77 + 6, 154 + 6, 231 + 6]


def test_sd3_in_batches_is_told_its_own_text_and_nothing_behind_it():
    family = families.get("sd3")
    tiny, source = family.tiny(), torch.Generator().manual_seed(0)
    texts = [{"text": torch.randn(n, 72, generator=source), "pooled": torch.ones(64)} for n in (5, 9, 5)]
    noisy, sigma = torch.randn(3, 16, 8, 8, generator=source), torch.tensor([0.2, 0.5, 0.9])
    together = tiny.denoiser.predict(noisy, sigma, family.condition(texts, [], 1.0))
    for row, text in enumerate(texts):
        alone = tiny.denoiser.predict(noisy[row : row + 1], sigma[row : row + 1], family.condition([text], [], 1.0))
        assert torch.allclose(together[row : row + 1], alone, atol=1e-5)
    padded = dict(family.condition(texts, [], 1.0))
    del padded["text_length"]
    assert not torch.allclose(tiny.denoiser.predict(noisy, sigma, padded)[0], together[0], atol=1e-4), "zeros are heard"


def test_t5_has_a_usual_length_and_a_longer_one():
    module, tokenizer = tiny_t5(0, width=16)
    t5 = T5Text(module, tokenizer, max_tokens=16, usual=8)
    short, long = "a cat", "a cat and a dog, with letters as tokens"
    assert [len(text) for text in t5([short, long, short])] == [8, 16, 8]
    assert torch.equal(t5([short])[0], T5Text(module, tokenizer, max_tokens=8)([short])[0])


def test_long_and_short_captions_of_sd3_train_together(tmp_path):
    """And the end of a long caption counts."""
    losses = []
    for ending in ("long", "lost"):
        folder = tmp_path / ending
        shutil.copytree(pictures(), folder / "pics")
        (folder / "pics" / "0.txt").write_text(f"letters are tokens here, so this is {ending}")
        dataset = [{"folder": str(folder / "pics")}]
        config = make_config(
            "sd3", folder, dataset=dataset, training={"batch_size": 2, "steps": 4}, output={"directory": str(folder)}
        )
        host = SilentHost()
        assert train(config, host).state == "finished"
        losses.append([step.loss for step in host.steps])
    assert losses[0] != losses[1]


def identity(family, **text):
    return (
        open_base(ModelConfig(base=str(tiny_folder(family)), device="cpu"), TextConfig(**text)).encoder_identity().text
    )


@pytest.mark.parametrize(
    ("family", "option", "value"),
    [
        ("sd", "clip_skip", 2),
        ("sdxl", "clip_skip", 1),
        ("sd", "clip_tokens", 75),
        ("sd3", "clip_tokens", 75),
        ("lumina2", "system_prompt", ""),
    ],
)
def test_the_cache_tells_ways_of_reading_apart(family, option, value):
    assert identity(family, **{option: value}) != identity(family)
    assert identity(family) == identity(family)


@pytest.mark.parametrize(
    ("family", "option", "value"),
    [
        ("flux", "clip_skip", 2),
        ("lumina2", "clip_tokens", 75),
        ("sd3", "clip_skip", 2),
        ("flux", "prompt_weights", True),
        ("sd", "system_prompt", "x"),
    ],
)
def test_a_choice_that_a_family_has_not_is_refused(family, option, value):
    with pytest.raises(ConfigError, match=rf"text\.{option} = .* would do nothing: {family} .* has none"):
        identity(family, **{option: value})


def test_more_layers_than_there_are():
    base = open_base(ModelConfig(base=str(tiny_folder("sd")), device="cpu"), TextConfig(clip_skip=9))
    with pytest.raises(ConfigError, match=r"text\.clip_skip: this CLIP has 2 layers"):
        base.load_encoders()


def test_lumina2_reads_the_system_prompt_that_is_asked_for():
    texts = {}
    for system in ("auto", "", "Draw well."):
        base = open_base(ModelConfig(base=str(tiny_folder("lumina2")), device="cpu"), TextConfig(system_prompt=system))
        encoder = base.load_encoders().text
        texts[system] = {
            prompt: text["text"] for prompt, text in zip(["cat", ""], encoder.encode(["cat", ""]), strict=True)
        }
        wording = {"auto": SYSTEM_PROMPT + " <Prompt Start> cat", "": "cat"}.get(
            system, "Draw well. <Prompt Start> cat"
        )
        assert encoder.wording("cat") == wording
    assert len({len(made["cat"]) for made in texts.values()}) == 3
    assert all(torch.equal(made[""], texts["auto"][""]) for made in texts.values()), "the empty prompt stands alone"


def test_long_captions_train(tmp_path):
    """Two of six captions take more than one chunk of the toy's 14 tokens; batches of two mix them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, path in enumerate(sorted(pictures().glob("*.png"))):
        (folder / path.name).write_bytes(path.read_bytes())
        caption = "a cat" if number > 1 else "a very long caption indeed " * (number + 1)
        (folder / f"{path.stem}.txt").write_text(caption)
    config = make_config("sdxl", tmp_path, dataset=[{"folder": str(folder)}], training={"steps": 3})
    assert train(config, SilentHost()).state == "finished"
