"""From a MODEL, a cache and settings to a session: everything that must happen in the node's thread before training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....trainer.config.run import (
    MemoryConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
    ValidationConfig,
)
from ....trainer.config.toml import Json, to_dict
from ....trainer.data.batches import CachedBatches, Plan, Singles, make_plan
from ....trainer.data.cache.store import Cache
from ....trainer.data.report import epochs_text, make_report
from ....trainer.data.sets.dataset import Dataset
from ....trainer.diffusion.timesteps import NoiseLevels
from ....trainer.errors import ConfigError
from ....trainer.lora.state_dict import check_fits
from ....trainer.lora.targets import resolve_targets
from ....trainer.runs.modules import modules_of_run
from ....trainer.runs.run_folder import RunFolder
from ....trainer.runs.session import Session
from ....trainer.storage.fingerprint import tensors_digest
from ....trainer.storage.tensor_file import read_lora
from ....trainer.training.held_out import HeldOut
from ....trainer.training.loss_settings import check_objective, loss_settings, noise_levels
from ....trainer.training.optim import check_optimizer
from ....trainer.types import Example
from ....trainer.weights.devices import DTYPES
from ....trainer.weights.frozen import compute_in
from ....trainer.weights.quantize import check_quantize, quantize, stored_bytes
from ...sockets.values import CacheValue, MemoryValue, ValidationValue
from ..backend.checkpointing import checkpoint_blocks
from ..backend.conditions import ConditionSource, condition, fill_conditions
from ..backend.denoiser import LoadedDenoiser, bring_to_device, is_dynamic, load_denoiser, refuse_patches
from ..backend.lora_check import host_arithmetic
from ..encoding.datasets import read_listing
from ..encoding.encoders import model_identity
from ..paths import find_lora, lora_folder

HELD_OUT_LEVELS = 4
"""Fixed noise levels per held-out image."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What LoomTrain was asked for."""

    name: str
    training: TrainingConfig
    network: NetworkConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    objective: ObjectiveConfig
    memory: MemoryValue
    validation: ValidationValue | None
    cache: CacheValue
    lora_dtype: str = "bfloat16"

    def fixed(self, facts: Json) -> Json:
        """What must stay equal for a run to be continued."""
        training = to_dict(self.training)
        for free in ("steps", "save_every", "keep_checkpoints"):
            training.pop(free)
        return {
            "network": to_dict(self.network),
            "optimizer": to_dict(self.optimizer),
            "schedule": to_dict(self.schedule),
            "objective": to_dict(self.objective),
            "training": {**training, "precision": self.memory.precision},
            "model": {"quantize": self.memory.quantize},
            "facts": facts,
        }

    def config(self) -> Json:
        """For run.json."""
        return {**self.fixed({}), "name": self.name, "training": to_dict(self.training), "cache": self.cache.listing}


def check_request(patcher: Any, request: TrainRequest) -> Dataset:
    """Everything that can be refused without touching a weight. Raises LoomError."""
    refuse_patches(patcher)
    check_optimizer(request.optimizer)
    check_quantize(request.memory.quantize)
    dataset = Dataset(examples=tuple(read_listing(request.cache)))
    make_plan(dataset.training, request.training.batch_size, request.training.seed)
    return dataset


def facts(patcher: Any, request: TrainRequest) -> Json:
    """Digests of the model, the data and the encoders."""
    init = request.network.init_from
    return {
        "model": sampled_identity(patcher),
        "data": request.cache.digest,
        "vae": request.cache.vae,
        "text": request.cache.text + (f" beside {pixels} px" if (pixels := request.cache.text_pixels) else ""),
        "init": tensors_digest(read_lora(find_lora(init))) if init else "",
    }


