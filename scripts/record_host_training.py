"""Train a small network of every class of ComfyUI that makes images for three steps, as a run in the graph does, and write down what came of it.

    COMFYUI_PATH=~/ComfyUI $COMFYUI_PYTHON -m scripts.record_host_training tests/fixtures/host/training.json

`image_toys.py` describes the networks. The record of each: how many modules a run with default settings trains, those among them
that never got a gradient, whether the base kept every bit, the keys of the saved file that ComfyUI's loader does not match,
how far our network without a LoRA is from ComfyUI's (predicts), how much the file moves what ComfyUI computes (moved), and how
far that is from what was trained (as_trained). `write_model_docs.py` counts them.
"""

import hashlib
import json
import logging
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .image_models import CLASSES
from .image_toys import LATENTS, SMALLER, config, text_shapes
from .record_host_models import import_comfy, import_pack

STEPS, RANK, BATCH = 3, 4, 2
ROWS, COLUMNS = 16, 24
"""Size of the latents; of networks on pixels in patches of PIXELS."""
PIXELS = 32
TIMESTEP_TOKEN = 151673
"""HiDream O1's token that takes the timestep: its tokenizer puts it last."""


def build(supported: Any, name: str) -> Any:
    """A ModelPatcher over a small network with random weights, made in inference mode as a loader node does."""
    import comfy.model_management as management
    import comfy.model_patcher
    import torch

    if (
        name == "Anima"
    ):  # its adapter of the text has one size, beside which small blocks would not count as the network
        from comfy.ldm.anima.model import LLMAdapter

        LLMAdapter.__init__.__defaults__ = (1024, 1024, 64, 1, 4, *LLMAdapter.__init__.__defaults__[5:])
    with torch.inference_mode():
        made = getattr(supported, name)(config(name))
        made.unet_config.update(SMALLER[name])  # also what ComfyUI adds to every file's configuration
        made.set_inference_dtype(torch.float32, None)
        model = made.get_model({}, "").eval()
        for key, parameter in model.diffusion_model.named_parameters():
            parameter.data.copy_(_weight(key, tuple(parameter.shape)))
        for key, buffer in model.diffusion_model.named_buffers():
            if key == "pos_embed":  # SD3's comes from the file; until then it is memory that nobody has written to
                buffer.copy_(_weight(key, tuple(buffer.shape)))
    return comfy.model_patcher.ModelPatcher(
        model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )


def _weight(key: str, shape: tuple[int, ...]) -> Any:
    """Random numbers of a sensible size: round 1 for norms, scaled by the fan-in for matrices."""
    import torch

    values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if len(shape) < 2:
        return 0.1 * values + (1 if key.endswith("weight") or key.endswith("scale") else 0)
    return values / (values[0].numel() ** 0.5)


def texts(name: str, row: int) -> dict[str, Any]:
    """Random texts as the text encoder would give them."""
    import torch

    source, found = torch.Generator().manual_seed(row), {}
    for key, shape in text_shapes(name).items():
        if key.endswith("_ids"):
            ids = torch.randint(1, 1000, (1, *shape), generator=source)
            ids[:, -1] = TIMESTEP_TOKEN
            found[key] = ids
        elif "mask" in key:
            found[key] = torch.ones(1, *shape, dtype=torch.long)
        else:
            found[key] = torch.randn(1, *shape, generator=source)
    return found


