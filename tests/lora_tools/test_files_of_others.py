"""LoRA files as other programs write them are read, or refused with the true reason."""

import pytest
import torch
from safetensors.torch import save_file

from lora_loom.trainer import families
from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.families.common.lora_names import owners
from lora_loom.trainer.lora.host_formula import group_by_module, refuse_broken
from lora_loom.trainer.lora_tools.convert import convert
from lora_loom.trainer.lora_tools.factors import open_lora
from lora_loom.trainer.lora_tools.inspect import inspect
from lora_loom.trainer.lora_tools.merge_base import plan
from lora_loom.trainer.sweep.run import swept_lora

DOWN, UP = torch.ones(4, 640), torch.ones(640, 4)


def write(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, str(path))
    return path


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        ("_lora.down.weight", "_lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ],
)
def test_spellings_that_comfyui_takes(tmp_path, down, up):
    key = "transformer.transformer_blocks.0.attn.to_q"
    path = write(tmp_path, {key + down: DOWN, key + up: UP})
    lora = open_lora(path)
    assert list(lora.modules) == [key]
    assert torch.equal(lora.factors(key).up_OR, UP)
    assert inspect(path).unknown == ()
    modules, unknown = group_by_module({key + down: DOWN, key + up: UP})
    assert (list(modules), unknown) == ([key], [])


def test_bare_names_of_flux():
    names = {name: family.lora_names for name, family in families.all_families().items()}
    key = "single_transformer_blocks.0.proj_out"
    assert owners(names, {key: 15360}) == ["flux"]


def test_an_adapter_as_peft_saves_it_for_a_unet(tmp_path):
    key = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    path = write(tmp_path, {f"{key}.lora_A.weight": DOWN, f"{key}.lora_B.weight": UP})
    done = convert(path, tmp_path / "n.safetensors", "native", "sdxl")
    assert (done.family, done.modules_after) == ("sdxl", 1)


def test_bundled_embeddings_are_left_out_and_named(tmp_path, caplog):
    key = "lora_transformer_single_transformer_blocks_0_attn_to_q"
    tensors = {
        f"{key}.lora_down.weight": DOWN,
        f"{key}.lora_up.weight": UP,
        "bundle_emb.my token.clip_l": torch.ones(1, 8),
    }
    assert list(open_lora(write(tmp_path, tensors)).modules) == [key]
    assert "1 bundled embeddings are left out, as ComfyUI does: bundle_emb.my token.clip_l" in caplog.text
    assert group_by_module(tensors)[1] == []


@pytest.mark.parametrize("kind", ["diff", "oft_blocks", "w_norm", "hada_t1", "lora_mid.weight"])
def test_kinds_that_are_not_read_are_named_as_such(tmp_path, kind):
    key = "transformer.transformer_blocks.0.attn.to_q"
    path = write(tmp_path, {f"{key}.{kind}": torch.ones(4, 4)})
    for read in (open_lora, inspect, lambda path: plan([(path, 1.0)], {})):
        with pytest.raises(ModelFileError, match=rf"a kind of adapter that is not read here \({kind}\)"):
            read(path)


@pytest.mark.parametrize("part", ["lora_A.weight", "alpha"])
def test_nan_is_refused_before_the_first_cell(tmp_path, part):
    key = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{key}.lora_A.weight": DOWN, f"{key}.lora_B.weight": UP, f"{key}.alpha": torch.tensor(4.0)}
    refuse_broken(tensors, "a")
    path = write(tmp_path, tensors | {f"{key}.{part}": tensors[f"{key}.{part}"] * float("nan")})
    with pytest.raises(
        ModelFileError, match=rf"a\.safetensors: 1 tensors have NaN or infinite numbers, first {key}\.{part}"
    ):
        swept_lora(path, "a")
