"""One file with all of SD1, SD2 or SDXL: its text encoders and VAE say what those of a diffusers folder with the same weights say."""

import gzip
import json
import re
import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig
from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.families.common.encoder_files import tokenizers
from lora_loom.trainer.families.common.tiny import random_network
from lora_loom.trainer.training.text_encoders import text_skeleton
from tests.families.test_native_files import weights

MERGES = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
WORDS = 2 * 256 + len(MERGES) + 2
PLAIN = {"sd1": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}


def clip(cls, activation, seed):
    config = CLIPTextConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=48, num_hidden_layers=3, num_attention_heads=1, hidden_act=activation,
        max_position_embeddings=77, projection_dim=24, bos_token_id=WORDS - 2, eos_token_id=WORDS - 1,
    )  # fmt: skip
    return random_network(cls, config, seed)


def vae(channels=4, quant=True):
    config = {
        "latent_channels": channels, "block_out_channels": (32, 64), "layers_per_block": 1, "use_quant_conv": quant,
        "use_post_quant_conv": quant, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    return random_network(AutoencoderKL, config, 7)


def original_vae(module, prefix="first_stage_model."):
    """The VAE's tensors under the names of latent diffusion's files."""
    depth, made = len(module.config.block_out_channels), {}
    for key, tensor in module.state_dict().items():
        name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{depth - 1 - int(found[1])}", key)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        for old, new in (
            ("down_blocks", "down"), ("mid_block.attentions.0", "mid.attn_1"), ("resnets", "block"), ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"), ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"), ("to_out.0", "proj_out"),
            ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
        ):  # fmt: skip
            name = name.replace(old, new)
        attention = "attn_1" in name and tensor.ndim == 2
        made[prefix + name] = tensor[..., None, None].contiguous() if attention else tensor
    return made


def plain_clip(module, prefix):
    inner = {key.removeprefix("text_model."): tensor for key, tensor in module.state_dict().items()}
    made = {f"{prefix}text_model.{key}": tensor for key, tensor in inner.items() if not key.startswith("text_proj")}
    return made | {f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip(module, prefix):
    """The text model under open_clip's names: query, key and value in one tensor, the projection from the right."""
    tensors = {key.removeprefix("text_model."): tensor for key, tensor in module.state_dict().items()}
    made = {
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"], "logit_scale": torch.tensor(4.6),
        "ln_final.weight": tensors["final_layer_norm.weight"], "ln_final.bias": tensors["final_layer_norm.bias"],
    }  # fmt: skip
    if "text_projection.weight" in tensors:
        made["text_projection"] = tensors["text_projection.weight"].T.contiguous()
    for i in range(module.config.num_hidden_layers):
        old, new = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for suffix in ("weight", "bias"):
            pieces = [tensors[f"{old}self_attn.{x}_proj.{suffix}"] for x in "qkv"]
            made[f"{new}attn.in_proj_{suffix}"] = torch.cat(pieces)
            for a, b in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj")):  # fmt: skip
                made[f"{new}{b}.{suffix}"] = tensors[f"{old}{a}.{suffix}"]
    return {prefix + key: tensor for key, tensor in made.items()}


def tokenizer_folder(path, pad):
    path.mkdir(parents=True)
    tokenizers.write_files(MERGES, path)
    marks = {"bos_token": tokenizers.START, "eos_token": tokenizers.END, "unk_token": tokenizers.END, "pad_token": pad}
    settings = {**marks, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def files(request, tmp_path_factory):
    """(toy, whole checkpoint, diffusers folder with encoders of the same weights, folder with the tokenizer)."""
    toy, folder = request.param, tmp_path_factory.mktemp(request.param) / "folder"
    newer = toy == "sd2"
    images, first = vae(), clip(CLIPTextModel, "gelu" if newer else "quick_gelu", 1)
    images.save_pretrained(folder / "vae")
    first.save_pretrained(folder / "text_encoder")
    tokenizer_folder(folder / "tokenizer", "!" if newer else tokenizers.END)
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in weights(toy).items()} | original_vae(images)
    tensors |= open_clip(first, "cond_stage_model.model.") if newer else plain_clip(first, PLAIN[toy])
    if toy == "sdxl":
        second = clip(CLIPTextModelWithProjection, "gelu", 2)
        second.save_pretrained(folder / "text_encoder_2")
        tokenizer_folder(folder / "tokenizer_2", "!")
        tensors |= open_clip(second, "conditioner.embedders.1.model.")
    file = folder.parent / "whole.safetensors"
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, file)
    return toy, file, folder, folder / "tokenizer"


