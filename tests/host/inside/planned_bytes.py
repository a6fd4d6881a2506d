"""The memory plan of a run of the graph against what is then alive, by unique storage: training, samples, encoding.

    python -m tests.host.inside.planned_bytes KIND …

answers {kind: {"training", "activations", "samples", "caching"}}, each [predicted, measured] in bytes.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

from .toys import TOYS, answer, conditions, import_pack, torch, toy_model, toy_tensor

SIDE, FACTOR, RANK = 256, 8, 8
TEXTS = ("a red thing", "the quick brown fox jumps over the lazy dog and the red thing in the grass")
TRAINED = ("sd1", "sd2", "sdxl")
DECODER = {
    "double_z": True, "z_channels": 4, "resolution": SIDE, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def toy_vae(channels):
    """ComfyUI's own VAE, small."""
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL

    params = {"ddconfig": {**DECODER, "z_channels": channels}, "embed_dim": channels}
    with torch.no_grad():
        weights = {
            key: toy_tensor(key, tuple(tensor.shape)) for key, tensor in AutoencoderKL(**params).state_dict().items()
        }
        return comfy.sd.VAE(sd=weights, config={"params": params})


def toy_run(loom, kind, texts):
    """(run, patcher, CLIP, VAE) of a run with samples, without a cache."""
    from toy_texts import toy_clip

    config, types = loom("trainer.config.run"), loom("trainer.types")
    patcher, clip, vae = (
        toy_model(kind),
        toy_clip(kind if kind in TRAINED else "sdxl", toy_tensor),
        toy_vae(TOYS[kind].channels),
    )
    clip = clip if texts else None
    value = loom("nodes.sockets.values").ValidationValue(
        validation=config.ValidationConfig(prompts=TEXTS[:1], width=SIDE, height=SIDE), prompts=(), vae="", text=""
    )
    samples = loom("nodes.host.runs.samples")
    samples.HELD.hold(value, samples.Held(vae))
    session = loom("nodes.host.runs.session")
    request = session.TrainRequest(
        name="x", training=config.TrainingConfig(batch_size=2, steps=2), network=config.NetworkConfig(rank=RANK),
        optimizer=config.OptimizerConfig(learning_rate=1e-4), schedule=config.ScheduleConfig(), objective=config.ObjectiveConfig(),
        memory=session.default_memory(), validation=value,
        cache=SimpleNamespace(folder="", listing="", resolution=SIDE, trigger="", factor=FACTOR, text="", encoding_bytes=0),
        clip=clip, text=config.TextConfig(learning_rate=1e-4 if clip else 0.0),
    )  # fmt: skip
    place = types.Geometry.whole((SIDE, SIDE))
    examples = tuple(
        types.Example(path=Path(f"{text[:5]}.png"), digest=text, captions=(text,), geometry=place) for text in TEXTS
    )
    denoiser = loom("nodes.host.backend.denoiser").load_denoiser(patcher, compute_dtype=torch.float32)
    side = SIDE // FACTOR
    latents = torch.zeros(1, TOYS[kind].channels, side, side)
    trained = None
    if clip:
        read = loom("nodes.host.encoding.texts")
        trained = read.load_texts(clip, patcher, denoiser, examples, TEXTS, request.cache, lambda text: None)
        inputs = [trained.placed.add(place)] * 2
    else:
        shaped = latents.unsqueeze(2) if TOYS[kind].video else latents
        inputs = [conditions(patcher, kind, 0, shaped)] * 2

    def batch(some):
        made = {"samples": inputs[: len(some)], **({"captions": [one.captions[0] for one in some]} if clip else {})}
        return types.Batch(
            latents_BCHW=latents.repeat(len(some), 1, 1, 1), conditioning=made, weight_B=torch.ones(len(some)), mask_B1HW=None,
            names=("",) * len(some),
        )  # fmt: skip

    def batches(some):
        return SimpleNamespace(
            examples=some,
            single=lambda number: batch([some[number]]),
            size=lambda at: len(some),
            at=lambda at: batch(some),
        )

    dataset = loom("trainer.data.sets.dataset").Dataset(examples=examples)
    whole = trained.whole if trained else denoiser
    targets = loom("trainer.lora.targets").resolve_targets(denoiser.module, denoiser.target_presets, "default", "")
    if trained:
        targets = [
            *(f"network.{path}" for path in targets),
            *trained.clip.targets(request.text.rates(trained.clip.parts)),
        ]
    beside = loom("nodes.host.runs.memory.around").Beside(value=value, texts=trained, caching=0)
    run = loom("nodes.host.runs.memory.memory_plan").GraphRun(
        denoiser=denoiser, plan=request.plan({}), targets=targets, dataset=dataset, batches=batches, shift=1.0, beside=beside
    )  # fmt: skip
    return run, patcher, clip, vae, whole, batches(examples)


