"""The options of data sets: which images, which captions, at which sizes. Part of the tree in `config.py`."""

from dataclasses import dataclass
from typing import Literal

from .section import Section, require

Role = Literal["train", "regularisation", "validation"]
MOST_VARIANTS = 1000
MOST_MEGAPIXELS = 70.0


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Section, table="dataset"):
    folder: str
    """Folder of images: png, jpg, webp, avif, bmp, gif (first frame)."""
    recursive: bool = False
    """Also take images from sub-folders."""
    layout: Literal["plain", "kohya"] = "plain"
    """kohya: the images lie in sub-folders named N_concept; N multiplies repeats, concept is the caption of images without one."""
    captions: Literal["auto", "sidecar", "metadata", "json", "filename", "folder", "fixed"] = "auto"
    """Where captions come from; auto takes sidecar files (.txt, .caption) if there are any, else metadata.*, else file names."""
    caption: str = ""
    """The caption of every image with captions = fixed; with the other kinds, that of images without one."""
    metadata: str = ""
    """Table for captions = metadata: .jsonl, .csv, .parquet, or kohya's .json; empty takes metadata.* beside the images."""
    caption_field: str = ""
    """Column of the table, or key of the JSON file, that holds the caption; empty tries text, caption, prompt, tags, description."""
    file_field: str = ""
    """Column of the table that names the file; empty tries file_name, filename, file, image, image_path, path."""
    caption_lines: Literal["all", "first", "each"] = "all"
    """Caption of several lines: all is one caption, first takes the first line, each makes every line a caption of its own."""
    trigger: str = ""
    """Word put before every caption, so that the LoRA can be called by it."""
    prefix: str = ""
    """Text put before every caption, after the trigger. Never shuffled or dropped."""
    suffix: str = ""
    """Text put after every caption. Never shuffled or dropped."""
    wildcards: bool = False
    """{a|b|c} in a caption stands for one of the three, another one each time; {{ and }} stand for braces."""
    shuffle_tags: bool = False
    """Change the order of the tags each time. Not for sentences."""
    keep_tokens: int = 0
    """How many tags at the start of a caption stay where they are and are never dropped."""
    keep_separator: str = ""
    """Text such as ||| in captions: the tags before it, and after a second one, stay. Replaces keep_tokens where it occurs."""
    tag_separator: str = ","
    """What stands between two tags."""
    secondary_separator: str = ""
    """Text such as ;;; that ties tags together: shuffled and dropped as one, then replaced by tag_separator."""
    tag_dropout: float = 0.0
    """Probability that a tag is left out, each for itself."""
    caption_variants: int = 16
    """Texts made of one caption by shuffling, dropout and wildcards, encoded in advance; 0 makes a new one at every visit (command line)."""
    repeats: int = 1
    """How often each image is seen per epoch. 1 = once."""
    role: Role = "train"
    """train; regularisation (ordinary pictures that keep the base's world, counted apart); validation (loss only)."""
    weight: float = 1.0
    """Factor on the loss of these images; for regularisation images kohya's prior loss weight."""
    teacher: Literal["images", "base"] = "images"
    """What regularisation images teach: their own pictures, or what the base predicts for them without the LoRA (a forward pass more)."""
    caption_dropout: float = 0.0
    """Probability that an image is trained with the empty prompt, which keeps guidance working. 0.05 to 0.1 is usual."""
    flip: bool = False
    """Also train the mirror image (both are cached). Not for anything with a left and a right."""
    masks: str = ""
    """Folder of mask images with the same names, or "alpha" for the images' own alpha channel. White is trained."""
    references: str | tuple[str, ...] = ""
    """Folder of reference images with the same names, for edit models (Flux Kontext, Qwen-Image-Edit); a list of folders where several are shown together, in this order."""
    background: str = "white"
    """Colour that transparent pixels are laid on, by name or #rrggbb."""
    resolutions: tuple[int, ...] = ()
    """Resolutions in pixels at which this set is trained, all of them every epoch; empty takes data.resolution."""
    megapixels: tuple[float, ...] = ()
    """The same as areas in millions of pixels (SimpleTuner's resolution_type area)."""
    buckets: Literal["inherit", "pixel_area", "pixel", "kohya", "off"] = "inherit"
    """Buckets of this set; inherit takes data.buckets."""
    bucket_step: int = 0
    """Bucket sides are multiples of this many pixels; 0 takes data.bucket_step."""
    min_side: int = 0
    """Shortest bucket side in pixels (kohya buckets); 0 takes data.min_side."""
    max_side: int = 0
    """Longest bucket side in pixels (kohya buckets); 0 takes data.max_side."""
    upscale: bool | None = None
    """Let images smaller than their bucket be enlarged; none takes data.upscale."""
    aspects: tuple[float, ...] = ()
    """Width / height of the buckets to choose from (pixel_area and pixel buckets); empty keeps each image's own shape."""
    crop: Literal["center", "top", "corner", "random", "saliency", "none"] = "center"
    """Which part stays: the middle, upper middle, upper left, a place drawn by the seed, what draws the eye; none stretches instead."""
    min_size: int = 0
    """Images smaller than this many pixels are left out, and named in the report; 0 keeps all."""
    max_size: int = 0
    """Images larger than this many pixels are left out, or reduced if downsample is set; 0 keeps all."""
    min_aspect: float = 0.0
    """Images with a smaller width / height are left out, and named in the report; 0 keeps all."""
    max_aspect: float = 0.0
    """Images with a larger width / height are left out, and named in the report; 0 keeps all."""
    downsample: int = 0
    """Images above max_size are reduced to this size and then cropped, so that the crop shows a part of them; 0 off."""
    size_metric: Literal["side", "area"] = "side"
    """What min_size, max_size and downsample measure: the shorter side, or the side of the square of equal area."""

    @property
    def reference_folders(self) -> tuple[str, ...]:
        """`references` as a list, however it was given."""
        given = (self.references,) if isinstance(self.references, str) else self.references
        return tuple(folder for folder in given if folder)

    @property
    def varies(self) -> bool:
        """Whether a caption is another text from visit to visit."""
        return self.wildcards or self.shuffle_tags or self.tag_dropout > 0

    def check(self) -> None:
        require(bool(self.folder.strip()), "dataset.folder", self.folder, "name the folder that holds the images")
        require(self.repeats >= 1, "dataset.repeats", self.repeats, "use 1 or more (1 = seen once per epoch)")
        require(self.weight > 0, "dataset.weight", self.weight, "use a number above 0")
        require(0 <= self.caption_dropout < 1, "dataset.caption_dropout", self.caption_dropout, "use 0 up to below 1")
        if self.captions == "fixed":
            require(bool(self.caption.strip()), "dataset.caption", self.caption, "captions = 'fixed' needs a caption")
        self._check_captions()
        self._check_sizes()

    def _check_captions(self) -> None:
        require(0 <= self.tag_dropout < 1, "dataset.tag_dropout", self.tag_dropout, "use 0 up to below 1")
        require(self.keep_tokens >= 0, "dataset.keep_tokens", self.keep_tokens, "use 0 or more")
        require(bool(self.tag_separator), "dataset.tag_separator", self.tag_separator, "name what stands between tags")
        remedy = f"use 0 (a new text at every visit) or 2 to {MOST_VARIANTS}"
        known = self.caption_variants == 0 or 2 <= self.caption_variants <= MOST_VARIANTS
        require(known, "dataset.caption_variants", self.caption_variants, remedy)

    def _check_sizes(self) -> None:
        require(
            all(r >= 16 for r in self.resolutions), "dataset.resolutions", self.resolutions, "use at least 16 pixels"
        )
        most = MOST_MEGAPIXELS
        remedy = f"use areas in millions of pixels, 0.01 to {most} (1.0 is a square of 1000 x 1000)"
        require(all(0.01 <= m <= most for m in self.megapixels), "dataset.megapixels", self.megapixels, remedy)
        for name in ("bucket_step", "min_side", "max_side", "min_size", "max_size", "downsample"):
            require(getattr(self, name) >= 0, f"dataset.{name}", getattr(self, name), "use 0 or a number of pixels")
        require(
            all(0.1 <= a <= 10 for a in self.aspects), "dataset.aspects", self.aspects, "use width / height, 0.1 to 10"
        )
        ordered = not (self.min_size and self.max_size) or self.min_size <= self.max_size
        require(ordered, "dataset.max_size", self.max_size, f"it must be at least min_size = {self.min_size}")
        ordered = not (self.min_side and self.max_side) or self.min_side <= self.max_side
        require(ordered, "dataset.max_side", self.max_side, f"it must be at least min_side = {self.min_side}")
        for name in ("min_aspect", "max_aspect"):
            require(getattr(self, name) >= 0, f"dataset.{name}", getattr(self, name), "use width / height, or 0")
        ordered = not (self.min_aspect and self.max_aspect) or self.min_aspect <= self.max_aspect
        require(ordered, "dataset.max_aspect", self.max_aspect, f"it must be at least min_aspect = {self.min_aspect}")
        within = not self.downsample or self.downsample <= self.max_size
        require(within, "dataset.downsample", self.downsample, f"it must be at most max_size = {self.max_size}")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section, table="data"):
    resolution: int = 1024
    """Side in pixels of the square whose area every bucket has. The strongest lever on quality and on time."""
    buckets: Literal["pixel_area", "pixel", "kohya", "off"] = "pixel_area"
    """pixel_area keeps each image's own shape at equal area; pixel too, with resolution as the shorter side; kohya uses sd-scripts' list; off crops to the square."""
    bucket_step: int = 0
    """Bucket sides are multiples of this many pixels; 0 takes the family's own step."""
    min_side: int = 256
    """Shortest bucket side in pixels (kohya buckets)."""
    max_side: int = 2048
    """Longest bucket side in pixels (kohya buckets)."""
    upscale: bool = True
    """Let images smaller than their bucket be enlarged; off makes smaller buckets for them (kohya's no_upscale)."""
    strict: bool = False
    """Treat what the report warns of as errors: unreadable files, doubles, enlarged images, missing captions, images left out."""
    validation_split: float = 0.0
    """Share of the training images set aside, by seed, for the held-out loss. 0.1 is usual with 40 images or more."""

    def check(self) -> None:
        require(self.resolution >= 16, "data.resolution", self.resolution, "use at least 16 pixels")
        require(self.bucket_step >= 0, "data.bucket_step", self.bucket_step, "use 0 (the family's own) or more")
        if self.bucket_step:
            remedy = f"it must be at least data.bucket_step = {self.bucket_step}"
            require(self.resolution >= self.bucket_step, "data.resolution", self.resolution, remedy)
        require(0 < self.min_side <= self.max_side, "data.min_side", self.min_side, f"use 1 to {self.max_side}")
        require(0 <= self.validation_split < 1, "data.validation_split", self.validation_split, "use 0 up to below 1")


@dataclass(frozen=True, kw_only=True)
class TextConfig(Section, table="text"):
    clip_tokens: Literal[75, 150, 225] = 225
    """How much of a long caption CLIP reads: one, two or three chunks of 75 tokens, laid out as ComfyUI does. SD, SDXL and SD3."""
    clip_skip: int = 0
    """Which layer of CLIP is read, counted from the end as in ComfyUI's CLIPSetLastLayer (2 = -2); 0 is the family's own. SD, SDXL."""
    prompt_weights: bool = False
    """Read (word:1.2) and (word) in captions and prompts as weights, as ComfyUI does; false takes parentheses literally. SD, SDXL."""
    learning_rate: float = 0.0
    """Peak learning rate of a LoRA on the CLIP text encoders; 0 trains none. A third to a tenth of optimizer.learning_rate is usual. SD, SDXL."""
    system_prompt: str = "auto"
    """What Lumina2 reads before every prompt but the empty one; auto is the model's own sentence, "" is none."""

    def check(self) -> None:
        require(self.learning_rate >= 0, "text.learning_rate", self.learning_rate, "use 0 (none is trained) or more")
        require(0 <= self.clip_skip <= 32, "text.clip_skip", self.clip_skip, "use 0 (the family's own) or 1 to 32")
