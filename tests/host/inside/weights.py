"""Weight kinds, patched models, saved files: what the loaded backend makes of them inside a real ComfyUI."""

import sys
import types

from .gradients import adapted, gradients, loss_of
from .toys import TOYS, answer, comfy, conditions, import_pack, relative, torch, toy_inputs, toy_model


def setting(loom, patcher, name="sd3", dtype=None):
    inputs = toy_inputs(TOYS[name])
    samples = [
        {key: v.clone() if isinstance(v, torch.Tensor) else v for key, v in conditions(patcher, name, row, inputs["latents"]).items()}
        for row in (0, 1)
    ]  # fmt: skip
    denoiser = loom("nodes.host.backend.denoiser").load_denoiser(patcher, compute_dtype=dtype)
    noisy = denoiser.objective.add_noise(inputs["latents"], inputs["noise"], inputs["sigma"])
    return denoiser, noisy, inputs["sigma"], samples


def saved_bytes(loom, denoiser, noisy, sigma, samples):
    """(gradient, bytes of 2-D tensors in number formats of the base that autograd keeps for one step)."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    loom("trainer.weights.frozen").compute_in(denoiser.module, denoiser.compute_dtype)
    adapter = adapted(loom, denoiser, denoiser.module)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(denoiser, noisy, sigma, samples, torch.ones_like(noisy))
    shapes = {tuple(p.shape) for p in denoiser.module.parameters() if p.ndim == 2 and min(p.shape) > 8}
    mine = {p.untyped_storage().data_ptr() for p in denoiser.module.parameters() if not hasattr(p, "_qdata")}
    copies = [t for address, t in kept.items() if address not in mine and (tuple(t.shape) in shapes or tuple(t.t().shape if t.ndim == 2 else ()) in shapes)]  # fmt: skip
    return gradients(adapter, loss), len(copies)


def formats(loom):
    """Gradients of bf16, fp16, fp8 and packed weights, in fp32, against the same numbers stored as fp32."""
    found = {}
    for label, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}.items():
        patcher = stored_as(dtype)
        plain = stored_as(dtype)
        plain.model.diffusion_model.to(torch.float32)
        found[label] = compare(loom, patcher, plain)
    if packed := packed_pair():
        found["packed"] = compare(loom, *packed)
    return found


@torch.inference_mode()
def stored_as(dtype):
    patcher = toy_model("sd3")
    for module in patcher.model.diffusion_model.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and (dtype != torch.float8_e4m3fn or parameter.ndim == 2):
                module._parameters[key] = torch.nn.Parameter(parameter.data.to(dtype), requires_grad=False)
    return patcher


@torch.inference_mode()
def packed_pair(name="sd3"):
    """(weights in the host's quantised tensors, the same numbers as fp32); None where the host has none."""
    try:
        from comfy.quant_ops import QuantizedTensor
    except ImportError:
        return None
    patchers = toy_model(name), toy_model(name)
    count = 0
    for quantised, plain in zip(*(p.model.diffusion_model.modules() for p in patchers), strict=True):
        if isinstance(quantised, torch.nn.Linear) and quantised.weight.shape[0] >= 64:
            try:
                packed = QuantizedTensor.from_float(quantised.weight.data, "TensorCoreFP8Layout")
            except Exception:  # noqa: BLE001 - this version packs in another way
                return None
            quantised._parameters["weight"] = torch.nn.Parameter(packed, requires_grad=False)
            plain._parameters["weight"] = torch.nn.Parameter(packed.dequantize().float(), requires_grad=False)
            count += 1
    assert count > 10
    return patchers


def compare(loom, patcher, plain):
    storages = loom("nodes.host.backend.sharing.share_storage").storages
    denoiser, *rest = setting(loom, patcher, dtype=torch.float32)
    theirs = {a for t in patcher.model.diffusion_model.parameters() for a in storages(t)}
    linears = {a: size for t in denoiser.module.parameters() if t.ndim == 2 for a, size in storages(t).items()}
    shared = sum(size for a, size in linears.items() if a in theirs) / sum(linears.values())
    mine, copies = saved_bytes(loom, denoiser, *rest)
    reference, _ = saved_bytes(loom, setting(loom, plain, dtype=torch.float32)[0], *rest)
    return {"error": relative(mine, reference), "shared": shared, "copies": copies}


def refusals(loom):
    """{what is patched in: the refusal's words}."""
    found = {}

    def of(label, change):
        patcher = toy_model("sd3").clone()
        change(patcher)
        try:
            loom("nodes.host.backend.denoiser").load_denoiser(patcher)
            found[label] = ""
        except loom("trainer.errors").ModelFileError as error:
            found[label] = str(error)

    key = "diffusion_model.joint_blocks.0.x_block.attn.proj.weight"
    of("nothing", lambda p: None)
    of("merged weights", lambda p: p.add_patches({key: (torch.zeros(128, 128),)}, 1.0))
    of("attention patch", lambda p: p.set_model_attn1_patch(lambda *a: a))
    of("block replacement", lambda p: p.set_model_patch_replace(lambda *a: a, "dit", "double_block", 0))
    of(
        "attention override",
        lambda p: p.model_options["transformer_options"].update(optimized_attention_override=print),
    )
    of("unet wrapper", lambda p: p.set_model_unet_function_wrapper(lambda *a: a))
    of("wrapper", lambda p: p.add_wrapper_with_key("diffusion_model", "test", lambda *a: a))
    of("object patch", lambda p: p.add_object_patch("diffusion_model.final_layer", torch.nn.Identity()))
    of("hook", lambda p: p.hook_patches.update({"hook": {key: []}}) or p.hook_patches["hook"].update({key: [1]}))
    of("injection", lambda p: p.set_injections("test", [types.SimpleNamespace(inject=print, eject=print)]))
    of("model sampling", lambda p: p.add_object_patch("model_sampling", p.get_model_object("model_sampling")))
    return found


def file_check(loom):
    """The saved file through the host's own key map and arithmetic: right, and wrong in three ways; and what it does."""
    patcher = toy_model("sd3")
    denoiser, noisy, sigma, samples = setting(loom, patcher, dtype=torch.float32)
    with torch.no_grad():
        base = denoiser.predict(noisy, sigma, {"samples": samples})
    adapter = adapted(loom, denoiser, denoiser.module)
    with torch.no_grad():
        trained = denoiser.predict(noisy, sigma, {"samples": samples})
    state = loom("trainer.lora.state_dict")
    tensors = state.to_file(adapter, denoiser.file_key, torch.float32, None)
    arithmetic = loom("nodes.host.backend.lora_check").host_arithmetic(patcher.model)
    alpha = next(key for key in tensors if key.endswith(".alpha"))

    def outcome(changed):
        try:
            return state.max_relative_error(adapter, denoiser.file_key, changed, None, arithmetic)[0]
        except loom("trainer.errors").LoomError as error:
            return str(error)

    module = alpha.removesuffix(".alpha")
    found = {
        "right": outcome(tensors),
        "bf16": outcome(state.to_file(adapter, denoiser.file_key, torch.bfloat16, None)),
        "alpha": outcome({**tensors, alpha: tensors[alpha] * 2}),
        "dropped": outcome({key: t for key, t in tensors.items() if not key.startswith(module + ".")}),
        "half dropped": outcome(
            {key: t for key, t in tensors.items() if key != next(k for k in tensors if k.startswith(module))}
        ),
        "strange": outcome({**tensors, "diffusion_model.no.such.alpha": tensors[alpha]}),
        "empty": outcome({}),
    }
    return found | {"effect": effect(patcher, tensors, noisy, sigma, base, trained)}


def row_parts(loom):
    """Attention of Flux's single blocks, which is rows of a fused Linear: the adapter's gradients, its file, and what it does.

    "packed": what the adapter does to a network in the host's quantised tensors, against the same numbers as fp32.
    """
    state, found = loom("trainer.lora.state_dict"), {}
    patcher = toy_model("flux-dev")
    denoiser, noisy, sigma, samples = setting(loom, patcher, "flux-dev", torch.float32)
    with torch.no_grad():
        base = denoiser.predict(noisy, sigma, {"samples": samples})
    adapter = adapted(loom, denoiser, denoiser.module, "attention")
    found["parts"] = sorted(path for path in adapter.layers if path.startswith("single_blocks.0."))
    loss = loss_of(denoiser, noisy, sigma, samples, torch.ones_like(noisy))
    parameters = adapter.parameters()
    grads = torch.autograd.grad(loss, list(parameters.values()))
    found["silent"] = [name for name, grad in zip(parameters, grads, strict=True) if not grad.any()]
    with torch.no_grad():
        trained = denoiser.predict(noisy, sigma, {"samples": samples})
    tensors = state.to_file(adapter, denoiser.file_key, torch.float32, None)
    found["keys"] = sorted({key.partition(".lora")[0] for key in tensors if "lora" in key})
    arithmetic = loom("nodes.host.backend.lora_check").host_arithmetic(patcher.model)
    found["file"] = state.max_relative_error(adapter, denoiser.file_key, tensors, None, arithmetic)[0]
    found["effect"] = effect(patcher, tensors, noisy, sigma, base, trained, "flux-dev")
    if pair := packed_pair("flux-dev"):
        both = []
        for one in pair:
            denoiser, *rest = setting(loom, one, "flux-dev", torch.float32)
            adapted(loom, denoiser, denoiser.module, "default")
            with torch.no_grad():
                both.append(denoiser.predict(rest[0], rest[1], {"samples": rest[2]}))
        found["packed"] = relative(*both)
    return found


def effect(patcher, tensors, noisy, sigma, base, trained, name="sd3"):
    """(patched - base) by the host against (shadow with adapter - shadow), relative."""
    import comfy.model_management as management
    import comfy.sd

    patched, _ = comfy.sd.load_lora_for_models(patcher, None, dict(tensors), 1.0, 0)
    outputs = {}
    for label, model in (("base", patcher), ("patched", patched)):
        with torch.inference_mode():
            management.load_models_gpu([model])
            rows = []
            for row in (0, 1):
                extra = conditions(model, name, row, noisy)
                rows.append(model.model.apply_model(noisy[row : row + 1], sigma[row : row + 1], **extra))
            outputs[label] = torch.cat(rows).clone()
    management.load_models_gpu([patcher])
    scale = -sigma.view(-1, 1, 1, 1)  # flow: denoised = noisy - sigma * prediction
    return relative(outputs["patched"] - outputs["base"], scale * (trained - base))


def references(loom):
    """Reference latents of an edit model reach the network: another reference, another prediction."""
    found = {}
    for name in ("flux-dev", "qwen"):
        patcher = toy_model(name)
        inputs = toy_inputs(TOYS[name])
        cond = loom("nodes.host.backend.conditions")
        geometry = loom("trainer.types").Geometry(
            original=(96, 64), resized=(96, 64), crop_left=0, crop_top=0, target=(96, 64)
        )
        text = {
            "cross_attn": inputs["text"][:1],
            **({"pooled_output": inputs["pooled"][:1]} if "pooled" in inputs else {}),
        }
        denoiser = loom("nodes.host.backend.denoiser").load_denoiser(patcher)
        predicted = []
        for references in ([], [inputs["latents"][:1]], [inputs["latents"][1:]]):
            made = cond.network_inputs(
                patcher.model, text, geometry, dict(TOYS[name].extra), 8, TOYS[name].channels, references
            )
            packing = loom("nodes.host.backend.packing")
            sample = packing.unpack(packing.pack(made))  # as it goes through the cache
            with torch.no_grad():
                predicted.append(denoiser.predict(inputs["noise"][:1], inputs["sigma"][:1], {"samples": [sample]}))
        found[name] = [relative(predicted[1], predicted[0]), relative(predicted[2], predicted[1])]
    return found


def originals(loom):
    """With a LoRA patched into the module, the shadow of the plain clone still shows the base."""
    import comfy.model_management as management

    patcher = toy_model("sd3")
    key = "diffusion_model.joint_blocks.0.x_block.attn.proj.weight"
    before = patcher.model.diffusion_model.get_parameter(key.removeprefix("diffusion_model.")).detach().clone()
    patched = patcher.clone()
    patched.add_patches({key: (torch.ones(128, 128),)}, 1.0)
    with torch.inference_mode():
        management.load_models_gpu([patched])
    now = patcher.model.diffusion_model.get_parameter(key.removeprefix("diffusion_model."))
    shadow = (
        loom("nodes.host.backend.denoiser")
        .load_denoiser(patcher)
        .module.get_parameter(key.removeprefix("diffusion_model."))
    )
    return {"patched in": not torch.equal(now, before), "shadow is the base": torch.equal(shadow, before)}


def main(names=()):
    loom = import_pack()
    parts = (formats, refusals, file_check, row_parts, references, originals)
    answer(
        {part.__name__: part(loom) for part in parts if not names or part.__name__ in names} | {"comfy": comfy.__name__}
    )


if __name__ == "__main__":
    main(sys.argv[1:])
