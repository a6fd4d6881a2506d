"""Lumina2's own ways: fused projections, its clock and sign, its prompts, texts of unequal length."""

import dataclasses

import pytest
import torch

from lora_loom.trainer import families
from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.families import lumina2
from lora_loom.trainer.families.common.family import Loading, pad_and_mask
from lora_loom.trainer.families.common.keymap import to_diffusers
from lora_loom.trainer.families.common.lumina2_network import fuse, split
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.families.common.text.lumina2_text import SYSTEM_PROMPT
from tests.conftest import tiny_folder

CPU = Loading(dtype=None, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def tiny():
    return families.get("lumina2").tiny()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_folder_is_diffusers_own_and_predicts_the_same(tiny):
    """The written folder holds q, k and v apart; diffusers' class on it agrees with the fused network on both signs."""
    from diffusers import Lumina2Transformer2DModel

    plain = Lumina2Transformer2DModel.from_pretrained(tiny_folder("lumina2") / "transformer").eval()
    assert "layers.0.attn.to_k.weight" in plain.state_dict()
    cond = families.get("lumina2").condition(tiny.encoders.text.encode(["cat", "a small dog"]), [], 1.0)
    noisy, sigma = noise(2, 16, 8, 8), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        theirs = plain(noisy, 1 - sigma, cond["text"], cond["text_mask"], return_dict=False)[0]
    mine = tiny.denoiser.predict(noisy, sigma, cond)
    assert ((mine + theirs).norm() / theirs.norm()).item() < 1e-5, "the answer points to the data, ours to the noise"


def test_fusing_and_splitting_are_inverse(tiny):
    state = tiny.denoiser.module.state_dict()
    apart = split(state, 48, 24)
    assert apart["layers.0.attn.to_q.weight"].shape == (48, 48)
    assert apart["layers.0.attn.to_v.weight"].shape == (24, 48)
    assert apart["layers.0.attn.to_v.weight"].untyped_storage().data_ptr() == (
        state["layers.0.attn.to_qkv.weight"].untyped_storage().data_ptr()
    )
    together = fuse(apart)
    assert together.keys() == state.keys()
    assert all(torch.equal(together[key], state[key]) for key in state)


def test_texts_of_unequal_length_do_not_see_the_padding(tiny):
    family = families.get("lumina2")
    prompts = ["cat", "a very long prompt about dogs"]
    texts = tiny.encoders.text.encode(prompts)
    assert texts[0]["text"].shape[0] < texts[1]["text"].shape[0]
    noisy, sigma = noise(2, 16, 8, 8), torch.tensor([0.3, 0.7])
    together = tiny.denoiser.predict(noisy, sigma, family.condition(texts, [], 1.0))
    for i in range(2):
        alone = tiny.denoiser.predict(noisy[i : i + 1], sigma[i : i + 1], family.condition([texts[i]], [], 1.0))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


def test_pad_and_mask():
    made = pad_and_mask([torch.ones(2, 3), torch.ones(4, 3)])
    assert made["text"].shape == (2, 4, 3)
    assert made["text_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert made["text"][0, 2:].abs().sum() == 0


def test_prompts_carry_the_system_prompt_and_the_empty_one_does_not(tiny):
    text = tiny.encoders.text
    assert text.wording("a cat") == SYSTEM_PROMPT + " <Prompt Start> a cat"
    assert text.wording("") == ""
    [empty] = text.encode([""])
    assert empty["text"].shape[0] == 2, "start and end alone"
    bare = lumina2.Lumina2Text(text.module, text.tokenizer, max_tokens=256, system="")
    assert bare.wording("a cat") == "a cat"


def test_the_text_is_the_hidden_state_before_the_last_layer(tiny):
    """As diffusers' pipeline takes it: hidden_states[-2], no final norm, of padded and masked input."""
    text = tiny.encoders.text
    tokens = text.tokenizer(
        [text.wording("a cat")], padding="max_length", max_length=256, truncation=True, return_tensors="pt"
    )
    padded = text.module(tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True)
    length = int(tokens["attention_mask"].sum())
    [mine] = text.encode(["a cat"])
    assert torch.allclose(mine["text"], padded.hidden_states[-2][0, :length], atol=1e-5)


def test_keymap_agrees_with_diffusers_own_converter():
    """diffusers' converter knows only the real widths, 2304 and 768: so on stand-ins of one block each."""
    from diffusers.loaders.single_file_utils import convert_lumina2_to_diffusers

    keymap = lumina2.native_keys(1, 1)
    tensors = {part.native: torch.arange(float(3840 if "qkv" in part.native else 8)) for part in keymap.values()}
    mine = to_diffusers(tensors, keymap)
    theirs = fuse(convert_lumina2_to_diffusers({**tensors, "norm_final.weight": torch.ones(1)}))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_relatives_are_not_taken_for_lumina():
    shapes = {"cap_embedder.1.weight": (8, 8), "noise_refiner.0.adaLN_modulation.1.weight": (8, 8)}
    family = families.get("lumina2")
    assert family.detect(shapes) == "lumina2"
    assert family.detect({**shapes, "clip_text_pooled_proj.0.weight": (8,)}) is None
    assert family.detect({**shapes, "cap_pad_token": (1, 8)}) is None
    z_image = {"cap_embedder.1.weight": (8, 8), "noise_refiner.0.adaLN_modulation.0.weight": (8, 8)}
    assert family.detect(z_image) is None


def test_a_packed_folder_is_refused(tmp_path):
    import shutil

    shutil.copytree(tiny_folder("lumina2"), tmp_path / "packed")
    (tmp_path / "packed" / "transformer" / "quanto_qmap.json").write_text("{}")
    source = open_source(str(tmp_path / "packed"))
    with pytest.raises(ModelFileError, match="quantised with q, k and v apart"):
        families.get("lumina2").load_denoiser(source, "lumina2", CPU)


def test_time_and_sign_worked_by_hand(tiny):
    """At sigma 0.3 the network is told 0.7, and where it answers x0 - noise, the velocity is noise - x0 (algorithm of the
    paper: x_t = t x1 + (1 - t) x0, clock towards the data)."""
    clean, drawn = torch.full((1, 16, 4, 4), 2.0), torch.full((1, 16, 4, 4), -1.0)
    told = {}

    class Network(torch.nn.Module):
        def forward(self, hidden_states, timestep, **_):
            told.update(noisy=hidden_states, time=timestep)
            return (clean - drawn,)

    denoiser = dataclasses.replace(tiny.denoiser, module=Network(), compute_dtype=torch.float32)
    sigma = torch.tensor([0.3])
    noisy = denoiser.objective.add_noise(clean, drawn, sigma)
    assert torch.allclose(noisy, torch.full_like(noisy, 0.7 * 2.0 + 0.3 * -1.0))
    predicted = denoiser.predict(noisy, sigma, {"text": torch.ones(1, 1, 32), "text_mask": torch.ones(1, 1)})
    assert told["time"].tolist() == pytest.approx([0.7])
    assert torch.equal(predicted, torch.full_like(predicted, -3.0))
    assert torch.equal(predicted, denoiser.objective.target(clean, drawn, sigma))
    assert torch.allclose(denoiser.objective.to_denoised(noisy, predicted, sigma), clean)
