"""The interface of a model family: data and a handful of functions. The engine uses families only through it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...diffusion.denoiser import Denoiser, Targets
from ...diffusion.objectives import Objective
from ...diffusion.timesteps import ResolutionShift
from ...known_models.row import Distilled
from ...types import Conditioning, Geometry, Shapes
from ...weights.streaming import StreamSettings
from .keymap import KeyMap
from .lora_layouts import KeyLayout, Widths
from .lora_names import LoraNames
from .source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""(noisy latents, sigma, conditioning) to what `Denoiser.predict` gives."""

Text = dict[str, Tensor]
"""What the text encoders make of one prompt; tensors without a batch dimension."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One member of a family. Every difference between members is a field here."""

    objective: Objective
    training_shift: float | ResolutionShift = 1.0
    """Shift of the trained noise levels when the configuration says auto (flow models)."""
    guidance_embedding: bool = False
    """The network is fed a guidance value (guidance-distilled models)."""
    distilled: Distilled = "no"
    """Whether guidance or few steps are trained into it: plain training undoes that, unless the guidance is an input."""
    guidance_scale: float = 7.0
    """Usual classifier-free guidance scale."""
    guided_scale: float = 4.0
    """Usual scale of the guided loss: the guidance that a CFG-distilled member was distilled at."""
    references: int = 0
    """How many reference images a sample can have; 0 for a model that takes none."""
    unread_references: str = ""
    """Why a model that takes reference images elsewhere gets none here."""
    side: int = 1024
    """Pixels of the side of a square that it is made for."""
    text_pixels: int = 0
    """The text encoder sees the reference images too, each with the area of a square of this side in pixels; 0 where it does not."""
    by_length: bool = False
    """Texts of unequal length are run one length at a time: there is no mask that could hide what stands behind one."""
    hides_padding: bool = False
    """What stands behind a text never reaches the network: it is masked, or there is nothing."""
    text_options: tuple[str, ...] = ()
    """Fields of `PromptEncoding` that have an effect in this family."""
    text_always: tuple[str, ...] = ()
    """Those of them that are on whatever the settings say: the model was trained so."""
    text_parts: Mapping[str, str] = field(default_factory=dict)
    """{name in LoRA files: folder} of the text encoders that can have a LoRA of their own."""
    text_pooled: tuple[str, ...] = ()
    """Those of them whose pooled vector is read too, so that every layer counts."""
    clip_layer: int = 1
    """The layer of CLIP that is read, counted from the end of `clip_depth` layers."""
    clip_depth: int = 0
    """Layers of the whole CLIP, where files are known to leave out the last; 0 = as many as there are."""
    max_text_tokens: int = 77
    """Length that prompts are padded to, where the family pads."""


@dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """Affine map between the VAE's raw latents and what the network sees: (raw - shift) * scale, per channel or not."""

    channels: int
    scale: float | tuple[float, ...]
    shift: float | tuple[float, ...] = 0.0

    def to_model(self, raw_BCHW: Tensor) -> Tensor:
        return (raw_BCHW - self._column(self.shift, raw_BCHW)) * self._column(self.scale, raw_BCHW)

    def to_raw(self, latents_BCHW: Tensor) -> Tensor:
        return latents_BCHW / self._column(self.scale, latents_BCHW) + self._column(self.shift, latents_BCHW)

    @staticmethod
    def _column(value: float | tuple[float, ...], like: Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)


class TextEncoder(Protocol):
    """All text encoders of a family as one."""

    def encode(self, prompts: Sequence[str]) -> list[Text]: ...


class TrainableText(TextEncoder, Protocol):
    """Text encoders that can have a LoRA of their own (`Variant.text_parts`)."""

    def networks(self) -> Mapping[str, nn.Module]:
        """The encoders' networks by their names in LoRA files: te, or te1 and te2."""
        ...

    def read(self, prompts: Sequence[str]) -> list[Text]:
        """Encodes like `encode`, on the networks' device and with a gradient."""
        ...


class VisionTextEncoder(TextEncoder, Protocol):
    """The text encoder of an edit model, which sees the reference images (`Variant.text_pixels`)."""

    def encode_beside(self, prompts: Sequence[str], images: Sequence[Sequence[Tensor]]) -> list[Text]:
        """Texts of prompts, each with its images (3, H, W), RGB in [-1, 1], sides multiples of 28 pixels."""
        ...


class ImageCodec(Protocol):
    """The VAE. Pixels are RGB in [-1, 1]; latents are raw (before LatentSpace.to_model)."""

    @property
    def factor(self) -> int:
        """Pixels per latent row or column."""
        ...

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """The mode of the posterior: deterministic, so it can be cached."""
        ...

    def decode(self, raw_BCHW: Tensor) -> Tensor: ...

    def use_tiles(self) -> None:
        """From now on encode large images in overlapping tiles: less memory, slightly different latents."""
        ...


