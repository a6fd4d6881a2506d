"""What the stages hand to each other. Tensor shapes: B batch, C channels, H W latent rows and columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")

Conditioning = Mapping[str, Any]
"""Everything the network is told beside the noisy latents and sigma. The files backend: tensors with the batch first; the
loaded backend: {"samples": one mapping per sample}."""

Shapes = Mapping[str, tuple[int, ...]]
"""Names and shapes of the tensors in a file."""


def reference_name(number: int) -> str:
    """What reference image `number`, from 0, is called in a conditioning and in the cache."""
    return f"reference_{number + 1}" if number else "reference"


def named_references(values: Sequence[Value]) -> dict[str, Value]:
    return {reference_name(number): value for number, value in enumerate(values)}


def references_in(named: Mapping[str, Value]) -> list[Value]:
    """The reference images of a conditioning or a cached item, in order."""
    return [named[name] for number in range(len(named)) if (name := reference_name(number)) in named]


STATES = (
    "queued",
    "caching",
    "running",
    "yielding",
    "paused",
    "stopping",
    "finished",
    "failed",
    "interrupted",
    "stopped",
)
"""Of a run."""
ACTIVE = {"queued", "caching", "running", "yielding", "paused", "stopping"}
"""Those in which somebody trains it, or will."""

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How one image became its bucket: resized to cover it, then cropped. All in pixels."""

    original: Size
    resized: Size
    crop_left: int
    crop_top: int
    target: Size
    flip: bool = False

    @classmethod
    def whole(cls, size: Size) -> "Geometry":
        """Of a picture that is neither resized nor cropped, one that is made for instance."""
        return cls(original=size, resized=size, crop_left=0, crop_top=0, target=size)


@dataclass(frozen=True, kw_only=True)
class CaptionForms:
    """What an image's captions are made of, and how they vary from visit to visit."""

    texts: tuple[str, ...]
    """The captions as they were found; one of them at a visit."""
    before: str = ""
    after: str = ""
    """Text around every caption, which stays as it is."""
    wildcards: bool = False
    shuffle: bool = False
    keep_tokens: int = 0
    keep_separator: str = ""
    tag_separator: str = ","
    secondary_separator: str = ""
    tag_dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image as training will see it."""

    path: Path
    digest: str
    """sha256 of the file's bytes."""
    captions: tuple[str, ...]
    """Every text that can occur, the plain form first; one of them at a visit."""
    geometry: Geometry
    repeats: int = 1
    """How often it is seen per epoch."""
    weight: float = 1.0
    """Factor on its loss."""
    caption_dropout: float = 0.0
    """Probability that the caption is replaced by the empty prompt."""
    role: str = "train"
    """train, regularisation or held_out."""
    teacher: str = "images"
    """images, or base: the target is what the base predicts without the adapter."""
    may_flip: bool = False
    """The mirror image is trained too, one of the two per visit."""
    background: str = "white"
    """Colour under transparent pixels."""
    references: tuple[Path, ...] = ()
    """Images that an edit model is shown together, beside the noise."""
    mask: Path | None = None
    """Image whose brightness weights the loss; the image itself where its own alpha is meant."""
    live: CaptionForms | None = None
    """Where given, every visit makes a new text of it and `captions` holds the plain forms only."""


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """Fingerprints of the encoders that filled a cache: tensors are only reused for the same ones."""

    vae: str
    text: str
    text_pixels: int = 0
    """Area in pixels (as the side of a square) at which the text encoder sees reference images; 0 = it does not see them."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward pass trains on. Latents are in model space, fp32."""

    latents_BCHW: "Tensor"
    conditioning: Conditioning
    weight_B: "Tensor"
    mask_B1HW: "Tensor | None"
    names: tuple[str, ...]
    by_base_B: "Tensor | None" = None
    """Where True, the target is what the base predicts without the adapter; None if that is nowhere."""

    @property
    def size(self) -> int:
        return int(self.latents_BCHW.shape[0])


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One optimizer step, after it was taken."""

    step: int
    """Steps taken so far, this one included."""
    loss: float
    """Mean over the samples of the step."""
    grad_norm: float
    """L2 norm before clipping."""
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a sweep: a picture and everything that made it."""

    id: str
    image: Path
    checkpoint: str
    strength: float
    prompt: str
    negative: str
    seed: int
    guidance: str
    reference: str = ""
    """File names of the images that an edit model was shown together."""
    prompt_name: str = ""
    """What a prompt library calls the prompt."""
    settings: Mapping[str, Any] = field(default_factory=dict)