def base(file, **settings):
    return open_base(ModelConfig(base=str(file), device="cpu", **settings))


def test_a_file_encodes_as_the_folder_with_its_weights(files):
    _, file, folder, words = files
    whole, apart = base(file, tokenizers=str(words)), base(file, encoders=str(folder))
    whole.check_encoders()
    mine, theirs = whole.load_encoders(), apart.load_encoders()
    for text, expected in zip(*(one.text.encode(["cat dog", "dog " * 90, ""]) for one in (mine, theirs)), strict=True):
        assert text.keys() == expected.keys()
        assert all(torch.allclose(text[name], expected[name], atol=1e-5) for name in text)
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = theirs.image.encode(pixels)
    assert torch.equal(mine.image.encode(pixels), latents)
    assert torch.equal(mine.image.decode(latents), theirs.image.decode(latents))


def test_the_structure_for_a_lora_of_the_text_encoders_is_read_off_the_file(files):
    _, file, folder, words = files
    mine, theirs = (text_skeleton(one) for one in (base(file, tokenizers=str(words)), base(file, encoders=str(folder))))
    shapes = [{key: tuple(t.shape) for key, t in one.state_dict().items()} for one in (mine, theirs)]
    assert shapes[0] == shapes[1]
    assert all(tensor.is_meta for tensor in mine.state_dict().values())


def test_the_identity_follows_the_weights_of_each_part(files, tmp_path):
    toy, file, _, words = files
    before = base(file, tokenizers=str(words)).encoder_identity()
    for part, changed in (("first_stage_model.decoder.conv_out.bias", "vae"), (_a_weight(toy), "text")):
        tensors = load_file(file)
        tensors[part] = tensors[part] + 1
        other = tmp_path / f"{changed}.safetensors"
        save_file(tensors, other)
        after = base(other, tokenizers=str(words)).encoder_identity()
        assert (after.vae != before.vae, after.text != before.text) == (changed == "vae", changed == "text")


def _a_weight(toy):
    stem = "cond_stage_model.model.ln_final" if toy == "sd2" else f"{PLAIN[toy]}text_model.final_layer_norm"
    return f"{stem}.weight"


def test_a_lost_tensor_is_named(files, tmp_path):
    toy, file, _, words = files
    tensors = load_file(file)
    del tensors[_a_weight(toy)]
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(ModelFileError, match=r"1 missing \((text_model\.)?(final_layer_norm|ln_final)\.weight\)"):
        base(tmp_path / "broken.safetensors", tokenizers=str(words)).load_encoders()


def test_without_a_tokenizer_all_three_places_are_named(files, monkeypatch, tmp_path):
    _, file, _, _ = files
    monkeypatch.setattr(tokenizers, "PACKAGE", tmp_path)
    monkeypatch.setattr(tokenizers, "_open_clip_file", lambda: None)
    with pytest.raises(ModelFileError, match=r"ComfyUI folder or a diffusers folder.*open_clip_torch"):
        base(file).check_encoders()
    with pytest.raises(ModelFileError, match=r"model\.tokenizers: .* holds no CLIP tokenizer"):
        base(file, tokenizers=str(tmp_path)).check_encoders()


