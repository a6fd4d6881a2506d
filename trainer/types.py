"""The values that the stages of training pass to each other. Tensor shapes: B batch, C channels, H W latent rows, columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Value = TypeVar("Value")

Json = dict[str, object]
"""A JSON object. Its values are checked where they are read."""

Record = dict[str, Any]
"""A JSON object that this project wrote, such as run.json or the settings of a run: its writer checked the values."""

Progress = Callable[[int, int], None]
"""A callback that receives (finished, total) of one counted task. It may raise to cancel the task."""

StageProgress = Callable[[str, int, int], None]
"""A callback like `Progress` whose first argument names the stage ("images", "captions")."""

Conditioning = Mapping[str, Any]
"""The inputs of the denoiser other than the noisy latents and sigma. In the files backend these are tensors whose first
dimension is the batch; in the loaded backend they are {"samples": one mapping per sample}."""

Array: TypeAlias = "NDArray[np.float64]"
"""Numbers of the scores, in double precision."""

Shapes = Mapping[str, tuple[int, ...]]
"""{tensor name: shape} of a file, as its header states them."""


def reference_name(number: int) -> str:
    """The name of reference image `number`, counted from 0, in a conditioning and in the cache."""
    return f"reference_{number + 1}" if number else "reference"


def named_references(values: Sequence[Value]) -> dict[str, Value]:
    """The values under the names that `reference_name` gives them, in order."""
    return {reference_name(number): value for number, value in enumerate(values)}


def references_in(named: Mapping[str, Value]) -> list[Value]:
    """The reference images of a conditioning or a cached item, in order."""
    return [named[name] for number in range(len(named)) if (name := reference_name(number)) in named]


ACTIVE = {"queued", "caching", "running", "yielding", "paused", "stopping"}
"""The states of a run that has not ended. A run that has ended is finished, failed, interrupted or stopped."""

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How an image is fitted to its bucket: it is resized to cover the bucket, then cropped. All sizes are in pixels."""

    original: Size
    resized: Size
    crop_left: int
    crop_top: int
    target: Size
    flip: bool = False

    @classmethod
    def whole(cls, size: Size) -> "Geometry":
        """The geometry of an image that is neither resized nor cropped, for instance a generated one."""
        return cls(original=size, resized=size, crop_left=0, crop_top=0, target=size)


@dataclass(frozen=True, kw_only=True)
class ImageVariant:
    """What makes a variant of an image: its place of the crop in pixels, its turn and its colours."""

    crop_left: int
    crop_top: int
    rotation: float = 0.0
    """Degrees, counterclockwise."""
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    """Factors; 1 changes nothing."""
    hue: float = 0.0
    """Degrees of the circle of hues."""


@dataclass(frozen=True, kw_only=True)
class CaptionForms:
    """The captions of an image, and how they vary each time the image is drawn."""

    texts: tuple[str, ...]
    """The captions as they were read. One of them is chosen each time the image is drawn."""
    before: str = ""
    after: str = ""
    """Text that is put before and after every caption. It is never shuffled or dropped."""
    wildcards: bool = False
    shuffle: bool = False
    keep_tokens: int = 0
    keep_separator: str = ""
    tag_separator: str = ","
    secondary_separator: str = ""
    tag_dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PreserveRule:
    """The prompt that stands for what a base model knows already, and how strongly its prediction is kept."""

    trigger: str
    class_prompt: str
    weight: float
    """0: nothing is held; the drift of a held-out image is measured with these words."""
    share: float
    """Probability that a use of the image is held; where it is, by `weight` / `share`."""


