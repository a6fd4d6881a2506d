"""Every toy family: what the shadow predicts, adapter gradients against an out-of-place reference, bytes shared and extra."""

import sys

from .toys import TOYS, answer, conditions, import_pack, mm, out_of_place, relative, torch, toy_inputs, toy_model

NAMES = ("sd1", "sd2", "sdxl", "sd3", "flux-dev", "flux-schnell", "lumina2", "qwen", "aura", "wan")


def reference(patcher):
    """The host's own network as a deep copy of normal tensors, for which its own layers have a gradient."""
    import copy

    network = patcher.model.diffusion_model
    memo = {id(t): torch.nn.Parameter(t.detach().clone(), requires_grad=False) for t in network.parameters()}
    memo |= {id(t): t.detach().clone() for t in network.buffers()}
    return copy.deepcopy(network, memo).to(torch.float32).requires_grad_(False)


def loss_of(denoiser, noisy, sigma, samples, weights):
    return (denoiser.predict(noisy, sigma, {"samples": samples}) * weights).sum()


def gradients(adapter, loss):
    parameters = adapter.parameters()
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters.values(), grads, strict=True)])  # fmt: skip


def adapted(loom, denoiser, module, preset="all"):
    """An adapter of fixed, visible size on every layer of a preset."""
    targets = loom("trainer.lora.targets").resolve_targets(denoiser.module, denoiser.target_presets, preset, "")
    network = loom("trainer.config.run").NetworkConfig(rank=2)
    adapter = loom("trainer.lora.adapter").inject(module, targets, network, seed=0)
    with torch.no_grad():
        for index, parameter in enumerate(adapter.parameters().values()):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return adapter


def case(loom, name):
    load = loom("nodes.host.backend.denoiser").load_denoiser
    patcher = toy_model(name)
    inputs = toy_inputs(TOYS[name])
    latents = inputs["latents"].unsqueeze(2) if TOYS[name].video else inputs["latents"]
    samples = [
        {key: _normal(value) for key, value in conditions(patcher, name, row, latents).items()} for row in (0, 1)
    ]
    found = {"predicts": {}, "gradient": {}}
    results = {}
    plain = load(patcher)
    noisy = plain.objective.add_noise(inputs["latents"], inputs["noise"], inputs["sigma"])
    weights = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))
    hosts = host_prediction(patcher, name, inputs, noisy)
    with torch.no_grad():
        denoised = plain.objective.to_denoised(
            noisy, plain.predict(noisy, inputs["sigma"], {"samples": samples}), inputs["sigma"]
        )
    found["predicts"] = relative(denoised, hosts)
    for how in ("reference", "plain", "checkpointed"):
        denoiser = load(patcher)
        if how == "reference":
            denoiser.module = reference(patcher)
            for module in denoiser.module.modules():
                if isinstance(module, torch.nn.Linear):
                    module.__class__ = torch.nn.Linear
                elif isinstance(module, torch.nn.Conv2d):
                    module.__class__ = torch.nn.Conv2d
            for (
                path,
                parts,
            ) in plain.settings.parts.items():  # presets name parts of fused layers, which torch's have not
                linear = denoiser.module.get_submodule(path)
                linear.__class__ = loom("trainer.weights.frozen").FrozenLinear
                loom("trainer.weights.row_parts").split(linear, parts)
        if how == "checkpointed":
            found["blocks"] = loom("nodes.host.backend.checkpointing").checkpoint_blocks(
                denoiser.module, denoiser.settings.blocks
            )
        adapter = adapted(loom, plain, denoiser.module)
        if how == "reference":
            if hasattr(mm, "in_training"):
                mm.in_training = True  # the host's own switch for kernels that have a gradient
            with out_of_place():
                results[how] = gradients(adapter, loss_of(denoiser, noisy, inputs["sigma"], samples, weights))
            if hasattr(mm, "in_training"):
                mm.in_training = False
        else:
            results[how] = gradients(adapter, loss_of(denoiser, noisy, inputs["sigma"], samples, weights))
    found["gradient"] = {how: relative(results[how], results["reference"]) for how in ("plain", "checkpointed")}
    found["same bits"] = torch.equal(results["plain"], results["checkpointed"])
    found["size"] = float(results["reference"].norm())
    found |= shared_bytes(loom, patcher)
    return found


def _normal(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    return [_normal(item) for item in value] if isinstance(value, list) else value


def host_prediction(patcher, name, inputs, noisy):
    with torch.inference_mode():
        x = noisy.unsqueeze(2) if TOYS[name].video else noisy
        rows = []
        for row in (0, 1):
            extra = conditions(patcher, name, row, x)
            rows.append(patcher.model.apply_model(x[row : row + 1], inputs["sigma"][row : row + 1], **extra))
        out = torch.cat(rows)
    return (out.squeeze(2) if TOYS[name].video else out).clone()


def shared_bytes(loom, patcher):
    storages = loom("nodes.host.backend.sharing.share_storage").storages
    denoiser = loom("nodes.host.backend.denoiser").load_denoiser(patcher)
    theirs = {a: size for t in patcher.model.diffusion_model.state_dict().values() for a, size in storages(t).items()}
    mine = {a: size for t in denoiser.module.state_dict().values() for a, size in storages(t).items()}
    return {"base": sum(theirs.values()), "shared": sum(size for a, size in mine.items() if a in theirs), "extra": sum(size for a, size in mine.items() if a not in theirs)}  # fmt: skip


def main(names):
    loom = import_pack()
    answer({name: case(loom, name) for name in names or NAMES})


if __name__ == "__main__":
    main(sys.argv[1:])
