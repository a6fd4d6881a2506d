"""The memory plan of a run on a MODEL that ComfyUI holds: its network is rehearsed as a structure without weights."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from .....trainer.config.run import TrainingConfig
from .....trainer.data.batches import CachedBatches, Singles
from .....trainer.data.sets.dataset import Dataset
from .....trainer.diffusion.denoiser import Denoiser
from .....trainer.diffusion.timesteps import ResolutionShift
from .....trainer.lora.base_lora import BaseLora, lay_base_loras
from .....trainer.memory_plan.base_sizes import BaseSizes, base_sizes, pack_on_shapes, stand_for_quantized
from .....trainer.memory_plan.card import card_of, matrix_rate
from .....trainer.memory_plan.plan import MemoryPlan
from .....trainer.memory_plan.planner import Planner, Way
from .....trainer.memory_plan.rehearsal import Rehearsal, Step, rehearse
from .....trainer.memory_plan.structure import structure_of
from .....trainer.runs.plan import RunPlan
from .....trainer.training.loss_settings import loss_settings, noise_levels
from .....trainer.types import Conditioning, Example, Size
from .....trainer.weights.frozen import compute_in
from ....words import in_the_graph
from ...backend.checkpointing import checkpoint
from ...backend.denoiser import LoadedDenoiser
from ...comfy_types import ModelPatcher
from .around import Beside, around
from .listed import is_run


@dataclass(kw_only=True)
class GraphRun:
    """A run of the graph on shapes."""

    denoiser: LoadedDenoiser
    """Not placed and not changed yet; the rehearsal leaves it as it is."""
    plan: RunPlan
    targets: Sequence[str]
    dataset: Dataset
    batches: Callable[[Sequence[Example]], CachedBatches]
    shift: float | ResolutionShift
    beside: Beside
    matmul: str = "off"
    below: Sequence[BaseLora] = ()
    """Base LoRAs, also of a CLIP that is trained."""

    @property
    def segments(self) -> tuple[str, ...]:
        """Classes of the modules that are recomputed as a whole."""
        return tuple(self.denoiser.settings.blocks) if self.plan.memory.recomputes_blocks else ()

    def sizes(self, quantize: str) -> BaseSizes:
        """Of the weights as ComfyUI holds them, or packed."""
        module = self.denoiser.module if self.matmul == "off" else structure_of(self.denoiser.module)
        return base_sizes(module, self._packed(module, quantize), self.segments)

    def _packed(self, module: torch.nn.Module, quantize: str) -> str:
        return pack_on_shapes(module, quantize, self.matmul, self.denoiser.compute_dtype)

    @torch.inference_mode(False)
    def on_shapes(self, way: Way) -> Denoiser:
        """The network without weights, together with the text encoders where they are trained."""
        module = structure_of(self.denoiser.module)
        if self._packed(module, way.quantize) != "none":
            stand_for_quantized(module)
        compute_in(module, self.denoiser.compute_dtype)
        checkpoint(module, self.denoiser.settings.blocks, way.memory)
        lay_base_loras(module, [one for one in self.below if not one.identity.on_clip])
        denoiser, texts = replace(self.denoiser, module=module), self.beside.texts
        return texts.on_shapes(denoiser, [one for one in self.below if one.identity.on_clip]) if texts else denoiser

    def conditioning(self, image: Size | None, count: int) -> Conditioning:
        """What the network is fed for `count` images of this size (None: the first image), from the cache."""
        example = next(one for one in self.dataset.training if image in (None, one.geometry.target))
        made = Singles(self.batches([example]))[0].conditioning
        samples = list(made["samples"])[:1] * count
        if self.beside.texts is None:
            return {"samples": samples}
        longest = sorted({text for one in self.dataset.training for text in one.texts}, key=len)[-count:]
        return {"samples": samples, "captions": [longest[-1 - number % len(longest)] for number in range(count)]}

    @torch.inference_mode(False)
    def step(self, way: Way, image: Size) -> Rehearsal:
        """With the inputs of an image of this size from the cache, for every place in the batch."""
        denoiser = self.on_shapes(way)
        example = next(one for one in self.dataset.training if one.geometry.target == image)
        batch = Singles(self.batches([example]))[0]
        levels = noise_levels(self.plan.objective, self.denoiser.objective, self.shift)
        step = Step(
            targets=self.targets,
            network=self.plan.network,
            optimizer=self.plan.optimizer,
            loss=loss_settings(self.plan.objective, levels),
            compute_dtype=self.denoiser.compute_dtype,
            accumulates=self.plan.training.gradient_accumulation_steps > 1
            or way.batch_size < self.plan.training.batch_size,
            preserves=self.dataset.preserves,
        )
        latents = (way.batch_size, *batch.latents_BCHW.shape[1:])
        return rehearse(denoiser, step, latents, self.conditioning(image, way.batch_size))


def plan_graph(run: GraphRun, patcher: ModelPatcher, quantize: str, taken: Sequence[float]) -> MemoryPlan:
    """The plan of a run; `taken` are seconds of its earlier steps. Raises ConfigError for one that the device has no room for."""
    training: TrainingConfig = run.plan.training
    device = torch.device(patcher.load_device)
    way = Way(
        memory=run.plan.memory,
        batch_size=training.batch_size,
        quantize=quantize,
        optimizer=run.plan.optimizer.name,
    )
    planner = Planner(
        run=run,
        card=card_of(device, _held_by_host(device)),
        training=training,
        optimizer=run.plan.optimizer,
        way=way,
        images=dict(Counter(example.geometry.target for example in run.dataset.training)),
        around=around(run.beside, patcher, lambda: run.on_shapes(way), run.conditioning(None, 1)),
        segments=run.segments,
        say=in_the_graph,
        rate=matrix_rate(device, run.denoiser.compute_dtype),
        taken=taken,
    )
    return planner.plan()


def _held_by_host(device: torch.device) -> int:
    """Bytes of models that ComfyUI holds on the device: it gives them back where a run needs them, and the run's own is among them."""
    from comfy.model_management import current_loaded_models

    held = [one for one in tuple(current_loaded_models) if one.model is not None and one.device == device]
    return sum(int(one.model_loaded_memory()) for one in held if not is_run(one.model))