class Batches:
    """The same samples at every step."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def size(self, position: int) -> int:
        return BATCH

    def at(self, position: int) -> Any:
        return self._batch


def train(loom: Callable[[str], Any], patcher: Any, name: str) -> dict[str, Any]:
    """Three steps with default settings, and what ComfyUI makes of the file."""
    import torch

    conditions, state = loom("nodes.host.backend.conditions"), loom("trainer.lora.state_dict")
    denoiser = loom("nodes.host.backend.denoiser").load_denoiser(patcher, compute_dtype=torch.float32)
    factor = int(getattr(patcher.model.latent_format, "spacial_downscale_ratio", 8) or 1)
    channels = patcher.model.latent_format.latent_channels
    scale = PIXELS // 8 if factor == 1 else 1
    rows, columns = (scale * side for side in LATENTS.get(name, (ROWS, COLUMNS)))
    geometry = loom("trainer.types").Geometry.whole((columns * factor, rows * factor))
    values = denoiser.settings.conditions
    if not denoiser.is_known:
        loom("nodes.host.runs.targets").apply_probe(denoiser, probed(loom, patcher.model, denoiser, name, channels))
    samples = [
        conditions.network_inputs(patcher.model, texts(name, row), geometry, values, factor, channels)
        for row in range(BATCH)
    ]
    network = loom("trainer.config.network").NetworkConfig(rank=RANK)
    targets = loom("trainer.lora.targets").resolve_targets(denoiser.module, denoiser.target_presets, "default")
    memory = loom("trainer.config.run").MemoryConfig()
    loom("nodes.host.backend.checkpointing").checkpoint(denoiser.module, denoiser.settings.blocks, memory)
    adapter = loom("trainer.lora.adapter").inject(denoiser.module, targets, network, seed=0)
    source = torch.Generator().manual_seed(1)
    latents = torch.randn(BATCH, channels, rows, columns, generator=source)
    batch = loom("trainer.types").Batch(
        latents_BCHW=latents, conditioning={"samples": samples}, weight_B=torch.ones(BATCH), mask_B1HW=None, names=("a", "b")
    )  # fmt: skip
    moved = dict.fromkeys(targets, 0.0)
    for parameter_name, parameter in adapter.parameters().items():

        def note(gradient: torch.Tensor, path: str = parameter_name.partition("|")[0]) -> None:
            moved[path] = max(moved[path], float(gradient.abs().max()))

        parameter.register_hook(note)
    _steps(loom, denoiser, adapter, Batches(batch))
    tensors = state.to_file(adapter, denoiser.file_key, torch.float32)
    arithmetic = loom("nodes.host.backend.lora_check").host_arithmetic(patcher.model)
    effect = compare(loom, denoiser, adapter, patcher, tensors, batch, samples)
    return {
        "modules": len(targets),
        "silent": sorted(path for path, size in moved.items() if not size > 0),
        "file": _rounded(state.max_relative_error(adapter, denoiser.file_key, tensors, None, arithmetic)[0]),
        **effect,
    }


def probed(loom: Callable[[str], Any], model: Any, denoiser: Any, name: str, channels: int) -> Any:
    """What the probe sees; None, as in a run, for a network that does not run without values."""
    import torch

    factor = int(getattr(model.latent_format, "spacial_downscale_ratio", 8) or 1)
    given = texts(name, 0), denoiser.settings.conditions, factor, channels, torch.float32
    try:
        return loom("nodes.host.runs.probe").probe_loaded(model, denoiser.module, *given)
    except Exception as error:  # noqa: BLE001 - as in a run
        sys.stderr.write(f"{name} is not probed: {error}\n")
        return None


def _steps(loom: Callable[[str], Any], denoiser: Any, adapter: Any, batches: Batches) -> None:
    run, loop, settings = (loom(f"trainer.{one}") for one in ("config.run", "training.loop", "training.loss_settings"))
    objective = run.ObjectiveConfig()
    shift = loom("nodes.host.runs.session").training_shift(denoiser)
    levels = settings.noise_levels(objective, denoiser.objective, shift)
    optimizer = loom("trainer.training.optim").make_optimizer(
        adapter.parameters().values(), run.OptimizerConfig(learning_rate=1e-2)
    )
    training = loop.Training(adapter=adapter, optimizer=optimizer)
    chosen = loop.LoopSettings(loss=settings.loss_settings(objective, levels), seed=0)
    steps = loop.fit(denoiser, training, batches, chosen, lambda step: 1e-2)
    for _ in range(STEPS):
        next(steps)


def compare(
    loom: Callable[[str], Any],
    denoiser: Any,
    adapter: Any,
    patcher: Any,
    tensors: Mapping[str, Any],
    batch: Any,
    samples: list[Any],
) -> dict[str, Any]:
    """What ComfyUI's own forward pass makes of the file: keys without a match, what it moves, and its distance from what was trained."""
    import comfy.model_management as management
    import comfy.sd
    import torch

    forget = loom("nodes.host.backend.denoiser").forget  # HiDream O1 keeps the text of another LoRA
    objective = denoiser.objective
    level = objective.sigma_at(torch.tensor([0.6]))
    sigma_B = level.expand(len(samples))
    noise = torch.randn(batch.latents_BCHW.shape, generator=torch.Generator().manual_seed(2))
    noisy = objective.add_noise(batch.latents_BCHW, noise, sigma_B)

    def trained() -> Any:
        return objective.to_denoised(noisy, denoiser.predict(noisy, sigma_B, batch.conditioning), sigma_B)

    with torch.no_grad():
        mine = trained()
        with adapter.disabled():
            plain = trained()
    said = Said()
    logging.getLogger().addHandler(said)
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, dict(tensors), 1.0, 0)
    logging.getLogger().removeHandler(said)
    hosts = []
    for one in (patcher, patched):
        with torch.inference_mode():
            management.load_models_gpu([one])
            forget(one.model.diffusion_model)
            x = noisy.unsqueeze(2) if denoiser.latent_dims == 5 else noisy
            rows = [one.model.apply_model(x[i : i + 1], sigma_B[i : i + 1], **given) for i, given in enumerate(samples)]
            hosts.append(torch.cat(rows).reshape(noisy.shape).clone())
    management.load_models_gpu([patcher])
    base, effect = hosts[0], hosts[1] - hosts[0]
    return {
        "unmatched": said.lines,
        "predicts": _rounded((plain - base).norm() / base.norm()),
        "moved": _rounded(effect.norm() / base.norm()),
        "as_trained": _rounded((effect - (mine - plain)).norm() / effect.norm().clamp_min(1e-30)),
    }


def _rounded(value: Any) -> float:
    return float(f"{float(value):.1e}")


class Said(logging.Handler):
    """Keeps what ComfyUI's loader logs: it only warns about keys that it does not use."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def digest(patcher: Any) -> str:
    """SHA-256 of the base's weights."""
    found = hashlib.sha256()
    for key, tensor in sorted(patcher.model.diffusion_model.state_dict().items()):
        found.update(key.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def record(loom: Callable[[str], Any], supported: Any, name: str) -> dict[str, Any]:
    """What became of one class; "problem" says what stood in the way."""
    patcher = build(supported, name)
    before = digest(patcher)
    try:
        found = train(loom, patcher, name)
    except Exception as error:
        if "-v" in sys.argv:
            logging.exception(name)
        found = {"problem": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    return {**found, "base_unchanged": digest(patcher) == before}


def main(names: list[str], out: Path | None) -> None:
    supported, version = import_comfy()
    loom = import_pack()
    loom("nodes.host.backend.rope").register_rope_gradients()
    found: dict[str, Any] = {"comfyui": version, "classes": {}}
    for name in names or CLASSES:
        if hasattr(supported, name):
            found["classes"][name] = record(loom, supported, name)
            sys.stderr.write(f"{name}: {found['classes'][name]}\n")
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    arguments = [one for one in sys.argv[1:] if one != "-v"]
    main(arguments[1:], None if arguments[0] == "-" else Path(arguments[0]))
