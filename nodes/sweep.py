"""LoomCheckpoints, LoomGuidance, LoomSweep, LoomScore, LoomStrip, LoomAPG: compare what was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .node import InputTypes, LoomNode, NodeOutput, Widget
from .sockets.names import CACHE, CHECKPOINTS, GUIDANCE, RUN, SHEET
from .widgets import PROMPT_LIBRARY, link, reference_inputs, text, widget

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from .host.comfy_types import Clip, ClipVision, ModelPatcher, Vae
    from .host.sweep.sheets import CheckpointPick, SweepInputs
    from .sockets.values import CacheValue, CheckpointsValue, GuidanceValue, RunValue, SheetValue

AXES_HELP = "of checkpoint, strength, prompt, seed, guidance, reference, size, steps, sampler, separated by commas. An axis named on neither side splits the strip into pages."


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
    DESCRIPTION = "The LoRAs that a run has saved so far, or any LoRA files, for LoomSweep."
    RETURN_TYPES = (CHECKPOINTS,)
    RETURN_NAMES = ("checkpoints",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "include_base": (
                    "BOOLEAN",
                    {"default": True, "tooltip": "Also render the model without a LoRA, to compare with."},
                ),
                "pick": (
                    ["all", "every nth", "last n"],
                    {"default": "all", "tooltip": "Which of them. every nth counts from the last one."},
                ),
                "n": ("INT", {"default": 1, "min": 1, "max": 1000, "tooltip": "For every nth and last n."}),
            },
            "optional": {
                "run": link(RUN, "From LoomTrain, LoomWait or LoomRun."),
                "files": text(
                    "",
                    "Instead of a run: LoRAs as LoraLoader lists them, one per line; * and ? match several.",
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
    """A guidance setting."""

    TITLE = "Loom Guidance"
    DESCRIPTION = "One guidance setting for LoomSweep to compare; chain several."
    RETURN_TYPES = (GUIDANCE,)
    RETURN_NAMES = ("guidance",)

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
                "previous": link(GUIDANCE, "Another setting; all are compared."),
            },
        }

    def run(self, cfg: float, previous: GuidanceValue | None = None, **options: Any) -> tuple[GuidanceValue]:
        from ..trainer.config.run import GuidanceConfig
        from .sockets.values import GuidanceValue

        setting = GuidanceConfig(scale=cfg, **options)
        return (GuidanceValue(settings=(*(previous.settings if previous else ()), setting)),)


class LoomSweep(LoomNode):
    """Render checkpoints x strengths x prompts x seeds x guidance."""

    TITLE = "Loom Sweep"
    DESCRIPTION = "Renders every combination with ComfyUI's own sampler. Cells that exist already are kept."
    RETURN_TYPES = (SHEET, "IMAGE")
    RETURN_NAMES = ("sheet", "images")
    OUTPUT_TOOLTIPS = ("To LoomStrip.", "All cells, in reading order.")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        from .host.sweep.sampler_names import sampler_names

        samplers, schedulers = sampler_names()
        return {
            "required": {
                "model": link("MODEL", "The model that was trained on, without the LoRA."),
                "clip": link("CLIP", "Encodes the prompts."),
                "vae": link("VAE", "Decodes the pictures."),
                "checkpoints": link(CHECKPOINTS, "From LoomCheckpoints."),
                "prompts": text("", "One prompt per line.", multiline=True),
                "strengths": widget("SweepConfig", "strengths"),
                "seeds": widget("SweepConfig", "seeds"),
                "width": ("INT", {"default": 512, "min": 16, "max": 8192, "step": 8, "tooltip": "In pixels."}),
                "height": ("INT", {"default": 512, "min": 16, "max": 8192, "step": 8, "tooltip": "In pixels."}),
                "steps": widget("SweepConfig", "steps", min=1, max=1000),
                "sampler": (samplers, {"default": "euler", "tooltip": "As in KSampler."}),
                "scheduler": (schedulers, {"default": "normal", "tooltip": "As in KSampler."}),
            },
            "optional": {
                "negative": widget("SweepConfig", "negative", multiline=True),
                "guidance": link(GUIDANCE, "From LoomGuidance; without it, CFG 4."),
                "model_guidance": (
                    "FLOAT",
                    {
                        "default": 3.5,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.1,
                        "tooltip": "Guidance value fed to distilled models (Flux dev), as FluxGuidance does; others ignore it.",
                    },
                ),
                "sizes": text("", "Several sizes to compare, as 512x512, 768x512; empty takes width and height."),
                "step_counts": text(
                    "", "Several numbers of steps to compare, as 10,20 or 10-30 [3]; empty takes steps."
                ),
                "samplers": text(
                    "",
                    "Several samplers to compare, as euler/normal, dpmpp_2m/karras; empty takes sampler and scheduler.",
                ),
                "max_cells": widget(
                    "SweepConfig",
                    "max_cells",
                    min=1,
                    max=100_000,
                    tooltip="With more cells to render than this, the node stops after two of them and says how long all would take.",
                ),
                "prompt_library": text("", PROMPT_LIBRARY),
                **reference_inputs("the model"),
            },
            "hidden": {"prompt": "PROMPT", "node_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, prompt_library: str | None = None, **inputs: object) -> str:
        """Changes when the library's file does."""
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
    """Which checkpoint to take."""

    TITLE = "Loom Score"
    DESCRIPTION = "Says which checkpoint of a sheet to take, how sure that is, and which comes second; LoomStrip then frames it. Held-out loss decides; likeness, drift, near copies and adapter norm stand beside it."
    RETURN_TYPES = (SHEET, "STRING", "IMAGE")
    RETURN_NAMES = ("sheet", "table", "plot")
    OUTPUT_TOOLTIPS = (
        "To LoomStrip, which frames what is recommended.",
        "Measures, recommendation, runner-up, and how each was taken.",
        "Every measure over the steps.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "sheet": link(SHEET, "From LoomSweep."),
                "cache": link(CACHE, "The LoomCache that was trained on, with images set aside (held_out_share)."),
            },
            "optional": {
                "model": link(
                    "MODEL",
                    "The model that was swept: the held-out loss of every file is then measured here. Without it, the losses that the run recorded are read.",
                ),
                "clip_vision": link(
                    "CLIP_VISION", "Compares pictures by meaning; without it, by colour, edges and structure."
                ),
                "trigger": text("", "Trained words, separated by commas: drift is measured on prompts without them."),
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
    """A labelled grid."""

    TITLE = "Loom Strip"
    DESCRIPTION = "Lays a sheet out as a labelled strip, saves it beside the run as PNG, as a page for a browser (HTML), as CSV and as JSON, and shows it."
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("strip", "path")
    OUTPUT_TOOLTIPS = ("One image per page.", "The first page's file.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "sheet": link(SHEET, "From LoomSweep or LoomScore."),
                "layout": (
                    ["grid", "panels"],
                    {
                        "default": "grid",
                        "tooltip": "grid: every cell, by columns and rows. panels: base, last LoRA, last LoRA with APG, side by side.",
                    },
                ),
                "columns": text("checkpoint, strength, guidance", f"What varies from left to right: any {AXES_HELP}"),
                "rows": text("reference, prompt, seed", f"What varies from top to bottom: any {AXES_HELP}"),
                "title": text("", "Heading; empty takes the run's name."),
            },
        }

    def run(self, sheet: SheetValue, layout: str, columns: str, rows: str, title: str) -> NodeOutput:
        from .host.paths import display_path
        from .host.sweep.sheets import drawn_strip

        paths, image = drawn_strip(sheet, layout, columns, rows, title)
        return {"ui": {"images": [display_path(path) for path in paths]}, "result": (image, str(paths[0]))}


class LoomAPG(LoomNode):
    """Adaptive projected guidance for any sampler."""

    TITLE = "Loom APG"
    DESCRIPTION = "Adaptive projected guidance (arXiv 2410.02416) at the sampler's own cfg: less burnt colour at high scales. With eta 1, no threshold and no momentum it is plain CFG. rescale gives contrast back (arXiv 2305.08891)."
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {"model": link("MODEL", "Any model; at cfg 1 nothing changes."), **_apg()},
            "optional": {"rescale": _rescale()},
        }

    def run(
        self, model: ModelPatcher, eta: float, norm_threshold: float, momentum: float, rescale: float = 0.0
    ) -> tuple[ModelPatcher]:
        from .host.sweep.apg import add_guidance

        return (add_guidance(model, eta, norm_threshold, momentum, rescale),)