def sampled_identity(patcher: Any) -> str:
    """Of a MODEL with the way it samples: what conditions in the cache belong to."""
    sampling = patcher.get_model_object("model_sampling")
    how = {"sampling": sorted(cls.__name__ for cls in type(sampling).__mro__), "sigma_max": float(sampling.sigma_max)}
    how["sigma_middle"] = float(sampling.sigmas[len(sampling.sigmas) // 2])
    return model_identity(patcher, how)


def make_session(
    patcher: Any,
    request: TrainRequest,
    dataset: Dataset,
    folder: RunFolder,
    known: Json,
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
) -> Session:
    """Build the shadow, the network's inputs and the session. `known` are the run's facts. Raises LoomError."""
    bring_to_device(patcher)
    denoiser = load_denoiser(
        patcher, compute_dtype=None if request.memory.precision == "auto" else DTYPES[request.memory.precision]
    )
    check_objective(request.objective, denoiser.objective)
    targets = modules_of_run(folder, denoiser.module, partial(_new_targets, request.network, denoiser))
    init = _initial_weights(request.network, denoiser, targets)
    _say_what_is_known(denoiser, targets, log)
    training = request.training
    log(epochs_text(make_report(dataset), training.batch_size, training.gradient_accumulation_steps, training.steps))
    prepare_weights(denoiser, patcher, request, log)
    levels = host_noise_levels(request.objective, denoiser)
    plan = make_plan(dataset.training, request.training.batch_size, request.training.seed)
    batches = open_batches(
        patcher, denoiser, request.cache, request.objective, known["model"], dataset.examples, plan, progress
    )
    held_out = batches(dataset.held_out)
    return Session(
        folder=folder,
        denoiser=denoiser,
        targets=targets,
        batches=batches(dataset.training),
        prefetch=request.memory.memory.prefetch,
        held_out=HeldOut(batches=Singles(held_out), timesteps=HELD_OUT_LEVELS, seed=request.training.seed),
        loss=loss_settings(request.objective, levels),
        network=request.network,
        optimizer=request.optimizer,
        schedule=request.schedule,
        training=request.training,
        validation=validation_config(request.validation, dataset),
        report=request.validation.report if request.validation else "none",
        compute_dtype=denoiser.compute_dtype,
        lora_dtype=DTYPES[request.lora_dtype],
        metadata=_metadata(request, denoiser, dataset, known),
        publish_folder=lora_folder(),
        init=init,
        arithmetic=host_arithmetic(patcher.model),
    )


def _new_targets(network: NetworkConfig, denoiser: LoadedDenoiser) -> list[str]:
    return resolve_targets(denoiser.module, denoiser.target_presets, network.target_modules, network.exclude_modules)


def validation_config(value: ValidationValue | None, dataset: Dataset) -> ValidationConfig:
    """Raises ConfigError for patience without images set aside."""
    if value is None:
        return ValidationConfig()
    if value.patience and not dataset.held_out:
        raise ConfigError(
            f"patience = {value.patience} needs a held-out loss: set images aside (LoomCache held_out_share, or a LoomDataset of role validation)"
        )
    return ValidationConfig(every=value.measure_every, patience=value.patience)


def open_batches(
    patcher: Any,
    denoiser: LoadedDenoiser,
    value: CacheValue,
    objective: ObjectiveConfig,
    identity: str,
    examples: Sequence[Example],
    plan: Plan,
    progress: Callable[[int, int], None],
) -> Callable[[Sequence[Example]], CachedBatches]:
    """Make the network's inputs for these examples where the cache lacks them; returns what reads any of them."""
    cache = Cache(Path(value.folder))
    source = ConditionSource(
        identity=identity,
        encoders=value.identity,
        values=_condition_values(denoiser, objective),
        factor=value.factor,
    )
    fill_conditions(cache, source, patcher.model, examples, progress)
    to_model = latent_normaliser(patcher.model)

    def batches(some: Sequence[Example]) -> CachedBatches:
        return CachedBatches(
            some,
            plan,
            cache,
            value.vae,
            normalise=to_model,
            condition=condition(cache, source),
            device=patcher.load_device,
        )

    return batches


def _initial_weights(network: NetworkConfig, denoiser: LoadedDenoiser, targets: list[str]) -> dict[str, Tensor]:
    if not network.init_from:
        return {}
    tensors = read_lora(find_lora(network.init_from))
    check_fits(tensors, [denoiser.file_key(path) for path in targets], network)
    return tensors


def _say_what_is_known(denoiser: LoadedDenoiser, targets: list[str], log: Callable[[str], None]) -> None:
    preset = denoiser.target_presets["default"].description
    if denoiser.is_known:
        log(f"model {denoiser.family}, predicts {denoiser.objective.name}; {len(targets)} target layers")
    else:
        log(
            f"model {denoiser.family} is not in the family table: trained with the generic preset ({preset}); {len(targets)} target layers, predicts {denoiser.objective.name}"
        )


@torch.inference_mode(False)
def prepare_weights(denoiser: LoadedDenoiser, patcher: Any, request: TrainRequest, log: Callable[[str], None]) -> None:
    """Where the weights lie and how they compute. Raises ConfigError for a model that is only partly on its device."""
    place_weights(denoiser, patcher, log)
    if request.memory.quantize != "none":
        quantize(denoiser.module, request.memory.quantize, denoiser.compute_dtype)
        log(f"packed to {request.memory.quantize}: an extra copy of {stored_bytes(denoiser.module):,} bytes")
    compute_in(denoiser.module, denoiser.compute_dtype)
    if request.memory.memory.gradient_checkpointing:
        checkpoint_blocks(denoiser.module, denoiser.settings.blocks)


def place_weights(denoiser: LoadedDenoiser, patcher: Any, log: Callable[[str], None]) -> None:
    """On the device as a whole. Raises ConfigError for a model that is only partly there."""
    device = torch.device(patcher.load_device)
    devices = {parameter.device.type for parameter in denoiser.module.parameters()}
    if is_dynamic(patcher):
        denoiser.module.to(device)  # the masters stay on the CPU; this is the trainer's one copy on the device
        log(f"dynamic VRAM: training holds its own copy on {device}, {stored_bytes(denoiser.module):,} bytes")
    elif devices != {device.type}:
        raise ConfigError(
            f"ComfyUI has loaded this model only in part ({' and '.join(sorted(devices))} instead of {device.type}): free VRAM (unload other models), use a smaller or fp8 file, or start ComfyUI without --lowvram"
        )


def _condition_values(denoiser: LoadedDenoiser, objective: ObjectiveConfig) -> dict[str, float]:
    return {
        name: objective.guidance_scale if name == "guidance" else value
        for name, value in denoiser.settings.conditions.items()
    }


def host_noise_levels(objective: ObjectiveConfig, denoiser: LoadedDenoiser) -> NoiseLevels:
    """The family's training shift, else the shift that the model samples with."""
    shift = denoiser.settings.training_shift
    if shift is None:
        shift = denoiser.objective.sampling_shift() if denoiser.objective.name == "flow" else 1.0
    return noise_levels(objective, denoiser.objective, shift)


def latent_normaliser(model: Any, *, inverse: bool = False) -> Callable[[Tensor], Tensor]:
    """Raw latents (B, C, h, w) to model space, or back, by a private copy of the model's own latent format."""
    import copy

    with torch.inference_mode(False):
        latent_format = copy.deepcopy(model.latent_format)
    video = getattr(latent_format, "latent_dimensions", 2) == 3
    process = latent_format.process_out if inverse else latent_format.process_in

    def convert(latents_BCHW: Tensor) -> Tensor:
        made: Tensor = process(latents_BCHW.unsqueeze(2) if video else latents_BCHW)
        return made.squeeze(2) if video else made

    return convert


def _metadata(request: TrainRequest, denoiser: LoadedDenoiser, dataset: Dataset, known: Json) -> dict[str, Any]:
    return {
        "title": request.name,
        "architecture": denoiser.family,
        "prediction": denoiser.objective.name,
        "resolution": request.cache.resolution,
        "trigger": "",
        "facts": {"dataset": known["data"], "base": known["model"]},
        "training": {
            "base_model_version": denoiser.family,
            "learning_rate": request.optimizer.learning_rate,
            "optimizer": request.optimizer.name,
            "lr_scheduler": request.schedule.kind,
            "num_train_images": len(dataset.training),
            "max_train_steps": request.training.steps,
            "batch_size_per_device": request.training.batch_size,
            "seed": request.training.seed,
        },
    }


def default_memory() -> MemoryValue:
    return MemoryValue(memory=MemoryConfig(), precision="auto", quantize="none", yield_max_s=0.0)


def with_rate(optimizer: OptimizerConfig, learning_rate: float) -> OptimizerConfig:
    return replace(optimizer, learning_rate=learning_rate)
