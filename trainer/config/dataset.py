"""The options of data sets: which images, which captions, at which sizes. Part of the tree in `config.py`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .model import Quantize
from .section import Section, require

Role = Literal["train", "regularisation", "validation"]
MOST_VARIANTS = 1000
CAPTION_SUFFIXES = (".txt", ".caption")
"""Extensions of caption files that are tried by default, in this order."""
MOST_MEGAPIXELS = 70.0


RANDOM_COLOURS = ("random_brightness", "random_contrast", "random_saturation")
"""Options that are the largest change of a factor."""
USUAL_VARIANTS = 8
"""Variants of an image with random colours or turns, where their number is not given."""
MAX_REPEATS = 100_000
"""The most uses of an image in an epoch. Every use of an image is an entry of a list."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Section, table="dataset"):
    """A folder of images with captions, and how they are used. A run may have several."""

    folder: str
    """Folder of images: png, jpg, jfif, webp, avif, bmp, tif, gif (first frame); heic with pillow-heif, jxl with pillow-jxl-plugin."""
    recursive: bool = False
    """Also takes images from sub-folders."""
    layout: Literal["plain", "kohya"] = "plain"
    """plain: the images lie in the folder. kohya: they lie in sub-folders named N_concept; N multiplies repeats, concept is the caption of images without one."""
    captions: Literal["auto", "sidecar", "metadata", "json", "filename", "folder", "fixed"] = "auto"
    """Where captions come from; auto takes sidecar files (.txt, .caption) if there are any, else metadata.*, else file names."""
    caption: str = ""
    """Caption of every image with captions = fixed; with the other kinds, of images that have none."""
    metadata: str = ""
    """Table with the captions, for captions = metadata: .jsonl, .csv, .tsv, .parquet, or kohya's .json; empty takes metadata.* in the images' folder."""
    only_listed: bool = False
    """Takes the images that the table names, instead of all that lie in the folder. The names start from the folder or the table, and lead to files below the folder."""
    caption_extension: str = ""
    """Extension of the caption files, such as .tags or .jpg.txt; several, separated by commas, are tried in this order. Empty tries .txt, .caption."""
    empty_captions: bool = False
    """Whether an empty caption file, or an empty caption in a table, trains its image with the empty prompt; otherwise it stops the run."""
    caption_field: str = ""
    """Column of the table, or key of the JSON file, that holds the caption; empty tries text, caption, prompt, tags, description."""
    file_field: str = ""
    """Column of the table that names the file; empty tries file_name, filename, file, image, image_path, path."""
    caption_lines: Literal["all", "first", "each"] = "all"
    """What a caption of several lines is: all makes it one caption, first takes the first line, each makes every line a caption of its own."""
    trigger: str = ""
    """Trigger word: it is put before every caption, so that it calls the LoRA in a prompt."""
    prefix: str = ""
    """Text before every caption, after the trigger. It is never shuffled or dropped."""
    suffix: str = ""
    """Text after every caption. It is never shuffled or dropped."""
    wildcards: bool = False
    """{a|b|c} in a caption stands for one of the three, another one each time the image is drawn; {{ and }} stand for braces."""
    shuffle_tags: bool = False
    """Shuffles the tags of a caption each time the image is drawn. Not for sentences."""
    keep_tokens: int = 0
    """Number of tags at the start of a caption that are never moved or dropped."""
    keep_separator: str = ""
    """Text such as ||| in captions: tags before the first one and after the second are never moved or dropped. Where it occurs it replaces keep_tokens."""
    tag_separator: str = ","
    """Text between two tags."""
    secondary_separator: str = ""
    """Text such as ;;; between tags that belong together: they are shuffled and dropped as one, then it is replaced by tag_separator."""
    tag_dropout: float = 0.0
    """Probability that a tag is left out, drawn for each tag."""
    caption_variants: int = 16
    """Number of texts made of one caption by shuffling, dropout and wildcards, and encoded in advance; 0 makes a new one each time the image is drawn (command line)."""
    repeats: int = 1
    """How often each image is drawn per epoch."""
    role: Role = "train"
    """train: the images are trained on. regularisation: ordinary images that preserve what the base model knows, counted apart. validation: only the validation loss is measured on them."""
    weight: float = 1.0
    """Factor on the loss of these images; for regularisation images it is kohya's prior loss weight."""
    teacher: Literal["images", "base"] = "images"
    """base: what the base model predicts without the LoRA is kept. For images with role = train by one more loss: their captions without the trigger (see class_prompt) are held to the base's prediction, so no class images are needed; a step takes about twice the time. For regularisation images it is the target in place of the images. images: nothing is held."""
    class_prompt: str = ""
    """The class that the trigger stands for, such as "a dog" for the trigger "sks dog". teacher = "base" puts it in place of the trigger; in captions without a trigger it is the whole prompt. Empty leaves the trigger out. The drift from the base is measured with the same prompts on validation images."""
    teacher_weight: float = 1.0
    """Weight of what teacher = "base" adds to the loss of training images; 0 switches it off."""
    teacher_share: float = 1.0
    """Share of the uses of training images at which teacher = "base" acts, each time by so much more: 0.25 takes about 25 % more time per step instead of twice the time."""
    slider_positive: str = ""
    """Trains a slider with slider_negative (docs/sliders.md): a LoRA whose strength moves one attribute, both ways. The prompt with the attribute, such as "a photo of an old person". The base's own predictions are what is learnt; the images only say where, their look is not learnt."""
    slider_negative: str = ""
    """The prompt with the opposite of slider_positive, such as "a photo of a young person"."""
    slider_scale: float = 2.0
    """How far strength 1 of a slider of prompts moves: this many times the difference of the base's predictions for both prompts."""
    strength: float = 1.0
    """Strength of the LoRA while these images are trained. A slider of image pairs has one set at 1 and one with the opposite at -1, with the same captions."""
    caption_dropout: float = 0.0
    """Probability that an image is trained with the empty prompt, which keeps classifier-free guidance working. 0.05 to 0.1 is usual."""
    caption_dropout_every_n_epochs: int = 0
    """Every so many epochs, one is trained with the empty prompt throughout; 0 never."""
    token_warmup_step: int = 0
    """Steps in which captions grow from few tags to all of them (sd-scripts' token warm-up); 0 begins with all."""
    token_warmup_min: int = 1
    """Movable tags of a caption at the first step of the token warm-up."""
    max_num_samples: int = 0
    """At most so many images of this dataset are used, drawn by the seed; 0 uses all."""
    probability: float = 1.0
    """Share of this dataset's images that an epoch uses, others in each epoch; at least one of each bucket."""
    start_step: int = 0
    """Steps after which this dataset joins; 0 trains it from the first step on."""
    end_step: int = 0
    """The last step that this dataset is trained in; 0: no end."""
    start_epoch: int = 0
    """The first epoch that this dataset is trained in, counted from 1; 0: the first. Where a dataset joins or leaves, a new epoch begins."""
    end_epoch: int = 0
    """The last epoch that this dataset is trained in; 0: no end."""
    timestep_range: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest noise level that this dataset is trained at, as shares of the schedule (0 = clean, 1 = pure noise); [0, 1] takes objective.min_timestep and max_timestep."""
    flip: bool = False
    """Also trains the mirror image (both are cached). Not for anything with a left and a right."""
    random_brightness: float = 0.0
    """Also trains variants with another brightness: the factor is drawn from 1 - this to 1 + this. 0.1 to 0.3 is usual."""
    random_contrast: float = 0.0
    """The same with the contrast."""
    random_saturation: float = 0.0
    """The same with the saturation of colours."""
    random_hue: float = 0.0
    """The same with hues: they are turned by up to this many degrees, 180 at most. Not where colours matter."""
    random_rotation: float = 0.0
    """Also trains variants turned by up to this many degrees, either way. No corner is filled: a turned crop shows the largest part that lies inside the image."""
    image_variants: int = 0
    """Number of variants of each image that random colours, turns and crops make; all are cached, one of them is drawn each time. 0: 8 with colours or turns, and one place of a random crop."""
    masks: str = ""
    """Folder of mask images with the same names, or "alpha" for the images' own alpha channel. White is trained."""
    references: str | tuple[str, ...] = ""
    """Folder of reference images with the same names, for edit models (Flux Kontext, Qwen-Image-Edit); a list of folders whose images are used together, in this order."""
    background: str = "white"
    """Colour behind transparent pixels, by name or #rrggbb."""
    resolutions: tuple[int, ...] = ()
    """Resolutions in pixels at which this dataset is trained, all of them every epoch; empty takes data.resolution."""
    megapixels: tuple[float, ...] = ()
    """Resolutions as areas in millions of pixels, instead of resolutions (SimpleTuner's resolution_type area)."""
    buckets: Literal["inherit", "pixel_area", "pixel", "kohya", "off"] = "inherit"
    """Buckets of this dataset; inherit takes data.buckets."""
    bucket_step: int = 0
    """Bucket sides are multiples of this many pixels; 0 takes data.bucket_step."""
    min_side: int = 0
    """Shortest bucket side in pixels (kohya buckets); 0 takes data.min_side."""
    max_side: int = 0
    """Longest bucket side in pixels (kohya buckets); 0 takes data.max_side."""
    upscale: bool | None = None
    """Whether images smaller than their bucket are upscaled; left out, data.upscale decides."""
    aspects: tuple[float, ...] = ()
    """Width / height of the buckets to choose from (pixel_area and pixel buckets); empty keeps each image's own shape."""
    crop: Literal["center", "top", "corner", "random", "saliency", "face", "none"] = "center"
    """Part of an image that stays where the bucket has another shape: the middle, the upper middle, the upper left, a place drawn by the seed, the most salient one, or the one round the largest face (needs opencv-python-headless below 5); none stretches the image instead."""
    min_size: int = 0
    """Images smaller than this many pixels are left out and named in the report; 0 keeps all."""
    max_size: int = 0
    """Images larger than this many pixels are left out, or downscaled if downsample is set; 0 keeps all."""
    min_aspect: float = 0.0
    """Images with a smaller width / height are left out and named in the report; 0 keeps all."""
    max_aspect: float = 0.0
    """Images with a larger width / height are left out and named in the report; 0 keeps all."""
    downsample: int = 0
    """Images above max_size are downscaled to this size and then cropped, so that the crop shows a part of them; 0 switches it off."""
    size_metric: Literal["side", "area"] = "side"
    """What min_size, max_size and downsample measure: the shorter side, or the side of the square of equal area."""
    aspect_choice: Literal["closest", "random"] = "closest"
    """Which of aspects an image gets: the one closest to its own shape, or one drawn by the seed for each image and resolution, whatever its shape (SimpleTuner's crop_aspect random)."""

    @property
    def reference_folders(self) -> tuple[str, ...]:
        """`references` as a list, however it was given."""
        given = (self.references,) if isinstance(self.references, str) else self.references
        return tuple(folder for folder in given if folder)

    @property
    def caption_suffixes(self) -> tuple[str, ...]:
        """`caption_extension` as a list, each with its dot."""
        given = [part.strip() for part in self.caption_extension.split(",") if part.strip()]
        return tuple(part if part[0] == "." else f".{part}" for part in given) or CAPTION_SUFFIXES

    @property
    def changes_images(self) -> bool:
        """Whether images are trained in other colours or turned."""
        return any(getattr(self, name) for name in (*RANDOM_COLOURS, "random_hue", "random_rotation"))

    @property
    def preserves(self) -> float:
        """Weight by which training images are held to the base's prediction; 0 where they are not."""
        return self.teacher_weight if self.role == "train" and self.teacher == "base" else 0.0

    @property
    def varies(self) -> bool:
        """Whether a caption is another text from visit to visit."""
        return self.wildcards or self.shuffle_tags or self.tag_dropout > 0

    def check(self) -> None:
        require(bool(self.folder.strip()), "dataset.folder", self.folder, "name the folder that holds the images")
        plain = not any(mark in self.caption_extension for mark in "/\\")
        require(plain, "dataset.caption_extension", self.caption_extension, "use an extension such as .tags")
        require(self.repeats >= 1, "dataset.repeats", self.repeats, "use 1 or more (1 = seen once per epoch)")
        require(self.repeats <= MAX_REPEATS, "dataset.repeats", self.repeats, f"use {MAX_REPEATS} or less")
        require(self.weight > 0, "dataset.weight", self.weight, "use a number above 0")
        self._check_slider()
        require(self.teacher_weight >= 0, "dataset.teacher_weight", self.teacher_weight, "use 0 (off) or more")
        remedy = "use a number above 0, up to 1 (every use)"
        require(0 < self.teacher_share <= 1, "dataset.teacher_share", self.teacher_share, remedy)
        require(0 <= self.caption_dropout < 1, "dataset.caption_dropout", self.caption_dropout, "use 0 up to below 1")
        if self.captions == "fixed":
            require(bool(self.caption.strip()), "dataset.caption", self.caption, "captions = 'fixed' needs a caption")
        self._check_captions()
        self._check_sizes()
        self._check_variants()

        self._check_course()

    def _check_course(self) -> None:
        for name in ("caption_dropout_every_n_epochs", "token_warmup_step", "token_warmup_min", "max_num_samples"):
            require(getattr(self, name) >= 0, f"dataset.{name}", getattr(self, name), "use 0 or more")
        require(
            self.caption_dropout_every_n_epochs != 1,
            "dataset.caption_dropout_every_n_epochs",
            1,
            "use 2 or more: with 1 no caption is trained",
        )
        low, high = self.timestep_range
        remedy = "use two shares of the schedule, the lower first, such as [0.0, 0.5]"
        require(0 <= low < high <= 1, "dataset.timestep_range", self.timestep_range, remedy)
        require(0 < self.probability <= 1, "dataset.probability", self.probability, "use a number above 0, up to 1")
        for unit in ("step", "epoch"):
            start, end = getattr(self, f"start_{unit}"), getattr(self, f"end_{unit}")
            require(start >= 0, f"dataset.start_{unit}", start, "use 0 or more")
            require(end >= 0, f"dataset.end_{unit}", end, "use 0 (no end) or more")
            first = start + 1 if unit == "step" else start
            remedy = f"it must be at least {first}, since start_{unit} = {start}"
            require(not end or end >= first, f"dataset.end_{unit}", end, remedy)

    def _check_variants(self) -> None:
        for name in RANDOM_COLOURS:
            require(0 <= getattr(self, name) <= 1, f"dataset.{name}", getattr(self, name), "use 0 (off) to 1")
        for name in ("random_hue", "random_rotation"):
            require(0 <= getattr(self, name) <= 180, f"dataset.{name}", getattr(self, name), "use 0 to 180 degrees")
        remedy = f"use 0 (8 with random colours or turns) or 2 to {MOST_VARIANTS}"
        known = self.image_variants == 0 or 2 <= self.image_variants <= MOST_VARIANTS
        require(known, "dataset.image_variants", self.image_variants, remedy)
        remedy = "leave out random colours and turns: an image would no longer match its reference image"
        require(not (self.changes_images and self.references), "dataset.references", self.references, remedy)

    def _check_slider(self) -> None:
        given = bool(self.slider_positive.strip()), bool(self.slider_negative.strip())
        remedy = "a slider has two prompts: give slider_positive and slider_negative"
        require(given[0] == given[1], "dataset.slider_positive", self.slider_positive, remedy)
        differ = not any(given) or self.slider_positive.strip() != self.slider_negative.strip()
        require(differ, "dataset.slider_negative", self.slider_negative, "it must differ from slider_positive")
        require(self.slider_scale > 0, "dataset.slider_scale", self.slider_scale, "use a number above 0 (2 is usual)")
        remedy = "use a number other than 0, -10 to 10 (1, and -1 for the opposite images)"
        require(self.strength != 0 and abs(self.strength) <= 10, "dataset.strength", self.strength, remedy)
        alone = not any(given) or (self.role == "train" and self.teacher == "images" and self.strength == 1)
        remedy = "a slider of prompts has role = 'train', teacher = 'images' and strength = 1"
        require(alone, "dataset.slider_positive", self.slider_positive, remedy)

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
        named = self.aspect_choice == "closest" or bool(self.aspects)
        require(named, "dataset.aspect_choice", self.aspect_choice, "name the shapes to draw from as dataset.aspects")
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
    """What all datasets of a run have in common: resolution, buckets, and the held-out images."""

    resolution: int = 1024
    """Side in pixels of the square whose area every bucket has. It decides most about quality and time."""
    buckets: Literal["pixel_area", "pixel", "kohya", "off"] = "pixel_area"
    """pixel_area keeps each image's own shape at equal area; pixel too, with resolution as the shorter side; kohya uses sd-scripts' list; off crops to the square."""
    bucket_step: int = 0
    """Bucket sides are multiples of this many pixels; 0 takes the family's own step."""
    min_side: int = 256
    """Shortest bucket side in pixels (kohya buckets)."""
    max_side: int = 2048
    """Longest bucket side in pixels (kohya buckets)."""
    upscale: bool = True
    """Whether images smaller than their bucket are upscaled; off makes smaller buckets for them (kohya's bucket_no_upscale)."""
    strict: bool = False
    """Turns each warning of the dataset report into an error: unreadable files, duplicates, upscaled images, missing captions, images left out."""
    validation_split: float = 0.0
    """Share of the training images that are held out, by seed, to measure the validation loss. 0.1 is usual with 40 images or more."""

    def check(self) -> None:
        require(self.resolution >= 16, "data.resolution", self.resolution, "use at least 16 pixels")
        require(self.resolution <= 16_384, "data.resolution", self.resolution, "use at most 16384 pixels")
        require(self.bucket_step >= 0, "data.bucket_step", self.bucket_step, "use 0 (the family's own) or more")
        if self.bucket_step:
            remedy = f"it must be at least data.bucket_step = {self.bucket_step}"
            require(self.resolution >= self.bucket_step, "data.resolution", self.resolution, remedy)
        require(0 < self.min_side <= self.max_side, "data.min_side", self.min_side, f"use 1 to {self.max_side}")
        require(0 <= self.validation_split < 1, "data.validation_split", self.validation_split, "use 0 up to below 1")