def test_the_pack_inside_a_comfyui_reads_its_tokenizer(files, monkeypatch, tmp_path):
    _, file, _, words = files
    shutil.copytree(words, tmp_path / "comfy" / "sd1_tokenizer")
    monkeypatch.setattr(tokenizers, "PACKAGE", tmp_path / "custom_nodes" / "lora-loom")
    base(file).check_encoders()
    assert len(base(file).load_encoders().text.encode(["cat"])) == 1


def test_the_vocabulary_of_open_clip_is_read_where_nothing_else_is(files, monkeypatch, tmp_path):
    _, file, folder, _ = files
    lines = ["heading", *(" ".join(pair) for pair in MERGES)]
    with gzip.open(tmp_path / "vocabulary.gz", "wt", encoding="utf-8") as written:
        written.write("\n".join(lines))
    monkeypatch.setattr(tokenizers, "PACKAGE", tmp_path)
    monkeypatch.setattr(tokenizers, "_open_clip_file", lambda: tmp_path / "vocabulary.gz")
    mine, theirs = base(file).load_encoders(), base(file, encoders=str(folder)).load_encoders()
    [text], [expected] = (one.text.encode(["a cat, dog"]) for one in (mine, theirs))
    assert all(torch.allclose(text[name], expected[name], atol=1e-5) for name in text)


def test_the_size_of_clips_vocabulary():
    """49,408 words: two for each byte, one for each merge, two marks; "!" is the first and "a" at a word's end has number 320."""
    assert 2 * 256 + tokenizers.MERGES + 2 == 49408
    letters = list(tokenizers._letters())
    assert len(set(letters)) == 256
    assert letters[0] == "!"
    assert 256 + letters.index("a") == 320


@pytest.mark.parametrize("layout", ["original", "diffusers", "folder", "folder of a model"])
def test_another_vae(files, layout, tmp_path):
    _, file, folder, words = files
    other = random_network(AutoencoderKL, dict(vae().config), 8)
    path = tmp_path / "other.safetensors"
    if layout == "original":
        save_file({key: tensor.clone() for key, tensor in original_vae(other, "").items()}, path)
    elif layout == "diffusers":
        save_file(other.state_dict(), path)
    else:
        path = tmp_path / "model"
        other.save_pretrained(path if layout == "folder" else path / "vae")
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = other.encode(pixels).latent_dist.mode()
    for settings in ({"tokenizers": str(words)}, {"encoders": str(folder)}):
        plain, given = base(file, **settings), base(file, vae=str(path), **settings)
        given.check_encoders()
        assert torch.equal(given.load_encoders().image.encode(pixels), expected)
        assert given.encoder_identity().vae != plain.encoder_identity().vae
        assert given.encoder_identity().text == plain.encoder_identity().text


def test_a_vae_of_another_family_is_refused_before_anything_is_read(files, tmp_path):
    _, file, _, words = files
    save_file(vae(channels=16, quant=False).state_dict(), tmp_path / "vae.safetensors")
    with pytest.raises(ModelFileError, match=r"model\.vae: .* latents of 16 channels, this model has 4"):
        base(file, vae=str(tmp_path / "vae.safetensors"), tokenizers=str(words)).check_encoders()
    save_file({"a": torch.ones(1)}, tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError, match="holds no VAE"):
        base(file, vae=str(tmp_path / "none.safetensors"), tokenizers=str(words)).check_encoders()


@pytest.mark.parametrize(("name", "says"), [("vae.ckpt", "is a pickle"), ("gone.safetensors", "does not exist")])
def test_a_vae_that_is_not_opened(files, name, says, tmp_path):
    with pytest.raises(ModelFileError, match=rf"model\.vae: .*{says}"):
        base(files[1], vae=str(tmp_path / name))


def test_a_checkpoint_without_its_vae_asks_for_one(files, tmp_path):
    _, file, _, words = files
    kept = {key: tensor for key, tensor in load_file(file).items() if not key.startswith("first_stage_model.")}
    save_file(kept, tmp_path / "half.safetensors")
    with pytest.raises(ModelFileError, match=r"holds no VAE: set model\.vae"):
        base(tmp_path / "half.safetensors", tokenizers=str(words)).check_encoders()
