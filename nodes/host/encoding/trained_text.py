"""A LoRA on the CLIP of SD 1, SD 2 and SDXL: a shadow of its module by the same recipe as the base model's, which reads the captions
in every pass.

Tokens and what the network is fed besides the text are made in the node's thread; the training thread runs nothing but the shadow.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ....trainer.data.batches import PickedExample
from ....trainer.errors import ConfigError
from ....trainer.families.common.family import Text
from ....trainer.lora.base_lora import BaseLora, lay_base_loras
from ....trainer.memory_plan.structure import structure_of
from ....trainer.training.text_encoders import WithText, text_targets, together
from ....trainer.types import Conditioning, Geometry
from ..backend.conditions import network_inputs
from ..backend.denoiser import LoadedDenoiser, is_dynamic
from ..backend.families import of_class
from ..backend.patches import patch_problems
from ..backend.shadow import build_shadow
from ..comfy_types import BaseModel, Clip, ModelPatcher

SECOND = {"te1": "clip_l", "te2": "clip_g"}
SINGLE = ("clip_l", "clip_h")
Inputs = Mapping[str, object]


def trained_parts(clip: Clip) -> dict[str, str]:
    """Returns {name of an encoder in LoRA files: its attribute in ComfyUI's module}; {} for a CLIP that cannot have a LoRA here."""
    network = clip.cond_stage_model
    classes = {one.__name__ for one in type(network).__mro__}
    if "SDXLClipModel" in classes:
        return dict(SECOND)
    own = getattr(network, "clip", "") if "SD1ClipModel" in classes else ""
    return {"te": own} if own in SINGLE else {}


def check_clip(clip: Clip, patcher: ModelPatcher) -> None:
    """Raise ConfigError for a CLIP that cannot be trained together with this MODEL."""
    parts, model = trained_parts(clip), type(patcher.model).__name__
    name = type(clip.cond_stage_model).__name__
    wanted = [
        set(variant.text_parts)
        for family in of_class(model)
        for variant in family.variants.values()
        if variant.text_parts
    ]
    if not parts or not wanted:
        what = f"the text encoders of this CLIP ({name})" if wanted else f"the text encoders of {model} models"
        raise ConfigError(f"clip: {what} are not trained, only those of SD 1, SD 2 and SDXL are: unlink clip")
    if set(parts) not in wanted:
        raise ConfigError(
            f"clip is a {name}, which does not belong to a {model} model: link the CLIP of the MODEL's own loader"
        )
    _check_patches(clip)


def _check_patches(clip: Clip) -> None:
    """Plain LoRA, LoHa and LoKr are base LoRAs."""
    if problems := patch_problems(clip.patcher):
        raise ConfigError(
            f"clip carries {', '.join(problems)}, which cannot be computed next to the weights. Merge it into the checkpoint (Loom LoRA Merge into Base) and load that, or unlink clip to train the MODEL alone. Link the loader's CLIP where it is meant for the MODEL only (LoraLoaderModelOnly)"
        )
    if getattr(clip, "use_clip_schedule", False) or getattr(clip.patcher, "forced_hooks", None):
        raise ConfigError("clip has a schedule or hooks: link the loader's CLIP")


@dataclass(kw_only=True)
class TrainedClip:
    """The shadow of a CLIP, as the trainer's `TrainableText`. It knows the texts that were tokenized for it."""

    network: nn.Module
    parts: Mapping[str, str]
    tokens: Mapping[str, object]

    def networks(self) -> Mapping[str, nn.Module]:
        return {name: getattr(self.network, own).transformer for name, own in self.parts.items()}

    def read(self, prompts: Sequence[str]) -> list[Text]:
        """{"cross_attn": (1, L, D), "pooled_output": (1, P)} of each text, with a gradient."""
        made = {prompt: self._read(prompt) for prompt in dict.fromkeys(prompts)}
        return [made[prompt] for prompt in prompts]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Text]:
        return self.read(prompts)

    def _read(self, prompt: str) -> Text:
        cross, pooled = self.network.encode_token_weights(self.tokens[prompt])[:2]  # type: ignore[operator]
        return {"cross_attn": cross} if pooled is None else {"cross_attn": cross, "pooled_output": pooled}

    def targets(self, names: Iterable[str]) -> list[str]:
        """Paths of the target modules of these encoders, without layers whose output nobody reads."""
        found: list[str] = []
        for name in names:
            encoder: Any = getattr(self.network, self.parts[name])
            depth = int(encoder.num_layers)
            # CLIP-G's pooled vector, which SDXL reads, comes from the last layer.
            unread = 0 if name == "te2" or encoder.layer != "hidden" else -int(encoder.layer_idx) - 1
            found += text_targets(name, encoder.transformer, depth, unread)
        return found

    def on_shapes(self, below: Sequence[BaseLora] = ()) -> "TrainedClip":
        """The same without weights, for a rehearsal, with the base LoRAs `below`."""
        network = structure_of(self.network)
        lay_base_loras(network, below)
        return replace(self, network=network)

    @torch.inference_mode(False)
    def place(self, clip: Clip, below: Sequence[BaseLora] = ()) -> None:
        """Share the weights where ComfyUI has brought them, and compute with the base LoRAs `below`. Before an adapter is injected. Node
        thread only.

        Raises ConfigError for a CLIP that is on its device in part.
        """
        self.network = clip_network(clip)
        if is_dynamic(clip.patcher):
            self.network.to(clip.patcher.load_device)
        places = {parameter.device.type for parameter in self.network.parameters()}
        if len(places) > 1:
            raise ConfigError(
                f"ComfyUI has loaded this CLIP only in part ({' and '.join(sorted(places))}): free VRAM (unload other models), or start ComfyUI without --lowvram"
            )
        lay_base_loras(self.network, below)