@dataclass(frozen=True, kw_only=True)
class CaptionWarmup:
    """Captions that begin with few tags and have all of them after some steps."""

    steps: int
    """Optimizer steps after which captions are whole."""
    least: int
    """Movable tags of a caption at the first step."""
    stages: tuple[tuple[tuple[str, ...], ...], ...] = ()
    """For each caption, for each number of movable tags from `least` to one less than all: its forms. Empty with dynamic captions."""
    lengths: tuple[int, ...] = ()
    """Number of movable tags of each caption."""

    def tags(self, caption: int, step: int) -> int:
        """How many movable tags a caption has after `step` steps: rising evenly, as sd-scripts' token_warmup_step does it."""
        return (step * (self.lengths[caption] - self.least)) // self.steps + self.least


@dataclass(frozen=True)
class Presence:
    """When in a run a set is trained, and how much of it."""

    start_step: int = 0
    """Finished steps from which on it is trained."""
    end_step: int = 0
    """The last step that it is trained in; 0: no end."""
    start_epoch: int = 0
    """The first epoch that it is trained in, counted from 1; 0: the first."""
    end_epoch: int = 0
    """The last epoch that it is trained in; 0: no end."""
    probability: float = 1.0
    """Share of the uses of its images that take place in an epoch."""

    def at(self, step: int, epoch: int) -> bool:
        """Whether the set is trained, after `step` finished steps, in an epoch counted from 0."""
        begun = step >= self.start_step and epoch + 1 >= self.start_epoch
        return (
            begun and not (self.end_step and step >= self.end_step) and not (self.end_epoch and epoch >= self.end_epoch)
        )


ALWAYS = Presence()


@dataclass(frozen=True, kw_only=True)
class SliderRule:
    """What a slider of prompts moves: from the negative prompt to the positive one, `scale` times at strength 1."""

    positive: str
    negative: str
    scale: float


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image of a dataset at one size, with everything that training needs to know about it."""

    path: Path
    digest: str
    """sha256 of the file's bytes."""
    captions: tuple[str, ...]
    """Every text that can occur, the plain form first. One of them is chosen each time the image is drawn."""
    geometry: Geometry
    repeats: int = 1
    """How often the image is used per epoch."""
    weight: float = 1.0
    """Factor on the image's loss."""
    caption_dropout: float = 0.0
    """Probability that the caption is replaced by the empty prompt."""
    role: str = "train"
    """train, regularisation or held_out."""
    teacher: str = "images"
    """images: the target is the usual one; base: the target is the prediction of the base model without the adapter."""
    preserve: "PreserveRule | None" = None
    """What stands in place of the trigger, and how strongly the caption with it is held to the base's prediction; None: no such words."""
    strength: float = 1.0
    """Strength of the adapter while the image is trained."""
    slider: SliderRule | None = None
    """The image is a place where a slider of prompts is trained; None: the image itself is."""
    may_flip: bool = False
    """The mirror image is trained too. One of the two is chosen each time the image is drawn."""
    background: str = "white"
    """Colour that transparent pixels are composited on."""
    references: tuple[Path, ...] = ()
    """Reference images of an edit model, all used together."""
    mask: Path | None = None
    """Image whose brightness weights the loss. The example's own path means its alpha channel."""
    live: CaptionForms | None = None
    """Dynamic captions: where given, a new text is made of it each time the image is drawn, and `captions` holds the plain forms only."""
    variants: tuple[ImageVariant, ...] = ()
    """Variants of the image, the image itself first. One of them is chosen each time the image is drawn. Empty: only itself."""
    caption_dropout_every: int = 0
    """Every so many epochs one without captions; 0: none."""
    warmup: CaptionWarmup | None = None
    presence: Presence | None = None
    """When in the run it is trained; None: always."""
    timestep_range: tuple[float, float] | None = None
    """Lowest and highest share of the schedule that it is trained at; None: those of the run."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that has to be encoded in advance: the captions, and their shorter forms."""
        stages = self.warmup.stages if self.warmup else ()
        return (*self.captions, *(text for caption in stages for forms in caption for text in forms))


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """Fingerprints of the encoders that filled a cache. Cached tensors are only reused by the same encoders."""

    vae: str
    text: str
    text_pixels: int = 0
    """Area at which the text encoder reads reference images, as the side of a square in pixels. 0: it reads the text alone."""


