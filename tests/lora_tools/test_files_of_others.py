"""LoRA files as other programs write them are read, or refused with the true reason."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer import families
from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.families.common.lora_names import owners
from lora_loom.trainer.lora.host_formula import (
    group_by_module,
    low_rank_change,
    needs_base,
    refuse_broken,
    weight_change,
)
from lora_loom.trainer.lora.patch import match_modules
from lora_loom.trainer.lora.state_dict import check_fits
from lora_loom.trainer.lora_tools.convert import convert
from lora_loom.trainer.lora_tools.factors import open_lora
from lora_loom.trainer.lora_tools.inspect import inspect, kind_of, to_text
from lora_loom.trainer.lora_tools.merge_base import plan
from lora_loom.trainer.lora_tools.resize import Keep, resize
from lora_loom.trainer.storage.tensor_file import TensorFile
from lora_loom.trainer.sweep.loras import swept_lora
from tests.conftest import HOST_FIXTURES

RECORDED = load_file(str(HOST_FIXTURES / "adapters.safetensors"))
PRODUCTS = [
    "lora", "lora-conv", "lora-tucker", "loha", "loha-conv", "loha-tucker", "lokr-full", "lokr-factored", "lokr-both",
    "lokr-conv", "diff", "diff-conv", "diff-over-lora",
]  # fmt: skip
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
    assert owners(names, {key: 15360}) == ["chroma", "flux"]


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


@pytest.mark.parametrize("kind", ["oft_diag", "lokr_t2", "reshape_weight"])
def test_kinds_that_are_not_read_are_named_as_such(tmp_path, kind):
    key = "transformer.transformer_blocks.0.attn.to_q"
    path = write(tmp_path, {f"{key}.{kind}": torch.ones(4, 4)})
    for read in (open_lora, inspect, lambda path: plan([(path, 1.0)], {})):
        with pytest.raises(ModelFileError, match=rf"a kind of adapter that is not read here \({kind}\)"):
            read(path)


CONTROL = ("img_in.lora_A.weight", "img_in.lora_B.weight", "img_in.lora_B.bias", "single_blocks.0.norm.key_norm.scale")
USO = [f"{block}.processor.{name}.{side}.weight" for block, name in (("double_blocks.18", "qkv_lora2"), ("single_blocks.37", "qkv_lora")) for side in ("up", "down")]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (CONTROL, r"\(a control LoRA of Black Forest Labs for Flux\). It widens the input of the network"),
        (USO, r"\(a LoRA of USO in its own names\). It works together with USO's reference images"),
    ],
)
def test_files_that_comfyui_renames_are_refused_by_what_they_are(tmp_path, keys, reason):
    path = write(tmp_path, dict.fromkeys(keys, torch.ones(4, 4)))
    for read in (open_lora, lambda path: plan([(path, 1.0)], {})):
        with pytest.raises(ModelFileError, match=reason):
            read(path)
    tensors = load_file(path)
    for check in (lambda: match_modules(None, tensors), lambda: check_fits(tensors, [], NetworkConfig())):
        with pytest.raises(ModelFileError, match=reason):
            check()
    assert reason[2:20] in to_text(inspect(path), path)


def test_a_boft_is_called_so():
    """Its blocks have one dimension more than OFT's."""
    for shape, kind in (((2, 4, 4), "OFT"), ((3, 2, 4, 4), "BOFT")):
        parts = {"oft_blocks": torch.rand(shape)}
        assert (needs_base(parts), kind_of({"oft_blocks": shape})) == (kind, kind.lower())
        with pytest.raises(ModelFileError, match=f"of the kind {kind} depends"):
            low_rank_change(parts)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"oft_blocks": (3, 2, 4, 4)}, "is of the kind BOFT, whose change depends"),
        (
            {"oft_blocks": (2, 4, 4)},
            "is of the kind OFT, whose change depends on the base model's weights: merge it into the base",
        ),
        (
            {"a1.weight": (4, 2), "a2.weight": (2, 4), "b1.weight": (4, 2), "b2.weight": (2, 4)},
            "is of the kind GLoRA, whose change",
        ),
        ({"lora_A.weight": (2, 4), "lora_B.weight": (4, 2), "dora_scale": (4, 1)}, "is of the kind DoRA, whose change"),
        ({"w_norm": (4,)}, r"changes a vector \(w_norm \(4,\)\), which a plain LoRA cannot hold"),
        ({"lora_A.weight": (2, 4), "lora_B.weight": (4, 2), "diff_b": (4,)}, r"changes a bias \(diff_b\)"),
    ],
)
def test_what_is_no_product_of_two_matrices_is_refused_by_its_reason(tmp_path, tensors, reason):
    path = write(tmp_path, {f"a.b.{name}": torch.rand(shape) for name, shape in tensors.items()})
    with pytest.raises(ModelFileError, match=reason):
        open_lora(path)
    assert inspect(path).unknown == ()


@pytest.mark.parametrize("case", PRODUCTS)
def test_other_kinds_are_the_lora_of_the_same_change(tmp_path, case):
    """LoHa, LoKr, Tucker forms and full differences, against what ComfyUI computed of them at strength 0.7."""
    parts = {key.removeprefix(f"{case}."): tensor for key, tensor in RECORDED.items() if key.startswith(f"{case}.")}
    base, patched = parts.pop("base"), parts.pop("patched")
    path = write(tmp_path, {f"lora_unet_x.{name}": tensor for name, tensor in parts.items()})
    resize(path, tmp_path / "r.safetensors", Keep(rank=999), "float32")
    made, _ = group_by_module(load_file(str(tmp_path / "r.safetensors")))
    assert set(made["lora_unet_x"]) == {"lora_down.weight", "lora_up.weight", "alpha"}
    change = weight_change(made["lora_unet_x"], base, 0.7)
    assert (change - (patched - base)).norm() / (patched - base).norm() < 5e-6


def test_alpha_of_the_metadata_is_folded_in(tmp_path):
    """As PEFT scales: alpha / rank, patterns before the general value, rsLoRA by the root."""
    keys = [f"transformer.transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k")]
    tensors = {
        f"{key}.{name}": t.clone() for key in keys for name, t in (("lora_A.weight", DOWN), ("lora_B.weight", UP))
    }
    settings = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn.to_k": 2}}
    for rslora, expected in ((False, (2.0, 0.5)), (True, (4.0, 1.0))):
        path = tmp_path / "peft.safetensors"
        metadata = {"lora_adapter_metadata": json.dumps({**settings, "transformer.use_rslora": rslora})}
        save_file(tensors, str(path), metadata)
        assert tuple(open_lora(path).factors(key).scale for key in keys) == expected
        convert(path, tmp_path / "n.safetensors", "native", "flux")
        made = TensorFile(tmp_path / "n.safetensors")
        assert tuple(made.get(f"{key}.alpha").item() / 4 for key in keys) == expected
        assert "lora_adapter_metadata" not in made.metadata
        assert "alpha stands in the metadata only" in to_text(inspect(path), path)


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
