"""The options of data sets: which images, which captions, at which sizes. Part of the tree in `config.py`."""

from dataclasses import dataclass
from typing import Literal

from .config_base import Section, require

Role = Literal["train", "regularisation", "held_out"]


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Section):
    folder: str
    """Folder of images: png, jpg, webp, avif, bmp, gif (first frame)."""
    recursive: bool = False
    """Also take images from sub-folders."""
    captions: Literal["auto", "sidecar", "filename", "folder", "fixed"] = "auto"
    """Where captions come from; auto takes sidecar files (.txt, .caption) if there are any, else file names."""
    caption: str = ""
    """The caption of every image with captions = fixed; with the other kinds, that of images without one."""
    trigger: str = ""
    """Word put before every caption, so that the LoRA can be called by it."""
    repeats: int = 1
    """How often each image is seen per epoch. 1 = once."""
    role: Role = "train"
    """train; regularisation (ordinary pictures that keep the base's world, counted apart); held_out (loss only)."""
    weight: float = 1.0
    """Factor on the loss of these images."""
    caption_dropout: float = 0.0
    """Probability that an image is trained with the empty prompt, which keeps guidance working. 0.05 to 0.1 is usual."""
    flip: bool = False
    """Also train the mirror image (both are cached). Not for anything with a left and a right."""
    masks: str = ""
    """Folder of mask images with the same names, or "alpha" for the images' own alpha channel. White is trained."""
    references: str = ""
    """Folder of reference images with the same names, for edit models (Flux Kontext, Qwen-Image-Edit)."""
    background: str = "white"
    """Colour that transparent pixels are laid on, by name or #rrggbb."""

    def __post_init__(self) -> None:
        require(bool(self.folder.strip()), "dataset.folder", self.folder, "name the folder that holds the images")
        require(self.repeats >= 1, "dataset.repeats", self.repeats, "use 1 or more (1 = seen once per epoch)")
        require(self.weight > 0, "dataset.weight", self.weight, "use a number above 0")
        require(0 <= self.caption_dropout < 1, "dataset.caption_dropout", self.caption_dropout, "use 0 up to below 1")
        if self.captions == "fixed":
            require(bool(self.caption.strip()), "dataset.caption", self.caption, "captions = 'fixed' needs a caption")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    resolution: int = 1024
    """Side in pixels of the square whose area every bucket has. The strongest lever on quality and on time."""
    buckets: Literal["pixel_area", "kohya", "off"] = "pixel_area"
    """pixel_area keeps each image's own shape at equal area; kohya uses sd-scripts' list; off crops to the square."""
    bucket_step: int = 0
    """Bucket sides are multiples of this many pixels; 0 takes the family's own step."""
    min_side: int = 256
    """Shortest bucket side in pixels (kohya buckets)."""
    max_side: int = 2048
    """Longest bucket side in pixels (kohya buckets)."""
    upscale: bool = True
    """Let images smaller than their bucket be enlarged; off makes smaller buckets for them (kohya's no_upscale)."""
    held_out_share: float = 0.0
    """Share of the training images set aside, by seed, for the held-out loss. 0.1 is usual with 40 images or more."""

    def __post_init__(self) -> None:
        require(self.resolution >= 16, "data.resolution", self.resolution, "use at least 16 pixels")
        require(self.bucket_step >= 0, "data.bucket_step", self.bucket_step, "use 0 (the family's own) or more")
        if self.bucket_step:
            remedy = f"it must be at least data.bucket_step = {self.bucket_step}"
            require(self.resolution >= self.bucket_step, "data.resolution", self.resolution, remedy)
        require(0 < self.min_side <= self.max_side, "data.min_side", self.min_side, f"use 1 to {self.max_side}")
        require(0 <= self.held_out_share < 1, "data.held_out_share", self.held_out_share, "use 0 up to below 1")


@dataclass(frozen=True, kw_only=True)
class TextConfig(Section):
    clip_tokens: Literal[75, 150, 225] = 225
    """How much of a long caption CLIP reads: one, two or three chunks of 75 tokens, laid out as ComfyUI does. SD and SDXL."""
    clip_skip: int = 0
    """Which layer of CLIP is read, counted from the end as in ComfyUI's CLIPSetLastLayer (2 = -2); 0 is the family's own. SD, SDXL."""
    system_prompt: str = "auto"
    """What Lumina2 reads before every prompt but the empty one; auto is the model's own sentence, "" is none."""

    def __post_init__(self) -> None:
        require(0 <= self.clip_skip <= 32, "text.clip_skip", self.clip_skip, "use 0 (the family's own) or 1 to 32")
