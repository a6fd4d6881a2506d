"""Ask a real ComfyUI which LoRA keys it accepts and what its toy models predict, and write it down as fixtures.

    COMFYUI_PATH=~/ComfyUI $COMFYUI_PYTHON scripts/record_host_keys.py tests/fixtures/host

Per toy: `<toy>.json` with the native keys and shapes and every accepted LoRA key with the rows it stands for, and
`<toy>.safetensors` with inputs and the denoised output. `adapters.safetensors` holds what the host's own weight
arithmetic makes of one adapter of every kind.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def host() -> Any:
    """Import ComfyUI for the CPU."""
    sys.path.insert(0, str(Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()))
    from comfy.cli_args import args

    args.cpu = True
    import comfy.lora
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils
    import comfy.weight_adapter
    import comfyui_version

    return comfy, comfyui_version.__version__


def build(comfy: Any, toy: Any, toy_tensor: Any) -> Any:
    """The toy through ComfyUI's own class, weights by our law."""
    import torch

    settings = dict(toy.host_config)
    if settings.get("image_model") == "flux":  # older versions know fewer parameters
        from comfy.ldm.flux.model import FluxParams

        known = {"image_model", "dtype", *FluxParams.__dataclass_fields__}
        settings = {name: value for name, value in settings.items() if name in known}
    config = getattr(comfy.supported_models, toy.host_class)(settings)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    if settings.get("z_image_modulation"):
        widen_clock(comfy, model.diffusion_model)
    with torch.no_grad():
        for key, tensor in model.diffusion_model.state_dict().items():
            tensor.copy_(toy_tensor(file_name(key), tuple(tensor.shape)))
    return model.eval()


def widen_clock(comfy: Any, network: Any) -> None:
    """Give a small Z-Image the timestep embedder of the real one, 1024 wide, as diffusers has it for every width."""
    from comfy.ldm.modules.diffusionmodules.mmdit import TimestepEmbedder

    network.t_embedder = TimestepEmbedder(1024, output_size=256, operations=comfy.ops.disable_weight_init)


def file_name(key: str) -> str:
    """The key as original files have it (ComfyUI 0.33 renamed the `.scale` of Flux and its relatives to `.weight` inside)."""
    return re.sub(r"(query_norm|key_norm|distilled_guidance_layer\.norms\.\d+)\.weight$", r"\1.scale", key)


def accepted_keys(comfy: Any, model: Any) -> dict[str, Any]:
    """{LoRA key: [native key, first row, last row + 1] or [native key]}, without the plain native aliases."""
    found = {}
    for key, target in comfy.lora.model_lora_keys_unet(model, {}).items():
        name, offset = (target[0], target[1]) if isinstance(target, tuple) else (target, None)
        native = file_name(name.removeprefix("diffusion_model."))
        found[key] = [native] if offset is None else [native, offset[1], offset[1] + offset[2]]
        if isinstance(target, tuple) and ((offset is not None and offset[0] != 0) or len(target) > 2):
            found[key] = [native, "other"]
    return found


REAL_UNETS = {
    "sd1": {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1},
    "sdxl": {"num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
             "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10},
}  # fmt: skip


def unet_names(comfy: Any) -> dict[str, dict[str, str]]:
    """{model: {diffusers path: original path}} of the real UNets' modules, of every transformer's first block."""

    def first_block(key: str) -> bool:
        return key.endswith(".weight") and not re.search(r"transformer_blocks\.[1-9]", key)

    return {
        name: {
            key.removesuffix(".weight"): native.removesuffix(".weight")
            for key, native in sorted(comfy.utils.unet_to_diffusers(config).items())
            if first_block(key)
        }
        for name, config in REAL_UNETS.items()
    }


def record_clocks(comfy: Any, folder: Path) -> None:
    """What Qwen-Image-Edit 2511 predicts, where this version of the host knows its references' clock."""
    import inspect

    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
    from host_toys import TOYS, toy_inputs, toy_tensor
    from safetensors.torch import save_file

    if "default_ref_method" not in inspect.signature(QwenImageTransformer2DModel.__init__).parameters:
        return
    toy = TOYS["qwen-edit-2511"]
    noisy, denoised = predict(build(comfy, toy, toy_tensor), toy, toy_inputs(toy))
    file = folder / "qwen-edit-2511.safetensors"
    save_file({"noisy": noisy.contiguous(), "denoised": denoised.contiguous()}, file)


TEXT_MODELS = {"sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g")}