@torch.inference_mode(False)
def load_clip(clip: Clip, texts: Iterable[str]) -> TrainedClip:
    """A shadow over the weights of a CLIP, wherever they lie, with the tokens of these texts. Node thread only."""
    tokens = {text: _normal(clip.tokenize(text)) for text in dict.fromkeys(texts)}
    return TrainedClip(network=clip_network(clip), parts=trained_parts(clip), tokens=tokens)


def clip_network(clip: Clip) -> nn.Module:
    """A shadow of a CLIP's module that reads the layer which the CLIP reads. Outside inference mode."""
    originals = {key: chain[0][0] for key, chain in clip.patcher.get_key_patches().items()}
    network: Any = build_shadow(clip.cond_stage_model, originals)
    network.reset_clip_options()
    if clip.layer_idx is not None:
        network.set_clip_options({"layer": clip.layer_idx})
    made: nn.Module = network
    return made


def said_by(clip: Clip, text: str) -> Text:
    """What ComfyUI's CLIP says about a text, under the names of `TrainedClip.read`."""
    [[cross, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    pooled = extra.get("pooled_output")
    return {"cross_attn": cross} if pooled is None else {"cross_attn": cross, "pooled_output": pooled}


def _normal(value: Any) -> Any:
    """Tokens with embeddings of words as normal tensors, which autograd accepts."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    return type(value)(_normal(item) for item in value) if isinstance(value, list | tuple) else value


def put_text(inputs: Inputs, text: Text) -> dict[str, object]:
    """A network's inputs with another text: SDXL's vector y begins with the pooled text and goes on with sizes."""
    made = {**inputs, "c_crossattn": text["cross_attn"]}
    if isinstance(y := inputs.get("y"), Tensor):
        pooled = text["pooled_output"]
        made["y"] = torch.cat([pooled.to(y), y[:, pooled.shape[1] :]], dim=1)
    return made


class PlacedTexts:
    """What the network is fed besides the text, for every way that an image is seen. Make it in the node's thread."""

    def __init__(self, model: BaseModel, texts: tuple[Text, Text], factor: int) -> None:
        """`texts` are two that differ."""
        self._model, self._factor, self._texts = model, factor, texts
        self._inputs: dict[Geometry, Inputs] = {}

    @torch.inference_mode(False)
    def add(self, geometry: Geometry) -> Inputs:
        """The inputs of an image of this geometry. Raises ConfigError for a model that makes something else of the text."""
        if geometry not in self._inputs:
            first, second = (_made(self._model, text, geometry, self._factor) for text in self._texts)
            if not _same(put_text(first, self._texts[1]), second):
                raise ConfigError(
                    f"clip: a {type(self._model).__name__} model of this kind does not read the text as CLIP gives it, so its text encoder is not trained: unlink clip"
                )
            self._inputs[geometry] = first
        return self._inputs[geometry]

    def condition(self) -> Callable[[Sequence[PickedExample]], Conditioning]:
        """Makes the conditioning of picked samples for `with_clip`'s denoiser. It touches nothing of ComfyUI."""

        def read(picks: Sequence[PickedExample]) -> Conditioning:
            inputs = [self._inputs[pick.view.geometry] for pick in picks]
            return {"captions": [pick.caption for pick in picks], "samples": inputs}

        return read


def _made(model: BaseModel, text: Text, geometry: Geometry, factor: int) -> dict[str, object]:
    channels = int(model.latent_format.latent_channels)
    made = network_inputs(model, text, geometry, {}, factor, channels)
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in made.items()}


def _same(first: Inputs, second: Inputs) -> bool:
    def equal(a: object, b: object) -> bool:
        return torch.equal(a.cpu(), b.cpu()) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b

    return first.keys() == second.keys() and all(equal(value, second[name]) for name, value in first.items())


def with_clip(denoiser: LoadedDenoiser, text: TrainedClip) -> WithText:
    """Network and CLIP as one denoiser, whose conditioning holds captions and the inputs besides the text."""

    def condition(texts: Sequence[Text], conditioning: Conditioning) -> Conditioning:
        pairs = zip(conditioning["samples"], texts, strict=True)
        return {"samples": [put_text(inputs, one) for inputs, one in pairs]}

    return WithText(inner=denoiser, module=together(denoiser, text.networks()), text=text, condition=condition)
