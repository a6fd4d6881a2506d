"""LoomCheckpoints, LoomGuidance, LoomSweep, LoomScore, LoomStrip, LoomAPG: compare the checkpoints of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .node import InputTypes, LoomNode, NodeOutput, Widget
from .sockets.names import CACHE, CHECKPOINTS, GUIDANCE, RUN, SHEET
from .widgets import PROMPT_LIBRARY, folded, link, reference_inputs, skip_inputs, skip_options, text, widget

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from .host.comfy_types import Clip, ClipVision, ModelPatcher, Vae
    from .host.sweep.sheets import CheckpointPick, SweepInputs
    from .sockets.values import CacheValue, CheckpointsValue, GuidanceValue, RunValue, SheetValue

AXES_HELP = "of checkpoint, strength, prompt, seed, guidance, reference, size, steps, sampler, separated by commas. An axis that is neither in columns nor in rows makes pages."


def _apg() -> dict[str, Widget]:
    return {
        "eta": widget("GuidanceConfig", "eta", min=-10.0, max=10.0, step=0.05),
        "norm_threshold": widget("GuidanceConfig", "norm_threshold", max=1000.0, step=0.5),
        "momentum": widget("GuidanceConfig", "momentum", min=-0.99, max=0.99, step=0.05),
    }


def _rescale() -> Widget:
    return widget("GuidanceConfig", "rescale", max=1.0, step=0.05)


class LoomCheckpoints(LoomNode):
    """LoRA files to compare."""

    TITLE = "Loom Checkpoints"
    SEARCH_ALIASES = ("checkpoints", "compare loras", "epochs", "saved loras")
    DESCRIPTION = "Chooses the LoRAs for Loom Sweep: those that a run has saved so far, or any LoRA files."
    RETURN_TYPES = (CHECKPOINTS,)
    RETURN_NAMES = ("checkpoints",)
    OUTPUT_TOOLTIPS = ("Connect to Loom Sweep.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "include_base": (
                    "BOOLEAN",
                    {"default": True, "tooltip": "Also render the base model without a LoRA, for comparison."},
                ),
                "pick": (
                    ["all", "every nth", "last n"],
                    {
                        "default": "all",
                        "tooltip": "Which of the LoRAs to compare. every nth counts back from the last one.",
                    },
                ),
                "n": (
                    "INT",
                    {"default": 1, "min": 1, "max": 1000, "tooltip": "The number n for every nth and last n."},
                ),
            },
            "optional": {
                "run": link(RUN, "From Loom Train LoRA, Loom Wait for Run or Loom Run."),
                "files": text(
                    "",
                    "Instead of a run: LoRA files as LoraLoader lists them, one per line. * and ? match several files.",
                    multiline=True,
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, **inputs: object) -> str:
        from .host.runs.actions import states

        return states()

    def run(
        self, include_base: bool, pick: CheckpointPick, n: int, run: RunValue | None = None, files: str = ""
    ) -> tuple[CheckpointsValue]:
        from .host.sweep.sheets import collect

        return (collect(run, files, pick, n, include_base=include_base),)


class LoomGuidance(LoomNode):
    """One guidance setting of a sweep."""

    TITLE = "Loom Guidance"
    SEARCH_ALIASES = ("cfg", "apg", "guidance scale", "compare guidance")
    DESCRIPTION = "A guidance setting for Loom Sweep. Chain several of these nodes to compare them."
    RETURN_TYPES = (GUIDANCE,)
    RETURN_NAMES = ("guidance",)
    OUTPUT_TOOLTIPS = ("Connect to Loom Sweep, or to previous of another Loom Guidance.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "label": widget("GuidanceConfig", "label"),
                "method": widget("GuidanceConfig", "method"),
                "cfg": widget("GuidanceConfig", "scale", max=100.0, step=0.1),
                **_apg(),
            },
            "optional": {
                "rescale": _rescale(),
                **skip_inputs("GuidanceConfig"),
                "previous": link(GUIDANCE, "Another guidance setting. All of them are compared."),
            },
        }

    def run(self, cfg: float, previous: GuidanceValue | None = None, **options: Any) -> tuple[GuidanceValue]:
        from ..trainer.config.run import GuidanceConfig
        from .sockets.values import GuidanceValue

        named = {name: value for name, value in options.items() if not name.startswith("skip_layer")}
        setting = GuidanceConfig(scale=cfg, **named, **skip_options(options))
        return (GuidanceValue(settings=(*(previous.settings if previous else ()), setting)),)


class LoomSweep(LoomNode):
    """Renders checkpoints x strengths x references x prompts x seeds x guidance."""

    TITLE = "Loom Sweep"
    SEARCH_ALIASES = ("xyz", "xy plot", "grid", "compare loras", "lora test", "parameter sweep")
    DESCRIPTION = "Renders an image for every combination of checkpoints, prompts, seeds and other settings, with ComfyUI's sampler. Images that exist already are not rendered again."
    RETURN_TYPES = (SHEET, "IMAGE")
    RETURN_NAMES = ("sheet", "images")
    OUTPUT_TOOLTIPS = ("The sweep. Connect to Loom Strip or Loom Score.", "All images of the sweep, in reading order.")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        from .host.sweep.sampler_names import sampler_names

        samplers, schedulers = sampler_names()
        return folded(
            {
                "required": {
                    "model": link("MODEL", "The base model that the LoRAs were trained on, without a LoRA."),
                    "clip": link("CLIP", "Encodes the prompts."),
                    "vae": link("VAE", "Decodes the images."),
                    "checkpoints": link(CHECKPOINTS, "From Loom Checkpoints."),
                    "prompts": text("", "One prompt per line.", multiline=True),
                    "strengths": widget("SweepConfig", "strengths"),
                    "seeds": widget("SweepConfig", "seeds"),
                    "width": (
                        "INT",
                        {"default": 512, "min": 16, "max": 8192, "step": 8, "tooltip": "Size of the images in pixels."},
                    ),
                    "height": (
                        "INT",
                        {"default": 512, "min": 16, "max": 8192, "step": 8, "tooltip": "Size of the images in pixels."},
                    ),
                    "steps": widget("SweepConfig", "steps", min=1, max=1000),
                    "sampler": (samplers, {"default": "euler", "tooltip": "As in KSampler."}),
                    "scheduler": (schedulers, {"default": "normal", "tooltip": "As in KSampler."}),
                },
                "optional": {
                    "negative": widget("SweepConfig", "negative", multiline=True),
                    "guidance": link(
                        GUIDANCE, "From Loom Guidance. Without it: CFG 4, or 1 for models that are distilled to it."
                    ),
                    "model_guidance": (
                        "FLOAT",
                        {
                            "default": 3.5,
                            "min": 0.0,
                            "max": 100.0,
                            "step": 0.1,
                            "tooltip": "Guidance value for guidance-distilled models (Flux dev), as FluxGuidance sets it. Other models ignore it.",
                        },
                    ),
                    "sizes": text("", "Several sizes to compare, such as 512x512, 768x512. Empty: width and height."),
                    "step_counts": text(
                        "", "Several numbers of sampling steps to compare, such as 10,20 or 10-30 [3]. Empty: steps."
                    ),
                    "samplers": text(
                        "",
                        "Several samplers to compare, such as euler/normal, dpmpp_2m/karras. Empty: sampler and scheduler.",
                    ),
                    "max_cells": widget(
                        "SweepConfig",
                        "max_cells",
                        min=1,
                        max=100_000,
                        tooltip="With more images to render than this, the node stops after two of them with an estimate of the time for all.",
                    ),
                    "prompt_library": text("", PROMPT_LIBRARY),
                    **reference_inputs("image"),
                    "wildcards": widget("SweepConfig", "wildcards"),
                },
                "hidden": {"prompt": "PROMPT", "node_id": "UNIQUE_ID"},
            },
            shown=("prompts", "strengths", "seeds", "width", "height", "steps"),
        )

    @classmethod
    def IS_CHANGED(cls, prompt_library: str | None = None, **inputs: object) -> str:
        """The content of the prompt library, so that a changed file runs the node again."""
        from .host.paths import library_state

        return library_state(prompt_library or "")

    def run(
        self,
        model: ModelPatcher,
        clip: Clip,
        vae: Vae,
        checkpoints: CheckpointsValue,
        guidance: GuidanceValue | None = None,
        **inputs: Unpack[SweepInputs],
    ) -> tuple[SheetValue, Tensor]:
        from .host.sweep.sheets import rendered_sheet

        return rendered_sheet(model, vae, clip, checkpoints, guidance, inputs)


class LoomScore(LoomNode):
    """Recommends a checkpoint of a sweep."""

    TITLE = "Loom Score"
    SEARCH_ALIASES = ("best checkpoint", "rank loras", "evaluate lora", "overfitting")
    DESCRIPTION = "Ranks the checkpoints of a sweep and recommends one, with a confidence interval and a runner-up; Loom Strip then frames it. The validation loss decides; image similarity, drift, memorised images and adapter norm are reported too."
    RETURN_TYPES = (SHEET, "STRING", "IMAGE")
    RETURN_NAMES = ("sheet", "table", "plot")
    OUTPUT_TOOLTIPS = (
        "The sweep with its scores. Connect to Loom Strip, which frames the recommended checkpoint.",
        "All measures of every checkpoint, the recommendation, the runner-up, and how they were measured.",
        "Every measure over the training steps.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "sheet": (SHEET, {"tooltip": "The sweep, from Loom Sweep.", "display_name": "sweep"}),
                "cache": link(CACHE, "The Loom Cache that was trained on, with validation images (validation_split)."),
            },
            "optional": {
                "model": link(
                    "MODEL",
                    "The base model of the sweep: the validation loss of every LoRA file is then measured here. Without it, the losses that the run recorded are used.",
                ),
                "clip_vision": link(
                    "CLIP_VISION",
                    "Compares images by content. Without it they are compared by colour, edges and structure.",
                ),
                "trigger": text(
                    "",
                    "Trigger words, separated by commas; empty takes those of the datasets. Drift is measured on prompts without them, bleed on prompts with one of several.",
                ),
            },
        }

    def run(
        self,
        sheet: SheetValue,
        cache: CacheValue,
        model: ModelPatcher | None = None,
        clip_vision: ClipVision | None = None,
        trigger: str = "",
    ) -> NodeOutput:
        from .host.sweep.scores import scored_sheet

        value, table, plot, preview = scored_sheet(sheet, cache, model, clip_vision, trigger)
        return {"ui": {"text": [table], "images": [preview]}, "result": (value, table, plot)}


class LoomStrip(LoomNode):
    """Draws the labelled grid of a sweep."""

    TITLE = "Loom Strip"
    SEARCH_ALIASES = ("xyz", "xy plot", "grid", "contact sheet", "compare images")
    DESCRIPTION = "Draws the images of a sweep as a labelled grid and shows it. It is saved in the folder of the run as PNG, HTML (with zoom and comparison), CSV and JSON."
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("strip", "path")
    OUTPUT_TOOLTIPS = ("The grid, one image per page.", "File of the first page.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "sheet": (SHEET, {"tooltip": "The sweep, from Loom Sweep or Loom Score.", "display_name": "sweep"}),
                "layout": (
                    ["grid", "panels"],
                    {
                        "default": "grid",
                        "tooltip": "grid: all images, by columns and rows. panels: base model, last LoRA, and last LoRA with APG, side by side.",
                    },
                ),
                "columns": text(
                    "checkpoint, strength, guidance", f"What varies from left to right: one or more {AXES_HELP}"
                ),
                "rows": text("reference, prompt, seed", f"What varies from top to bottom: one or more {AXES_HELP}"),
                "title": text("", "Title of the grid. Empty: the name of the run."),
            },
        }

    def run(self, sheet: SheetValue, layout: str, columns: str, rows: str, title: str) -> NodeOutput:
        from .host.paths import display_path, page_of_run
        from .host.runs.server import emit
        from .host.sweep.sheets import drawn_strip

        paths, image = drawn_strip(sheet, layout, columns, rows, title)
        shown: dict[str, list[object]] = {"images": [display_path(path) for path in paths]}
        if page := page_of_run(paths[0].with_suffix(".html")):
            shown["loom_page"] = [page]
            emit("lora_loom.page", {"name": page["run"], "file": page["file"]})
        return {"ui": shown, "result": (image, str(paths[0]))}


class LoomAPG(LoomNode):
    """Adaptive projected guidance for any sampler."""

    TITLE = "Loom APG"
    SEARCH_ALIASES = ("apg", "adaptive projected guidance", "oversaturation", "cfg")
    DESCRIPTION = "Adaptive projected guidance (arXiv 2410.02416) at the cfg of the sampler: less oversaturation at high guidance scales. With eta 1, no threshold and no momentum it equals plain CFG. rescale restores contrast (arXiv 2305.08891)."
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model with the guidance, for any sampler.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {"model": link("MODEL", "Any model. At cfg 1 nothing changes."), **_apg()},
            "optional": {"rescale": _rescale()},
        }

    def run(
        self, model: ModelPatcher, eta: float, norm_threshold: float, momentum: float, rescale: float = 0.0
    ) -> tuple[ModelPatcher]:
        from .host.sweep.apg import add_guidance

        return (add_guidance(model, eta, norm_threshold, momentum, rescale),)