@dataclass(frozen=True, kw_only=True)
class TextConfig(Section, table="text"):
    """How captions and prompts are encoded, and whether the text encoders are trained too."""

    clip_tokens: Literal[75, 150, 225] = 225
    """Number of tokens of a caption that CLIP reads: one, two or three chunks of 75, arranged as in ComfyUI. SD, SDXL and SD3."""
    clip_skip: int = 0
    """Layer of CLIP whose output is used, counted from the end as in ComfyUI's CLIPSetLastLayer (2 = -2); 0 is the family's own. SD, SDXL."""
    prompt_weights: bool = False
    """Reads (word:1.2) and (word) in captions and prompts as weights, as ComfyUI does; false takes parentheses literally. SD, SDXL."""
    learning_rate: float = 0.0
    """Peak learning rate of a LoRA on the CLIP text encoders; 0 trains none. A third to a tenth of optimizer.learning_rate is usual. SD, SDXL."""
    learning_rate_2: float = -1.0
    """The same of SDXL's second text encoder, OpenCLIP-G; -1 is that of the first, 0 does not train it."""
    alone: bool = False
    """Trains the text encoders alone: the base model's network gets no adapter."""
    system_prompt: str = "auto"
    """System prompt of Lumina2, before every prompt but the empty one; auto is the model's own sentence, "" is none."""

    t5_attention_mask: bool = False
    """Masks the padding of T5: its tokens behind a caption are neither read by T5 nor by the network, in training and in samples. For models that were trained so, such as LibreFLUX; Flux and SD3 themselves read the padding. Captions of unequal length in a batch are run apart. Flux, SD3. In the graph ComfyUI's T5TokenizerOptions (both 0) between CLIP loader and Loom nodes does it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the text encoders; auto is bfloat16 on a GPU and float32 on a CPU. They are gone before the base model comes, unless memory.cache is online or they are trained. Captions are encoded anew when it changes. float16 is too narrow for T5 and Gemma."""
    quantize: Quantize = "none"
    """Quantizes the text encoders but CLIP's, which are small: T5-XXL takes 5 GB in int8 instead of 9.5. For cards that have no room for them while captions are encoded. Captions are encoded anew when it changes, and differ slightly. Values as of model.quantize."""

    @property
    def is_trained(self) -> bool:
        """Whether a text encoder gets an adapter."""
        return self.learning_rate > 0 or self.learning_rate_2 > 0

    def rates(self, names: Iterable[str]) -> dict[str, float]:
        """The learning rate of each text encoder, by its name in LoRA files (te, te1, te2); without those that are not trained."""
        second = self.learning_rate if self.learning_rate_2 < 0 else self.learning_rate_2
        each = {name: second if name.endswith("2") else self.learning_rate for name in names}
        return {name: rate for name, rate in each.items() if rate}

    def check(self) -> None:
        require(self.learning_rate >= 0, "text.learning_rate", self.learning_rate, "use 0 (none is trained) or more")
        rate_2 = self.learning_rate_2
        require(rate_2 >= 0 or rate_2 == -1, "text.learning_rate_2", rate_2, "use -1 (that of the first), 0 or more")
        remedy = "set text.learning_rate, or leave it out"
        require(not self.alone or self.is_trained, "text.alone", self.alone, remedy)
        remedy = "text encoders that are trained keep their weights; leave it out"
        require(self.quantize == "none" or not self.is_trained, "text.quantize", self.quantize, remedy)
        require(0 <= self.clip_skip <= 32, "text.clip_skip", self.clip_skip, "use 0 (the family's own) or 1 to 32")