def trained_peaks(loom, run, vae, whole, data, rests):
    """(most bytes alive in two steps, what of it comes on top of weights and optimizer, most bytes while a sample is made)."""
    config, loop = loom("trainer.config.run"), loom("trainer.training.loop")
    loom("trainer.weights.frozen").compute_in(run.denoiser.module, torch.float32)
    loom("nodes.host.backend.checkpointing").checkpoint(
        run.denoiser.module, run.denoiser.settings.blocks, run.plan.memory, rests=rests
    )
    adapter = loom("trainer.lora.adapter").inject(whole.module, run.targets, run.plan.network, seed=0, compute_dtype=torch.float32)  # fmt: skip
    parameters = list(adapter.parameters().values())
    optimizer = loom("trainer.training.optim").make_optimizer(parameters, config.OptimizerConfig(learning_rate=1e-4))
    settings, timesteps = loom("trainer.training.step"), loom("trainer.diffusion.timesteps")
    loss = settings.LossSettings(noise_levels=timesteps.NoiseLevels(law=timesteps.Uniform()))
    tensors_of = loom("trainer.memory_plan.rehearsal").tensors_of
    decoder = loom("nodes.host.runs.samples").open_decoder(vae)
    texts = run.beside.texts
    meter = loom("trainer.memory_plan.meter").LiveBytes()
    meter.hold(
        [*tensors_of(whole.module), *tensors_of(decoder.network), *(tensors_of(texts.clip.network) if texts else ())]
    )
    meter.restart()
    with meter:
        steps = loop.fit(whole, loop.Training(adapter=adapter, optimizer=optimizer), data, loop.LoopSettings(loss=loss, seed=0), lambda _: 1e-3)  # fmt: skip
        for _ in range(2):
            next(steps)
    state = [v for entry in optimizer.state.values() for v in entry.values() if isinstance(v, torch.Tensor)]
    stays = sum(t.numel() * t.element_size() for t in state) + meter_of(loom, whole, decoder, texts)
    trained, samples = meter.peak, loom("trainer.diffusion.sample")
    one = data.at(0).conditioning
    shown = {name: values[:1] for name, values in one.items()}
    guide = samples.SampleSettings(
        steps=2, sampler="euler", scheduler="simple", guidance=loom("trainer.diffusion.guidance").CFG(3.0)
    )
    meter.restart()
    with meter:
        noise = samples.start_noise(tuple(data.at(0).latents_BCHW.shape[1:]), 0, torch.device("cpu"))
        decoder(samples.sample(whole, noise, shown, shown, guide))
    return trained, trained - stays, meter.peak


def meter_of(loom, whole, decoder, texts):
    """Bytes of all weights, the adapter's too."""
    meter, tensors_of = loom("trainer.memory_plan.meter").LiveBytes(), loom("trainer.memory_plan.rehearsal").tensors_of
    return meter.hold(
        [*tensors_of(whole.module), *tensors_of(decoder.network), *(tensors_of(texts.clip.network) if texts else ())]
    )


def encoded(loom, vae, clip):
    """[predicted, measured] for filling a cache with two images and two captions."""
    types, keys = loom("trainer.types"), loom("trainer.data.cache.keys")
    encoders = loom("nodes.host.encoding.encoders").host_encoders(vae, clip)
    view = SimpleNamespace(geometry=types.Geometry.whole((SIDE, SIDE)))
    work = keys.Work(views={"a": view, "b": view}, prompts={t: SimpleNamespace(text=t) for t in TEXTS}, reused=0)
    predicted = loom("nodes.host.encoding.encoder_bytes").encoding_bytes(vae, clip, work, 2, tiled=False)
    tensors_of = loom("trainer.memory_plan.rehearsal").tensors_of
    meter = loom("trainer.memory_plan.meter").LiveBytes()
    meter.hold([*tensors_of(vae.first_stage_model), *tensors_of(clip.cond_stage_model)])
    with meter, torch.inference_mode():
        encoders.image.encode(torch.zeros(2, 3, SIDE, SIDE))
        encoders.text.encode(TEXTS)
    return [predicted, meter.peak]


def case(loom, kind):
    from toy_texts import toy_clip

    texts = kind in TRAINED
    run, patcher, clip, vae, whole, data = toy_run(loom, kind, texts)
    plan = loom("nodes.host.runs.memory.memory_plan").plan_graph(run, patcher, "none", [])
    caching = encoded(loom, vae, clip or toy_clip("sdxl", toy_tensor))
    trained, activations, samples = trained_peaks(loom, run, vae, whole, data, bool(plan.keeps))
    return {
        "training": [plan.parts.total, trained], "activations": [plan.parts.activations, activations],
        "samples": [plan.samples, samples], "caching": caching, "encoders": plan.parts.encoders,
    }  # fmt: skip


def main(kinds):
    loom = import_pack()
    answer({kind: case(loom, kind) for kind in kinds})


if __name__ == "__main__":
    main(sys.argv[1:])
