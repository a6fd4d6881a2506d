"""LoomDataset, LoomDatasetImages: what is trained on. LoomCache: through VAE and text encoder, once."""

from typing import Any

from ..trainer.config import DataConfig, DatasetConfig, MemoryConfig
from .inputs import CATEGORY, link, seed, text, widget
from .values import CACHE, DATASET, DatasetValue

_PREVIOUS = link(DATASET, "Another data set; both are trained together.")


def _common() -> dict[str, Any]:
    return {
        "trigger": widget(DatasetConfig, "trigger"),
        "repeats": widget(DatasetConfig, "repeats", min=1, max=10_000),
        "role": widget(DatasetConfig, "role"),
        "caption_dropout": widget(DatasetConfig, "caption_dropout", max=0.99, step=0.01),
        "weight": widget(DatasetConfig, "weight", min=0.001, max=1000.0, step=0.05),
        "flip": widget(DatasetConfig, "flip"),
    }


class LoomDataset:
    """A folder of captioned images."""

    CATEGORY = CATEGORY
    DESCRIPTION = "A folder of images with captions, for training a LoRA. A folder path is enough; everything else has a sane default."
    RETURN_TYPES = (DATASET, "IMAGE", "STRING")
    RETURN_NAMES = ("dataset", "contact_sheet", "report")
    OUTPUT_TOOLTIPS = ("To LoomCache.", "Every image with its caption.", "What was found.")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "folder": text(
                    "",
                    "Folder of images (png, jpg, webp, avif, bmp, gif), relative to ComfyUI's input directory, or an absolute path.",
                ),
                "captions": widget(DatasetConfig, "captions"),
            },
            "optional": {
                "caption": widget(DatasetConfig, "caption", multiline=True),
                **_common(),
                "recursive": widget(DatasetConfig, "recursive"),
                "masks": text(
                    "",
                    'Folder of mask images with the same names, or "alpha" for the images\' own alpha channel. White is trained.',
                ),
                "references": text(
                    "",
                    "Folder of reference images with the same names, for edit models (Flux Kontext, Qwen-Image-Edit).",
                ),
                "background": widget(DatasetConfig, "background"),
                "previous": _PREVIOUS,
            },
        }

    @classmethod
    def IS_CHANGED(cls, folder: str, **options: Any) -> str:
        """Changes when any file in the folder does."""
        from .host.datasets import folder_state

        return folder_state(folder, recursive=bool(options.get("recursive")))

    def run(self, folder: str, captions: str, previous: DatasetValue | None = None, **options: Any) -> tuple[Any, ...]:
        from .host.datasets import add_folder

        return add_folder(previous, {"folder": folder, "captions": captions, **options})


class LoomDatasetImages:
    """Images from the graph."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Images that come from other nodes, with captions as text: one line each, or one for all. They are written to the cache at once."
    RETURN_TYPES = (DATASET, "IMAGE", "STRING")
    RETURN_NAMES = ("dataset", "contact_sheet", "report")
    OUTPUT_TOOLTIPS = ("To LoomCache.", "Every image with its caption.", "What was taken.")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": link("IMAGE", "The images to train on."),
                "captions": text("", "One caption per line, or a single one for all images.", multiline=True),
            },
            "optional": {
                "masks": link("MASK", "One mask per image, or one for all. White is trained."),
                **_common(),
                "previous": _PREVIOUS,
            },
        }

    def run(
        self, images: Any, captions: str, masks: Any = None, previous: DatasetValue | None = None, **options: Any
    ) -> tuple[Any, ...]:
        from .host.datasets import add_images

        return add_images(previous, images, captions, masks, options)


class LoomCache:
    """Latents and text encodings on disk."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Encodes every image and caption once and keeps the result on disk. An unchanged data set encodes nothing; one edited image or caption encodes just that."
    RETURN_TYPES = (CACHE, "STRING")
    RETURN_NAMES = ("cache", "report")
    OUTPUT_TOOLTIPS = ("To LoomTrain.", "What was reused and what was encoded.")
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "dataset": link(DATASET, "From LoomDataset."),
                "vae": link("VAE", "The VAE of the model that is trained."),
                "clip": link(
                    "CLIP",
                    "The text encoder of the model that is trained, with the clip skip and LoRAs that you generate with.",
                ),
                "resolution": widget(DataConfig, "resolution", min=16, max=8192, step=8),
                "buckets": widget(DataConfig, "buckets"),
                "bucket_step": widget(
                    DataConfig,
                    "bucket_step",
                    default=64,
                    min=8,
                    max=512,
                    step=8,
                    tooltip="Bucket sides are multiples of this many pixels. 64 suits every model; 16 keeps more of odd shapes with SD3, Flux, Lumina2 and Qwen-Image.",
                ),
            },
            "optional": {
                "held_out_share": widget(DataConfig, "held_out_share", max=0.9, step=0.01),
                "min_side": widget(DataConfig, "min_side", min=16, max=8192, step=8),
                "max_side": widget(DataConfig, "max_side", min=16, max=8192, step=8),
                "upscale": widget(DataConfig, "upscale"),
                "seed": seed("Decides which images are held out."),
                "vae_batch": widget(MemoryConfig, "vae_batch", min=1, max=64),
                "vae_tiling": widget(MemoryConfig, "vae_tiling"),
            },
        }

    def run(
        self,
        dataset: DatasetValue,
        vae: Any,
        clip: Any,
        seed: int = 0,
        vae_batch: int = 1,
        vae_tiling: bool = False,
        **data: Any,
    ) -> dict[str, Any]:
        from .host.datasets import fill_cache

        memory = MemoryConfig(vae_batch=vae_batch, vae_tiling=vae_tiling)
        value, report = fill_cache(dataset, vae, clip, DataConfig(**data), seed, memory)
        return {"ui": {"text": [report]}, "result": (value, report)}
