"""What a run of the graph reads in each step: batches from the cache, with what the network is fed for them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ....trainer.config.run import ObjectiveConfig
from ....trainer.data.batches import CachedBatches
from ....trainer.data.cache.store import Cache
from ....trainer.data.order import AnyPlan
from ....trainer.types import Example
from ...sockets.values import CacheValue
from ..backend.conditions import ConditionSource, condition, fill_conditions
from ..backend.denoiser import LoadedDenoiser
from ..backend.latents import latent_normaliser
from ..comfy_types import ModelPatcher
from ..encoding.texts import TrainedTexts


def open_batches(
    patcher: ModelPatcher,
    denoiser: LoadedDenoiser,
    value: CacheValue,
    objective: ObjectiveConfig,
    identity: str,
    examples: Sequence[Example],
    plan: AnyPlan,
    progress: Callable[[int, int], None],
    texts: TrainedTexts | None = None,
) -> Callable[[Sequence[Example]], CachedBatches]:
    """Make the network's inputs for these examples where the cache lacks them; returns what reads any of them. A CLIP that is trained
    reads the captions in every step."""
    cache = Cache(Path(value.folder))
    source = ConditionSource(
        identity=identity,
        encoders=value.identity,
        values=_condition_values(denoiser, objective),
        factor=value.factor,
    )
    if texts is None:
        fill_conditions(cache, source, patcher.model, examples, progress)
    to_model = latent_normaliser(patcher.model)

    def batches(some: Sequence[Example]) -> CachedBatches:
        return CachedBatches(
            some,
            plan,
            cache,
            value.vae,
            normalise=to_model,
            condition=texts.placed.condition() if texts else condition(cache, source),
            device=patcher.load_device,
            guided=objective.guided_loss != "off",
        )

    return batches


def _condition_values(denoiser: LoadedDenoiser, objective: ObjectiveConfig) -> dict[str, float]:
    return {
        name: objective.guidance_scale if name == "guidance" else value
        for name, value in denoiser.settings.conditions.items()
    }
