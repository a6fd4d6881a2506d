"""LoomDataset, LoomDatasetImages, LoomDatasetFile: images and captions to train on. LoomCache: encodes them once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .node import InputTypes, LoomNode, NodeOutput, Widget
from .sockets.names import AUTO, CACHE, DATASET
from .widgets import EDIT_PROMPTS, folded, link, seed, text, widget

if TYPE_CHECKING:
    from torch import Tensor

    from .host.comfy_types import Clip, Graph, ModelPatcher, Vae
    from .sockets.values import DatasetValue

_PREVIOUS = link(DATASET, "Another dataset. Both are trained together.")


def _common() -> dict[str, Widget]:
    return {
        "trigger": widget("DatasetConfig", "trigger"),
        "repeats": widget("DatasetConfig", "repeats", min=1, max=10_000),
        "role": widget("DatasetConfig", "role"),
        "caption_dropout": widget("DatasetConfig", "caption_dropout", max=0.99, step=0.01),
        "weight": widget("DatasetConfig", "weight", min=0.001, max=1000.0, step=0.05),
        "flip": widget("DatasetConfig", "flip"),
    }


class FormerRoles:
    """Accepts the roles of workflows that an earlier version saved, which the drop-down list no longer offers."""

    @classmethod
    def VALIDATE_INPUTS(cls, role: str | None = None) -> bool | str:
        """True, or what is wrong with the role. A role that comes from another node (None) is checked when the node runs."""
        from ..trainer.config.aliases import current_options
        from ..trainer.errors import did_you_mean

        known = widget("DatasetConfig", "role")[0]
        if role is None or current_options("dataset", {"role": role})["role"] in known:
            return True
        return f"role = {role!r}: {did_you_mean(role, list(known))}"


def _advanced(name: str, **changes: object) -> Widget:
    """A widget that the frontend shows under "advanced"."""
    return widget("DatasetConfig", name, without=(), **changes, advanced=True)


def _caption_forms() -> dict[str, Widget]:
    """Inputs for captions that vary. They are the last of a node: saved workflows list widgets by position."""
    return {
        "lines": _advanced("lines"),
        "prefix": _advanced("prefix"),
        "suffix": _advanced("suffix"),
        "wildcards": _advanced("wildcards"),
        "shuffle_tags": _advanced("shuffle_tags"),
        "keep_tokens": _advanced("keep_tokens", max=1000),
        "keep_separator": _advanced("keep_separator"),
        "tag_separator": _advanced("tag_separator"),
        "secondary_separator": _advanced("secondary_separator"),
        "tag_dropout": _advanced("tag_dropout", max=0.99, step=0.01),
        "caption_variants": _advanced(
            "caption_variants",
            min=2,
            max=1000,
            tooltip="How many variants of a caption (by shuffling, dropout and wildcards) Loom Cache encodes in advance.",
        ),
    }


def _slider() -> dict[str, Widget]:
    """Inputs of a slider: its two prompts, or the sign of a set of image pairs."""
    return {
        "slider_positive": _advanced("slider_positive"),
        "slider_negative": _advanced("slider_negative"),
        "slider_scale": _advanced("slider_scale", min=0.01, max=100.0, step=0.1),
        "strength": _advanced("strength", min=-10.0, max=10.0, step=0.1),
    }


def _preservation() -> dict[str, Widget]:
    """Inputs of teacher = base: what stands in place of the trigger, and how strongly it is held."""
    return {
        "class_prompt": _advanced("class_prompt"),
        "teacher_weight": _advanced("teacher_weight", max=1000.0, step=0.05),
        "teacher_share": _advanced("teacher_share", min=0.01, max=1.0, step=0.05),
    }


def _sizes() -> dict[str, Widget]:
    return {
        "resolutions": _list(
            "resolutions",
            "Resolutions in pixels at which this dataset is trained, all of them in every epoch, such as 512, 768. Empty: that of Loom Cache.",
        ),
        "buckets": _advanced("buckets", tooltip="Aspect-ratio buckets of this dataset. inherit: those of Loom Cache."),
        "aspects": _list(
            "aspects",
            "Aspect ratios (width / height) of the buckets to choose from, for pixel_area and pixel buckets, such as 1.0, 0.75, 1.33. Empty keeps the aspect ratio of each image.",
        ),
        "crop": _advanced("crop"),
        "min_size": _advanced("min_size", max=100_000),
        "max_size": _advanced("max_size", max=100_000),
        "downsample": _advanced("downsample", max=100_000),
        "measure": _advanced("measure"),
    }


def _course() -> dict[str, Widget]:
    """Inputs for what varies in the course of a run. They come after those of earlier versions."""
    return {
        **{
            name: _advanced(name, max=1.0, step=0.05)
            for name in ("random_brightness", "random_contrast", "random_saturation")
        },
        "random_hue": _advanced("random_hue", max=180.0, step=1.0),
        "random_rotation": _advanced("random_rotation", max=180.0, step=1.0),
        "image_variants": _advanced("image_variants", max=1000),
        "caption_dropout_every_n_epochs": _advanced("caption_dropout_every_n_epochs", max=10_000),
        "token_warmup_step": _advanced("token_warmup_step"),
        "token_warmup_min": _advanced("token_warmup_min", max=1000),
        "max_num_samples": _advanced("max_num_samples"),
        "probability": _advanced("probability", min=0.01, max=1.0, step=0.01),
        **{name: _advanced(name) for name in ("start_step", "end_step", "start_epoch", "end_epoch")},
        "timestep_range": _list(
            "timestep_range",
            "Lowest and highest noise level that this dataset is trained at, as shares of the schedule (0 = clean, 1 = pure noise), such as 0.0, 0.5. Empty: those of Loom Objective.",
        ),
    }


def _list(name: str, tooltip: str) -> Widget:
    return "STRING", {"default": "", "tooltip": tooltip, "advanced": True}


class LoomDataset(FormerRoles, LoomNode):
    """A folder of captioned images."""

    TITLE = "Loom Dataset (folder)"
    SEARCH_ALIASES = ("dataset", "training images", "photos", "folder", "captions", "train", "finetune", "dreambooth")
    DESCRIPTION = (
        "A folder of images with captions to train a LoRA on. The folder is enough: everything else has a default."
    )
    RETURN_TYPES = (DATASET, "IMAGE", "STRING")
    RETURN_NAMES = ("dataset", "contact_sheet", "report")
    OUTPUT_TOOLTIPS = (
        "Connect to Loom Cache.",
        "Every image with its caption.",
        "How many images were found, and warnings.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return folded(
            {
                "required": {
                    "folder": text(
                        "",
                        "Folder of images (png, jpg, webp, avif, bmp, tif, gif), relative to ComfyUI's input directory, or an absolute path.",
                    ),
                    "captions": widget("DatasetConfig", "captions"),
                },
                "optional": {
                    "caption": widget("DatasetConfig", "caption", multiline=True),
                    **_common(),
                    "recursive": widget("DatasetConfig", "recursive"),
                    "masks": text(
                        "",
                        'Folder of mask images with the same file names, or "alpha" for the alpha channel of the images. White areas are trained, black ones are not.',
                    ),
                    "references": text(
                        "",
                        "Folder of reference images with the same file names, for edit models (Flux Kontext, Qwen-Image-Edit). Several folders, separated by ;, give each image several references.",
                    ),
                    "background": widget("DatasetConfig", "background"),
                    "layout": _advanced("layout"),
                    "metadata": _advanced("metadata"),
                    "file_field": _advanced("file_field"),
                    "caption_field": _advanced("caption_field"),
                    **_caption_forms(),
                    **_sizes(),
                    "teacher": _advanced("teacher"),
                    **{name: _advanced(name, max=100.0, step=0.01) for name in ("min_aspect", "max_aspect")},
                    "caption_extension": _advanced("caption_extension"),
                    "empty_captions": _advanced("empty_captions"),
                    **_course(),
                    **_preservation(),
                    "only_listed": _advanced("only_listed"),
                    **_slider(),
                    "aspect_choice": _advanced("aspect_choice"),
                    "previous": _PREVIOUS,
                },
            },
            shown=("folder", "captions", "trigger", "repeats"),
        )

    @classmethod
    def IS_CHANGED(cls, **options: object) -> str:
        """A digest that changes with every file of the dataset: images, captions, masks, reference images, tables."""
        from .host.encoding.datasets import folder_state

        return folder_state({**options, "folder": options.get("folder") or ""})

    def run(
        self, folder: str, captions: str, previous: DatasetValue | None = None, **options: object
    ) -> tuple[DatasetValue, Tensor, str]:
        from .host.encoding.datasets import add_folder

        return add_folder(previous, {"folder": folder, "captions": captions, **options})


class LoomDatasetImages(FormerRoles, LoomNode):
    """A dataset of images that other nodes give."""

    TITLE = "Loom Dataset (images)"
    SEARCH_ALIASES = ("dataset", "training images", "captions", "batch to dataset")
    DESCRIPTION = "A dataset of images from other nodes, with one caption per line, or one for all images. The images are written to the cache at once."
    RETURN_TYPES = (DATASET, "IMAGE", "STRING")
    RETURN_NAMES = ("dataset", "contact_sheet", "report")
    OUTPUT_TOOLTIPS = (
        "Connect to Loom Cache.",
        "Every image with its caption.",
        "How many images the dataset has, and warnings.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return folded(
            {
                "required": {
                    "images": link("IMAGE", "The images to train on."),
                    "captions": text("", "One caption per line, or a single caption for all images.", multiline=True),
                },
                "optional": {
                    "masks": link(
                        "MASK",
                        "One mask per image, or one for all images. White areas are trained, black ones are not.",
                    ),
                    **_common(),
                    **{name: made for name, made in _caption_forms().items() if name != "lines"},
                    "previous": _PREVIOUS,
                    "references": link(
                        "IMAGE", "Reference images for edit models: one per image, or one for all images."
                    ),
                    "references_2": link(
                        "IMAGE", "A second reference image for each image, used together with references."
                    ),
                    "references_3": link(
                        "IMAGE", "A third reference image for each image, used together with the other two."
                    ),
                    **_course(),
                    "teacher": _advanced("teacher"),
                    **_preservation(),
                    **_slider(),
                },
            },
            shown=("captions", "trigger", "repeats"),
        )

    def run(
        self,
        images: Tensor,
        captions: str,
        masks: Tensor | None = None,
        references: Tensor | None = None,
        references_2: Tensor | None = None,
        references_3: Tensor | None = None,
        previous: DatasetValue | None = None,
        **options: object,
    ) -> tuple[DatasetValue, Tensor, str]:
        from .host.encoding.datasets import add_images

        return add_images(previous, images, captions, masks, options, [references, references_2, references_3])


class LoomDatasetFile(LoomNode):
    """Datasets of a file, also of another trainer's file."""

    TITLE = "Loom Dataset (file)"
    SEARCH_ALIASES = ("dataset", "toml", "training images", "captions")
    DESCRIPTION = "The datasets that a file describes: kohya's dataset TOML, SimpleTuner's multidatabackend.json, a TOML with [[dataset]] tables, or a whole configuration of another trainer, whose settings Loom Import Settings takes. The report names options that are not supported."
    RETURN_TYPES = (DATASET, "IMAGE", "STRING")
    RETURN_NAMES = ("dataset", "contact_sheet", "report")
    OUTPUT_TOOLTIPS = (
        "Connect to Loom Cache.",
        "Every image with its caption.",
        "How many images were found, and which options of the file were ignored.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "path": text(
                    "",
                    "The file, relative to ComfyUI's input directory, or an absolute path. Folders in it are relative to the file; in a file of another trainer also to a folder above it.",
                ),
            },
            "optional": {"previous": _PREVIOUS},
        }

    @classmethod
    def IS_CHANGED(cls, path: str | None = None, **options: object) -> str:
        """A digest that changes with the file, and with every file of its datasets."""
        from .host.encoding.datasets import file_state

        return file_state(path or "")

    def run(self, path: str, previous: DatasetValue | None = None) -> tuple[DatasetValue, Tensor, str]:
        from .host.encoding.datasets import add_file

        return add_file(previous, path)