@dataclass(frozen=True, kw_only=True)
class Preserved:
    """The samples of a batch that are held to the base's prediction for their captions without the trigger. S of them."""

    slots: tuple[int, ...]
    """Their places in the batch."""
    conditioning: Conditioning
    weight_S: "Tensor"


@dataclass(frozen=True, kw_only=True)
class Slider:
    """What a batch of a slider of prompts is trained by."""

    positive: Conditioning
    negative: Conditioning
    scale: float


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The samples of one forward pass. Latents are in model space, fp32; the mask has values in [0, 1]."""

    latents_BCHW: "Tensor"
    conditioning: Conditioning
    weight_B: "Tensor"
    mask_B1HW: "Tensor | None"
    names: tuple[str, ...]
    shares: tuple[float, ...] = ()
    """Uniform numbers in [0, 1), one per sample: those of an image walk evenly through the interval from visit to visit."""
    ranges: tuple[tuple[float, float] | None, ...] = ()
    """Each sample's lowest and highest share of the schedule, None for those of the run; empty if no sample has its own."""
    by_base_B: "Tensor | None" = None
    """True for samples whose target is the prediction of the base model without the adapter; None if there are none."""
    unconditional: Conditioning | None = None
    """The conditioning with empty texts, for a guided loss; None if no sample has one."""
    guided_B: "Tensor | None" = None
    """True for samples that have a guided loss: those with a caption whose target is not the base's prediction."""
    preserved: Preserved | None = None
    """The samples with a second loss, which keeps what the base predicts; None if there are none."""
    strength: float = 1.0
    """Strength of the adapter for this batch."""
    slider: Slider | None = None
    """The whole batch trains a slider of prompts; None: its images."""

    @property
    def size(self) -> int:
        """The number of samples."""
        return int(self.latents_BCHW.shape[0])


@dataclass(frozen=True, kw_only=True)
class Route:
    """A share of the image's tokens that passes by some blocks of a network (TREAD)."""

    first: int
    """Number of the first of these blocks, from 0; below 0 counted from the end."""
    last: int
    ratio: float
    """Share of the tokens that is left out."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The measurements of one optimizer step, after it was taken."""

    step: int
    """Number of optimizer steps taken so far, including this one."""
    loss: float
    """Mean loss over the samples of the step."""
    grad_norm: float
    """L2 norm of the gradient of all trainable parameters, before clipping."""
    learning_rate: float
    """Learning rate of the first parameter group at this step."""
    seconds: float
    """Wall time of the step."""
    keys_scaled: int | None = None
    """Number of modules whose change was scaled down to `network.scale_weight_norms`; None without a limit."""

    preservation: float | None = None
    """What holding to the base's prediction adds to `loss`, per sample of the step; None where no sample was held."""

    @property
    def extras(self) -> dict[str, float]:
        """The measurements that only some runs have, by name."""
        every = {"keys_scaled": self.keys_scaled, "preservation": self.preservation}
        return {name: value for name, value in every.items() if value is not None}

    def scalars(self) -> dict[str, float]:
        """What trackers draw of a step."""
        return {"loss": self.loss, "grad_norm": self.grad_norm, "learning_rate": self.learning_rate, **self.extras}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a sweep: a generated image and the settings that produced it."""

    id: str
    image: Path
    checkpoint: str
    strength: float
    prompt: str
    negative: str
    seed: int
    guidance: str
    reference: str = ""
    """File names of the reference images, which an edit model uses together."""
    prompt_name: str = ""
    """The prompt's name in a prompt library; "" for a prompt that is not from one."""
    step: int | None = None
    """Step of training at which the LoRA was saved; 0 for the base model, None where that is not known."""
    settings: Mapping[str, Any] = field(default_factory=dict)
