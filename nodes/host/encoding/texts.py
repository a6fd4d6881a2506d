"""The text encoder of a run whose LoomTrain has a CLIP: what is checked, read and said of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ....trainer.config.run import NetworkConfig, OptimizerConfig, TextConfig
from ....trainer.data.cache.keys import views
from ....trainer.errors import ConfigError
from ....trainer.lora.base_lora import BaseLora
from ....trainer.lora.roles import Role, roles
from ....trainer.training.text_encoders import NETWORK, WithText, check_text_training, together
from ....trainer.types import Conditioning, Example, Geometry
from ...sockets.values import CacheValue
from ..backend.denoiser import LoadedDenoiser
from ..backend.encoder_check import text_width
from ..comfy_types import Clip, ModelPatcher
from ..encoding.encoders import clip_identity
from ..encoding.trained_text import PlacedTexts, TrainedClip, check_clip, load_clip, said_by, trained_parts, with_clip


@dataclass(frozen=True, kw_only=True)
class TrainedTexts:
    """A CLIP in training, and what the network is fed besides its texts."""

    clip: TrainedClip
    placed: PlacedTexts
    whole: WithText
    """Network and CLIP as one."""

    def pair(self, prompt: str, negative: str, geometry: Geometry) -> tuple[Conditioning, Conditioning]:
        """The conditionings of a sample. Node thread."""
        inputs = self.placed.add(geometry)
        first, second = ({"captions": [text], "samples": [inputs]} for text in (prompt, negative))
        return first, second

    def on_shapes(self, denoiser: LoadedDenoiser, below: Sequence[BaseLora] = ()) -> WithText:
        """Both without weights, for a rehearsal; `denoiser` has none any more. `below` are the CLIP's base LoRAs."""
        return with_clip(denoiser, self.clip.on_shapes(below))

    def place(self, clip: Clip, denoiser: LoadedDenoiser, below: Sequence[BaseLora] = ()) -> None:
        """Follow the weights of both to where ComfyUI has brought them; `below` are the CLIP's base LoRAs. Node thread. Raises ConfigError
        as of `TrainedClip.place`."""
        self.clip.place(clip, below)
        self.whole.module = together(denoiser, self.clip.networks())

    def roles(self, network: dict[str, Role]) -> dict[str, Role]:
        """The roles of all Linears, by their paths in the whole."""
        found = {f"{NETWORK}.{path}": role for path, role in network.items()}
        for name, module in self.clip.networks().items():
            found |= {f"{name}.{path}": role for path, role in roles(module).items()}
        return found


def check_texts(
    patcher: ModelPatcher, clip: Clip, text: TextConfig, optimizer: OptimizerConfig, network: NetworkConfig
) -> None:
    """Raise ConfigError, before anything is loaded, for a CLIP that cannot be trained with this MODEL, or not as asked."""
    check_clip(clip, patcher)
    parts = trained_parts(clip)
    if not text.rates(parts):
        raise ConfigError(
            "clip is linked and text_learning_rate is 0, so it would not be trained: set it, or unlink clip"
        )
    check_text_training(text, optimizer, network, tuple(parts), type(clip.cond_stage_model).__name__)
    wanted, made = text_width(patcher.model), sum(_width(clip, own) for own in parts.values())
    if wanted and made != wanted:
        raise ConfigError(
            f"clip makes texts {made} numbers wide, but the model reads {wanted}: link the CLIP that belongs to the model"
        )


def _width(clip: Clip, own: str) -> int:
    encoder: Any = getattr(clip.cond_stage_model, own)
    return int(encoder.transformer.get_input_embeddings().weight.shape[1])


def load_texts(
    clip: Clip,
    patcher: ModelPatcher,
    denoiser: LoadedDenoiser,
    examples: Sequence[Example],
    prompts: Sequence[str],
    cache: CacheValue,
    log: Callable[[str], None],
) -> TrainedTexts:
    """A shadow of the CLIP with the tokens of all captions and of the samples' prompts. Node thread.

    Raises ConfigError for a model that does not read the text as it is.
    """
    if clip_identity(clip) != cache.text:
        log(
            "warning: the CLIP of LoomTrain is another one than that of LoomCache, or reads another layer: LoomTrain's is trained and reads the captions"
        )
    captions = [text for example in examples for text in example.texts]
    text = load_clip(clip, ["", *captions, *prompts])
    placed = PlacedTexts(patcher.model, (said_by(clip, ""), said_by(clip, "a photo")), cache.factor)
    for example in examples:
        for view in views(example):
            placed.add(view.geometry)
    return TrainedTexts(clip=text, placed=placed, whole=with_clip(denoiser, text))
