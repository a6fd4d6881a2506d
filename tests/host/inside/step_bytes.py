"""Bytes that live at a step boundary beyond the base and the data: by unique storage, of every tensor Python can reach."""

import gc

from .toys import TOYS, answer, conditions, import_pack, torch, toy_inputs, toy_model

NAMES = ("sd1", "sdxl", "sd3", "flux-dev", "lumina2", "qwen", "aura", "wan")
STEPS = 3


def living(storages):
    """{address: bytes} of all tensors."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            found |= storages(thing)
    return found


def batches(loom, patcher, name):
    inputs = toy_inputs(TOYS[name])
    latents = inputs["latents"].unsqueeze(2) if TOYS[name].video else inputs["latents"]
    samples = [conditions(patcher, name, row, latents) for row in (0, 1)]
    batch = loom("trainer.types").Batch(
        latents_BCHW=inputs["latents"], conditioning={"samples": samples}, weight_B=torch.ones(2), mask_B1HW=None,
        names=("a", "b"),
    )  # fmt: skip
    return type("OneBatch", (), {"size": lambda self, position: 2, "at": lambda self, position: batch})()


def case(loom, name, dtype):
    storages, config = loom("nodes.host.backend.sharing.share_storage").storages, loom("trainer.config.run")
    patcher = toy_model(name, dtype)
    data = batches(loom, patcher, name)
    before = living(storages)
    denoiser = loom("nodes.host.backend.denoiser").load_denoiser(patcher, compute_dtype=torch.float32)
    loom("trainer.weights.frozen").compute_in(denoiser.module, torch.float32)
    targets = loom("trainer.lora.targets").resolve_targets(denoiser.module, denoiser.target_presets, "default", "")
    adapter = loom("trainer.lora.adapter").inject(
        denoiser.module, targets, config.NetworkConfig(rank=4), seed=0, compute_dtype=torch.float32
    )
    parameters = list(adapter.parameters().values())
    optimizer = loom("trainer.training.optim").make_optimizer(parameters, config.OptimizerConfig(learning_rate=1e-4))
    loop, timesteps = loom("trainer.training.loop"), loom("trainer.diffusion.timesteps")
    loss = loom("trainer.training.step").LossSettings(noise_levels=timesteps.NoiseLevels(law=timesteps.Uniform()))
    training = loop.Training(adapter=adapter, optimizer=optimizer)
    steps = loop.fit(denoiser, training, data, loop.LoopSettings(loss=loss, seed=0), lambda _: 1e-3)
    for _ in range(STEPS):
        next(steps)
    after = living(storages)
    levels = [denoiser.objective.sigmas, *denoiser.objective._sampling.buffers()]
    tables = {a: size for tensor in levels for a, size in storages(tensor).items()}
    state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, torch.Tensor)]
    base = {a: s for t in patcher.model.diffusion_model.state_dict().values() for a, s in storages(t).items()}
    own = {path: t for path, t in denoiser.module.named_parameters() if not t.requires_grad and not storages(t).keys() & base.keys()}  # fmt: skip
    matrices = {f"{path}.weight" for path, part in denoiser.module.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)}  # fmt: skip
    return {
        "base": sum(base.values()),
        "trained": sum(t.numel() * t.element_size() for t in [*parameters, *state]),
        "tables": sum(tables.values()),
        "cast once": sum(t.numel() * t.element_size() for t in own.values()),
        "matrices cast": sorted(own.keys() & matrices),
        "extra": sum(size for address, size in after.items() if address not in before),
    }


def main():
    loom = import_pack()
    answer({f"{name} {label}": case(loom, name, dtype) for name in NAMES for label, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))})  # fmt: skip


if __name__ == "__main__":
    main()