def text_keys(comfy: Any) -> dict[str, dict[str, str]]:
    """{model: {LoRA key: tensor of its CLIPs}}, of two layers."""

    class Clips:
        def __init__(self, names: tuple[str, ...]) -> None:
            inner = [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
            stems = [f"{name}.transformer.text_model.encoder.layers.{i}" for name in names for i in (0, 1)]
            self.keys = {f"{stem}.{module}.weight": None for stem in stems for module in inner}

        def state_dict(self) -> dict[str, None]:
            return self.keys

    found = {name: comfy.lora.model_lora_keys_clip(Clips(clips), {}) for name, clips in TEXT_MODELS.items()}
    return {
        name: {key: target for key, target in keys.items() if key.startswith("lora_te")} for name, keys in found.items()
    }


def predict(model: Any, toy: Any, inputs: dict[str, Any], *, grad: bool = False) -> Any:
    """The denoised latents that ComfyUI computes for noisy ones."""
    import torch

    sampling = model.model_sampling
    noise, latents = inputs["noise"].clone(), inputs["latents"].clone()
    film = model.latent_format.latent_dimensions == 3  # a picture is a film of one frame
    noise, latents = (x.unsqueeze(2) if film else x for x in (noise, latents))
    sigma = inputs["sigma"].reshape(-1, *[1] * (noise.ndim - 1))
    noisy = sampling.noise_scaling(sigma, noise, latents)
    conditions = {"cross_attn": inputs["text"], "noise": noisy, "device": torch.device("cpu"), **toy.extra}
    if "pooled" in inputs:
        conditions["pooled_output"] = inputs["pooled"]
    references = [tensor for name, tensor in inputs.items() if name.startswith("reference")]
    if references:
        conditions["reference_latents"] = [latents.unsqueeze(2) if film else latents for latents in references]
    extra = {name: value.cond for name, value in model.extra_conds(**conditions).items()}
    for name, value in extra.items():
        if isinstance(value, list):
            extra[name] = [part.expand(len(noisy), *part.shape[1:]) for part in value]
        if hasattr(value, "shape") and value.ndim and value.shape[0] == 1:
            extra[name] = value.expand(len(noisy), *value.shape[1:])
    with torch.set_grad_enabled(grad):
        denoised = model.apply_model(noisy, inputs["sigma"], **extra)
    return (noisy.squeeze(2), denoised.squeeze(2)) if film else (noisy, denoised)


def adapters(comfy: Any, toy_tensor: Any) -> dict[str, Any]:
    """{"<case>.base": W, "<case>.<suffix>": …, "<case>.patched": W' at strength 0.7} for every kind, Linear and conv."""
    import torch

    recorded = {}
    linear, conv, rank = (12, 8), (12, 8, 3, 3), 4
    lora = {"lora_up.weight": (12, rank), "lora_down.weight": (rank, 8)}
    cases = {
        "lora": (linear, lora),
        "lora-conv": (conv, {"lora_up.weight": (12, rank, 1, 1), "lora_down.weight": (rank, 8, 3, 3)}),
        "dora": (linear, {**lora, "dora_scale": (12, 1)}),
        "dora-input": (linear, {**lora, "dora_scale": (1, 8)}),
        "dora-conv": (
            conv,
            {"lora_up.weight": (12, rank, 1, 1), "lora_down.weight": (rank, 8, 3, 3), "dora_scale": (12, 1, 1, 1)},
        ),
        "loha": (
            linear,
            {"hada_w1_a": (12, rank), "hada_w1_b": (rank, 8), "hada_w2_a": (12, rank), "hada_w2_b": (rank, 8)},
        ),
        "loha-conv": (
            conv,
            {"hada_w1_a": (12, rank), "hada_w1_b": (rank, 72), "hada_w2_a": (12, rank), "hada_w2_b": (rank, 72)},
        ),
        "lokr-full": (linear, {"lokr_w1": (3, 2), "lokr_w2": (4, 4)}),
        "lokr-factored": (linear, {"lokr_w1": (3, 2), "lokr_w2_a": (4, rank), "lokr_w2_b": (rank, 4)}),
        "lokr-both": (
            linear,
            {"lokr_w1_a": (3, rank), "lokr_w1_b": (rank, 2), "lokr_w2_a": (4, rank), "lokr_w2_b": (rank, 4)},
        ),
        "lokr-conv": (conv, {"lokr_w1": (3, 2), "lokr_w2": (4, 4, 3, 3)}),
        "lora-tucker": (
            conv,
            {"lora_up.weight": (12, rank, 1, 1), "lora_down.weight": (rank, 8, 1, 1), "lora_mid.weight": (rank, rank, 3, 3)},
        ),
        "loha-tucker": (
            conv,
            {
                "hada_w1_a": (rank, 12), "hada_w1_b": (rank, 8), "hada_t1": (rank, rank, 3, 3),
                "hada_w2_a": (rank, 12), "hada_w2_b": (rank, 8), "hada_t2": (rank, rank, 3, 3),
            },
        ),
        "diff": (linear, {"diff": linear}),
        "diff-conv": (conv, {"diff": conv}),
        "set": (linear, {"set_weight": linear}),
        "norm": ((12,), {"w_norm": (12,)}),
        "oft": (linear, {"oft_blocks": (3, 4, 4)}),
        "oft-conv": (conv, {"oft_blocks": (3, 4, 4), "rescale": (12, 1, 1, 1)}),
        "boft": ((16, 8), {"oft_blocks": (2, 4, 4, 4)}),
        "boft-rescale": ((16, 8), {"oft_blocks": (2, 4, 4, 4), "rescale": (16, 1)}),
        "glora": (linear, {"a1.weight": (8, rank), "a2.weight": (rank, 8), "b1.weight": (12, rank), "b2.weight": (rank, 8)}),
        "glora-old": (linear, {"a1.weight": (rank, 8), "a2.weight": (8, rank), "b1.weight": (rank, 8), "b2.weight": (12, rank)}),
        "diff-over-lora": (linear, {**lora, "diff": linear}),
    }  # fmt: skip
    for name, (shape, parts) in cases.items():
        tensors = {f"x.{suffix}": toy_tensor(f"{name}.{suffix}", part) for suffix, part in parts.items()}
        if "x.dora_scale" in tensors:
            tensors["x.dora_scale"] = tensors["x.dora_scale"].abs() + 0.5
        tensors["x.alpha"] = torch.tensor(2.5)
        base = toy_tensor(f"{name}.base", shape)
        patches = comfy.lora.load_lora(dict(tensors), {"x": "w"})
        patched = comfy.lora.calculate_weight([(0.7, patches["w"], 1.0, None, None)], base.clone(), "w")
        recorded |= {f"{name}.{key.removeprefix('x.')}": tensor for key, tensor in tensors.items()}
        recorded |= {f"{name}.base": base, f"{name}.patched": patched}
    return recorded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    comfy, version = host()
    sys.path.append(str(HERE))
    from host_toys import HEADLESS, TOYS, toy_inputs, toy_tensor
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name in HEADLESS:
        toy = TOYS[name]
        model = build(comfy, toy, toy_tensor)
        state = model.diffusion_model.state_dict()
        inputs = toy_inputs(toy)
        noisy, denoised = predict(model, toy, inputs)
        record = {
            "comfyui": version,
            "keys": {file_name(key): list(tensor.shape) for key, tensor in sorted(state.items())},
            "accepted": accepted_keys(comfy, model),
            "sigma_min_max": [float(model.model_sampling.sigma_min), float(model.model_sampling.sigma_max)],
        }
        (folder / f"{name}.json").write_text(json.dumps(record, indent=0, sort_keys=True) + "\n")
        save_file({"noisy": noisy.contiguous(), "denoised": denoised.contiguous()}, folder / f"{name}.safetensors")
        print(
            f"{name}: {len(state)} tensors, {len(record['accepted'])} accepted keys, |denoised| {denoised.norm():.3f}"
        )
    record_clocks(comfy, folder)
    save_file(adapters(comfy, toy_tensor), folder / "adapters.safetensors")
    (folder / "unets").mkdir(exist_ok=True)
    (folder / "unets" / "names.json").write_text(json.dumps(unet_names(comfy), indent=0, sort_keys=True) + "\n")
    text = json.dumps(text_keys(comfy), indent=0, sort_keys=True)
    (folder / "unets" / "text_keys.json").write_text(text + "\n")
    print(f"recorded from ComfyUI {version}")


if __name__ == "__main__":
    main()