@dataclass
class Encoders:
    """What turns texts and pixels into what the network takes."""

    text: TextEncoder
    image: ImageCodec


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a network is brought into memory."""

    dtype: torch.dtype | None
    """None keeps the dtype of the file."""
    device: torch.device
    compute_dtype: torch.dtype | None = None
    """dtype of the arithmetic; None is that of the weights."""
    quantize: str = "none"
    """Quantize the Linear weights, one at a time: int8, int4, int2, float8, nf4 or none."""
    matmul: str = "off"
    """Keep the Linear weights of blocks in 8 bits that are multiplied as they are: int8, fp8 or off."""
    keep_originals: bool = False
    """Quantized layers go on referring to the weights that they were made of (`weights.quantize.drop_originals`)."""
    stream: StreamSettings | None = None
    """Keep the weights where they are, and bring them to the device block by block."""

    @property
    def packs(self) -> bool:
        """Whether Linear weights are kept in fewer bits than the file has."""
        return self.quantize != "none" or self.matmul != "off"


@dataclass(frozen=True, kw_only=True)
class PromptEncoding:
    """How texts are read, where a family leaves a choice; the fields of `config_data.TextConfig`."""

    clip_tokens: int = 225
    clip_skip: int = 0
    prompt_weights: bool = False
    system_prompt: str = "auto"
    t5_attention_mask: bool = False


DEFAULT_PROMPT_ENCODING = PromptEncoding()


def unchanged(prompt: str, reading: PromptEncoding) -> str:
    """The wording of families whose text encoder is given the prompt alone."""
    return prompt


@dataclass(frozen=True, kw_only=True)
class EditPrompt:
    """How ComfyUI encodes a prompt together with reference images, as one variant of a family was trained."""

    tokenizer: str
    """Class of ComfyUI's tokenizer that can put images into a prompt, or a base class of it, by name."""
    node: str
    """The node that does it. It could add the images' latents too, but of a size of its own."""
    image_inputs: tuple[str, ...]
    """The node's inputs for the reference images, in order."""
    announcement: str = ""
    """Put before each image's tokens, with {} for its number from 1; "" leaves the place of the images to the tokenizer."""
    image_token: str = ""
    """Stands for an image in an announced prompt."""
    template: str = ""
    """What surrounds an announced prompt, with {} for it."""


@dataclass(frozen=True, kw_only=True)
class ComfyModel:
    """What ComfyUI calls the parts of a family: classes of its code, loader nodes, and names of files.

    Files on a machine may have other names than those given here, which are the ones that the models are usually passed on
    under; a user of a graph chooses them again in the loaders.
    """

    model_classes: tuple[str, ...]
    """Classes of comfy.model_base that hold networks of this family, by exact name."""
    told_by: Mapping[str, object] = field(default_factory=dict)
    """What ComfyUI reads off its weights, where the class is shared with other families: entries of its network's configuration."""
    block_classes: tuple[str, ...]
    """Classes of the network's blocks, whose activations gradient checkpointing recomputes."""
    clip_loader: str
    """The node that loads the text encoders."""
    clip_inputs: Mapping[str, str]
    """Its inputs."""
    vae_name: str
    """File of the VAE."""
    loads_folders: bool = False
    """ComfyUI's DiffusersLoader loads diffusers folders of this family whole."""
    crop_classes: tuple[str, ...] = ()
    """Classes of comfy.model_base whose conditioning holds the image's original size and its crop."""
    edit_prompts: Mapping[str, EditPrompt] = field(default_factory=dict)
    """{variant: how its prompts are encoded together with reference images}."""
    wording: Callable[[str, PromptEncoding], str] = unchanged
    """The text that ComfyUI's text encoder node must be given for a prompt."""


def has_one_text_encoder(family: "Family") -> bool:
    """Whether its one text encoder goes without a number in LoRA files."""
    return any("te" in variant.text_parts for variant in family.variants.values())


