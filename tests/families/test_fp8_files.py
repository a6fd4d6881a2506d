"""Scaled fp8 files as ComfyUI has them, of every family: each weight's factor is found again, whatever it is split into."""

import pytest
import torch
from safetensors.torch import save_file

from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.families.common.family import Loading
from scripts.host_toys import HEADLESS, TOYS, toy_inputs

from .test_native_files import load, toy_conditioning, weights


def scaled(tensors, style):
    """(a scaled fp8 file of these weights, what it means): factors of all matrices that only Linear layers hold."""
    stored, meant = {}, {}
    for key, tensor in tensors.items():
        if tensor.ndim != 2 or not key.endswith(".weight") or "norm" in key:
            stored[key] = meant[key] = tensor
            continue
        factor = tensor.abs().max() / 448
        stored[key] = (tensor / factor).to(torch.float8_e4m3fn)
        meant[key] = stored[key].float() * factor
        stem = key.removesuffix(".weight")
        if style == "older":
            stored |= {f"{stem}.scale_weight": factor.reshape(1), f"{stem}.scale_input": torch.ones(1)}
        else:
            stored |= {f"{stem}.weight_scale": factor, f"{stem}.comfy_quant": torch.zeros(3, dtype=torch.uint8)}
    if style == "older":
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return stored, meant


@pytest.mark.parametrize("toy_name", HEADLESS)
@pytest.mark.parametrize("style", ["older", "newer"])
def test_scaled_fp8_files(tmp_path, toy_name, style):
    """Split q, k and v have their fused weight's factor; packing on top multiplies it in."""
    toy = TOYS[toy_name]
    stored, meant = scaled(weights(toy_name), style)
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("stored", "meant")}
    save_file({f"model.diffusion_model.{key}": tensor for key, tensor in stored.items()}, paths["stored"])
    save_file(meant, paths["meant"])
    loading = Loading(dtype=None, device=torch.device("cpu"), compute_dtype=torch.float32)
    (family, found), (_, expected) = (load(path, toy.variant, loading) for path in paths.values())
    assert sum(getattr(part, "scale", None) is not None for part in found.module.modules()) > 20
    inputs = toy_inputs(toy)
    cond = toy_conditioning(toy, family, inputs)
    predicted = [one.predict(inputs["latents"], inputs["sigma"], cond) for one in (found, expected)]
    assert (predicted[0] - predicted[1]).norm() / predicted[1].norm() < 1e-5


def test_scaled_fp8_packed_again(tmp_path):
    path = tmp_path / "base.safetensors"
    stored, meant = scaled(weights("flux-dev"), "newer")
    save_file(stored, path)
    loading = Loading(dtype=torch.float32, device=torch.device("cpu"), compute_dtype=torch.float32, quantize="int8")
    _, packed = load(path, loading=loading)
    weight = packed.module.get_submodule("transformer_blocks.0.attn.to_q").weight
    rows = meant["double_blocks.0.img_attn.qkv.weight"][:128]
    assert ((weight.dequantize() - rows).norm() / rows.norm()).item() < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight": lambda t: t.to(torch.int8)},
            r"attn\.qkv\.weight is quantized to int8, .* give the bf16, fp16 or fp8 file",
        ),
        ({"weight_scale": lambda t: torch.ones(384, 1)}, r"qkv\.weight_scale holds 384 factors"),
    ],
)
def test_packed_files_that_cannot_be_trained_on(tmp_path, change, message):
    tensors, stem = weights("sd3"), "joint_blocks.0.x_block.attn.qkv"
    for name, made in change.items():
        tensors[f"{stem}.{name}"] = made(tensors[f"{stem}.weight"])
    save_file(tensors, tmp_path / "base.safetensors")
    with pytest.raises(ModelFileError, match=message):
        load(tmp_path / "base.safetensors")