class LoomCache(LoomNode):
    """Encodes a dataset: latents and text encodings on disk."""

    TITLE = "Loom Cache"
    SEARCH_ALIASES = ("cache latents", "encode dataset", "buckets", "prepare dataset")
    DESCRIPTION = "Encodes every image and caption once and keeps the result on disk. After a change, only the changed images and captions are encoded again."
    RETURN_TYPES = (CACHE, "STRING", "IMAGE")
    RETURN_NAMES = ("cache", "report", "contact_sheet")
    OUTPUT_TOOLTIPS = (
        "Connect to Loom Train LoRA.",
        "Sizes, buckets and warnings of the dataset, and what was encoded or found in the cache.",
        "Every image with the crop that is trained. Images with warnings come first.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return folded(
            {
                "required": {
                    "dataset": link(DATASET, "From a Loom Dataset node."),
                    "vae": link("VAE", "The VAE of the base model."),
                    "clip": link(
                        "CLIP",
                        "The text encoder of the base model, with the clip skip and LoRAs that you generate images with.",
                    ),
                    "resolution": widget("DataConfig", "resolution", min=16, max=8192, step=8),
                    "buckets": widget("DataConfig", "buckets"),
                    "bucket_step": widget(
                        "DataConfig",
                        "bucket_step",
                        default=64,
                        min=8,
                        max=512,
                        step=8,
                        tooltip="Bucket sides are multiples of this many pixels. 64 suits every model; 16 crops less with SD3, Flux, Lumina2, Z-Image and Qwen-Image.",
                    ),
                },
                "optional": {
                    "held_out_share": widget("DataConfig", "held_out_share", max=0.9, step=0.01),
                    "min_side": widget("DataConfig", "min_side", min=16, max=8192, step=8),
                    "max_side": widget("DataConfig", "max_side", min=16, max=8192, step=8),
                    "upscale": widget("DataConfig", "upscale"),
                    "strict": widget("DataConfig", "strict"),
                    "seed": seed("Decides which images become validation images."),
                    "vae_batch": widget("MemoryConfig", "vae_batch", min=1, max=64),
                    "vae_tiling": widget("MemoryConfig", "vae_tiling"),
                    "edit_prompts": EDIT_PROMPTS,
                    "model": link(
                        "MODEL",
                        "The base model that will be trained. Nothing of it is encoded: a VAE or CLIP that does not belong to it, and patches that training cannot follow, are refused before the first image is encoded.",
                    ),
                },
                "hidden": {"prompt": "PROMPT", "node_id": "UNIQUE_ID"},
            },
            shown=("resolution", "buckets", "held_out_share", "seed"),
        )

    def run(
        self,
        dataset: DatasetValue,
        vae: Vae,
        clip: Clip,
        seed: int = 0,
        vae_batch: int = 1,
        vae_tiling: bool = False,
        edit_prompts: str = AUTO,
        model: ModelPatcher | None = None,
        prompt: Graph | None = None,
        node_id: str | None = None,
        **data: Any,
    ) -> NodeOutput:
        from ..trainer.config.aliases import current_options
        from ..trainer.config.run import DataConfig, MemoryConfig
        from .host.encoding.datasets import fill_cache
        from .host.runs.wiring import models_to_train
        from .queued import refuse_dropped

        refuse_dropped(prompt, node_id)
        models = models_to_train(prompt, node_id, model)
        memory, options = MemoryConfig(vae_batch_size=vae_batch, vae_tiling=vae_tiling), current_options("data", data)
        made = fill_cache(dataset, vae, clip, DataConfig(**options), seed, memory, edit_prompts, models)
        value, report, sheet, shown = made
        return {"ui": {"text": [report], "images": [shown]}, "result": (value, report, sheet)}