class Family(Protocol):
    """A model family: data, and functions that read files of it and build its networks."""

    @property
    def name(self) -> str: ...

    @property
    def variants(self) -> Mapping[str, Variant]: ...

    @property
    def latent_space(self) -> LatentSpace: ...

    @property
    def bucket_step(self) -> int:
        """Bucket sides are multiples of this many pixels."""
        ...

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        """The presets of a network with these modules, by diffusers names.

        The loaded backend finds the same weights of a ComfyUI network through `key_map`.
        """
        ...

    @property
    def comfy(self) -> ComfyModel:
        """What ComfyUI calls the family's parts."""
        ...

    def detect(self, shapes: Shapes) -> str | None:
        """The variant that tensors of these names and shapes belong to, None for another family's."""
        ...

    def told_variant(self, source: Source, variant: str) -> str:
        """The detected variant, or another one that other files of the base name, such as a scheduler's settings."""
        ...

    @property
    def lora_names(self) -> LoraNames: ...

    def key_map(self, shapes: Shapes) -> KeyMap:
        """Returns {diffusers key: where it lies in an original file of these tensors}."""
        ...

    @property
    def lora_layouts(self) -> Mapping[str, KeyLayout]:
        """{native, diffusers, kohya: how LoRA files of that layout are written}."""
        ...

    def lora_map(self, widths: Widths) -> KeyMap:
        """Returns a map like `key_map`, for a network that a LoRA file of these widths fits; no more than what can have a LoRA."""
        ...

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> Denoiser: ...

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        """Sub-folders of the encoders' folder that `load_encoders` needs."""
        ...

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders: ...

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        """The network's inputs besides latents and timestep for a batch: texts, image sizes, the guidance value."""
        ...

    def tiny(self, seed: int = 0) -> "Tiny":
        """Random networks of CPU size, of the first variant."""
        ...


@runtime_checkable
class WritesOriginal(Protocol):
    """A family that knows the names of the original file without one, for the weights of a diffusers folder."""

    def original_keys(self, config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
        """Returns {diffusers key: where it lies in an original file} of the network that diffusers makes of this configuration, with
        tensors of these names."""
        ...


@dataclass(kw_only=True)
class Tiny:
    """A family's networks in CPU size with random weights, for tests and for writing toy folders."""

    denoiser: Denoiser
    encoders: Encoders
    vae: nn.Module
    """The codec's network."""
    part: str
    """Folder of the denoiser in a diffusers model: transformer or unet."""
    text_parts: Mapping[str, tuple[nn.Module, "PreTrainedTokenizerBase"]]
    """{"text_encoder": (network, tokenizer), "text_encoder_2": …}"""


@dataclass(kw_only=True)
class DiffusersDenoiser:
    """Fields that every headless denoiser has; a family adds `predict` and `file_key`."""

    family: str
    module: nn.Module
    objective: Objective
    target_presets: Mapping[str, Targets]
    compute_dtype: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the activations."""
        return self.compute_dtype or next(self.module.parameters()).dtype


def stack(texts: Sequence[Text]) -> dict[str, Tensor]:
    """Texts of equal length as one batch."""
    return {key: torch.stack([text[key] for text in texts]) for key in texts[0]}


def stack_repeating(texts: Sequence[Text]) -> dict[str, Tensor]:
    """Stacks like `stack`; a shorter "text" (L, D) is repeated up to a common length. To cross-attention, which has no positions
    and no mask, a text said n times is that text said once, exactly (ComfyUI batches so too)."""
    length = math.lcm(*(len(text["text"]) for text in texts))
    return stack([text | {"text": text["text"].repeat(length // len(text["text"]), 1)} for text in texts])


def stack_unequal(texts: Sequence[Text]) -> dict[str, Tensor]:
    """Stacks like `stack`; where "text" (L, D) differs in length, zeros stand behind and "text_length" (B,) says how long each is.
    For networks without a mask, which `by_length` runs once per length."""
    lengths = [len(text["text"]) for text in texts]
    if len(set(lengths)) == 1:
        return stack(texts)
    padded = torch.nn.utils.rnn.pad_sequence([text["text"] for text in texts], batch_first=True)
    rest = stack([{name: tensor for name, tensor in text.items() if name != "text"} for text in texts])
    return {**rest, "text": padded, "text_length": torch.tensor(lengths)}


def by_length(predict: Predict, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
    """Runs `predict` for the samples of each "text_length" together, so that no sample's padding reaches the network."""
    if "text_length" not in conditioning:
        return predict(noisy_BCHW, sigma_B, conditioning)
    lengths = conditioning["text_length"]
    parts: dict[int, Tensor] = {}
    for length in sorted(set(lengths.tolist())):
        rows = torch.nonzero(lengths == length).flatten()
        alike = {name: tensor[rows] for name, tensor in conditioning.items() if name != "text_length"}
        alike["text"] = alike["text"][:, :length]
        parts |= dict(zip(rows.tolist(), predict(noisy_BCHW[rows], sigma_B[rows], alike), strict=True))
    return torch.stack([parts[row] for row in range(len(lengths))])


def pad_and_mask(texts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Texts (L, D) of unequal length as "text" (B, longest, D), zeros behind, and "text_mask" (B, longest), 1 = a token."""
    lengths = torch.tensor([len(text) for text in texts])
    mask = (torch.arange(int(lengths.max()))[None, :] < lengths[:, None]).long()
    return {"text": torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True), "text_mask": mask}
