"""LoomNetwork, LoomOptimizer, LoomMemory, LoomValidation: groups of settings for LoomTrain, all optional."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .node import InputTypes, LoomNode
from .sockets.names import MEMORY, NETWORK, OPTIMIZER, VALIDATION
from .widgets import PROMPT_LIBRARY, folded, link, reference_inputs, seed, skip_inputs, text, widget

if TYPE_CHECKING:
    from torch import Tensor

    from ..trainer.config.run import Matmul, Precision, Quantize
    from .host.comfy_types import Clip, Vae
    from .sockets.values import MemoryValue, NetworkValue, OptimizerValue, ValidationValue

SETTINGS = f"{LoomNode.CATEGORY}/settings"
PRESETS = (
    "a preset (default, attention, attention+mlp, all, and transformer and conv for UNets), or regex: and a pattern for module paths. "
    "default: attention, feed-forward and modulation in the blocks of a transformer, attention, feed-forward and convolutions of a UNet."
)
BY_PATTERN = (
    "One regular expression = number a line; the modules whose path matches get it, of several the last. For example:"
)

SAME_SEED = "Every sample is made from the same seed, so that prompts are compared on the same noise; off, seeds count up from sample to sample. A prompt's own seed goes before."
TRACKER_RUN = "Name of the run in Weights & Biases; empty takes the run's own."


class LoomNetwork(LoomNode):
    """Settings of the adapter."""

    TITLE = "Loom Network"
    SEARCH_ALIASES = ("lora", "lokr", "loha", "dora", "rank", "alpha", "target modules")
    CATEGORY = SETTINGS
    DESCRIPTION = "LoRA type, rank scaling and target modules."
    RETURN_TYPES = (NETWORK,)
    RETURN_NAMES = ("network",)
    OUTPUT_TOOLTIPS = ("Connect to Loom Train LoRA.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return folded(
            {
                "required": {
                    "kind": widget("NetworkConfig", "kind", without=("full",)),
                    "alpha": (
                        "FLOAT",
                        {
                            "default": 0.0,
                            "min": 0.0,
                            "max": 4096.0,
                            "step": 0.5,
                            "tooltip": "The adapter's change of a weight is scaled by alpha / rank; 0 makes alpha the rank, so that the scale is 1.",
                        },
                    ),
                    "targets": widget(
                        "NetworkConfig", "targets", tooltip=f"Modules of the base model that get an adapter: {PRESETS}"
                    ),
                },
                "optional": {
                    "exclude": widget("NetworkConfig", "exclude"),
                    "dropout": widget("NetworkConfig", "dropout", max=0.95, step=0.05),
                    "rslora": widget("NetworkConfig", "rslora"),
                    "lokr_factor": widget("NetworkConfig", "lokr_factor", min=-1, max=64),
                    "init_from": text(
                        "",
                        "A LoRA that training starts from, by its name in LoraLoader; its type, rank and target modules must be those set here.",
                    ),
                    "lokr_full_matrix": widget("NetworkConfig", "lokr_full_matrix"),
                    "lokr_decompose_both": widget("NetworkConfig", "lokr_decompose_both"),
                    "conv_rank": widget("NetworkConfig", "conv_rank", max=1024),
                    "conv_alpha": (
                        "FLOAT",
                        {
                            "default": 0.0,
                            "min": 0.0,
                            "max": 4096.0,
                            "step": 0.5,
                            "tooltip": "alpha of convolutions larger than 1 x 1; 0 takes alpha, or where that is 0 too, their rank.",
                        },
                    ),
                    "module_ranks": text(
                        "", f"Ranks of single modules. {BY_PATTERN} 'blocks\\.0\\.' = 4", multiline=True
                    ),
                    "module_alphas": text(
                        "", f"alpha of single modules. {BY_PATTERN} 'blocks\\.0\\.' = 2.0", multiline=True
                    ),
                    "module_rates": text(
                        "",
                        f"Factors on the learning rate of single modules. {BY_PATTERN} 'blocks\\.0\\.' = 0.1",
                        multiline=True,
                    ),
                    "loraplus_lr_ratio": widget("NetworkConfig", "loraplus_lr_ratio", min=1.0, max=1000.0, step=0.5),
                    "rank_dropout": widget("NetworkConfig", "rank_dropout", max=0.95, step=0.05),
                    "module_dropout": widget("NetworkConfig", "module_dropout", max=0.95, step=0.05),
                    "scale_weight_norms": widget("NetworkConfig", "scale_weight_norms", max=1000.0, step=0.1),
                    "init": widget("NetworkConfig", "init"),
                    "tucker": widget("NetworkConfig", "tucker"),
                    "dylora_unit": widget("NetworkConfig", "dylora_unit", max=1024),
                    "lokr_factors": text("", f"lokr_factor of single modules. {BY_PATTERN} 'ff' = 8", multiline=True),
                    "train_norm": widget("NetworkConfig", "train_norm"),
                },
            },
            shown=("kind", "alpha", "targets", "dropout"),
        )

    def run(self, alpha: float, conv_alpha: float = 0.0, **options: Any) -> tuple[NetworkValue]:
        from ..trainer.config.aliases import current_options
        from ..trainer.config.network import NetworkConfig, refuse_whole
        from ..trainer.config.toml import read_options
        from .sockets.values import NetworkValue

        options = current_options("network", options)
        for name in ("module_ranks", "module_alphas", "module_rates", "lokr_factors"):
            options[name] = read_options(name, options.get(name, ""))
        network = NetworkConfig(alpha=alpha or None, conv_alpha=conv_alpha or None, **options)
        refuse_whole(network)
        return (NetworkValue(network=network),)


class LoomOptimizer(LoomNode):
    """The optimizer and its learning-rate schedule."""

    TITLE = "Loom Optimizer"
    SEARCH_ALIASES = ("optimizer", "adamw", "prodigy", "learning rate", "scheduler")
    CATEGORY = SETTINGS
    DESCRIPTION = "Optimizer and learning-rate schedule, with a plot of the learning rate."
    RETURN_TYPES = (OPTIMIZER, "IMAGE")
    RETURN_NAMES = ("optimizer", "curve")
    OUTPUT_TOOLTIPS = ("Connect to Loom Train LoRA.", "Learning rate over the steps.")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return folded(
            {
                "required": {
                    "name": widget("OptimizerConfig", "name"),
                    "schedule": widget("ScheduleConfig", "kind"),
                    "warmup": widget("ScheduleConfig", "warmup", max=100_000.0, step=0.01),
                },
                "optional": {
                    "weight_decay": widget("OptimizerConfig", "weight_decay", max=10.0),
                    "clip_norm": widget("OptimizerConfig", "clip_norm", max=1000.0, step=0.1),
                    "cycles": widget("ScheduleConfig", "cycles", min=1, max=1000),
                    "power": widget("ScheduleConfig", "power", min=0.01, max=10.0, step=0.1),
                    "floor": widget("ScheduleConfig", "floor", max=1.0, step=0.01),
                    "steps_shown": (
                        "INT",
                        {
                            "display_name": "plot_steps",
                            "default": 1000,
                            "min": 2,
                            "max": 1_000_000,
                            "tooltip": "Steps in the plot of the learning rate. The number of training steps is set on Loom Train LoRA.",
                        },
                    ),
                    "cycle_warmup": widget("ScheduleConfig", "cycle_warmup", max=100_000.0, step=0.01),
                    "cycle_decay": widget("ScheduleConfig", "cycle_decay", min=0.001, max=1.0, step=0.05),
                    "cycle_growth": widget("ScheduleConfig", "cycle_growth", min=0.01, max=100.0, step=0.1),
                    "decay": widget("ScheduleConfig", "decay", min=0.001, max=100_000.0, step=0.05),
                    "timescale": widget("ScheduleConfig", "timescale"),
                    "schedule_class": text(
                        "",
                        "The path of a schedule's class, which takes the place of schedule, e.g. torch.optim.lr_scheduler.OneCycleLR. Of known libraries only.",
                    ),
                    "schedule_options": text(
                        "",
                        'Arguments of schedule_class, one name = value a line. It gets an optimizer with rate 1: rates are shares of the peak. The text "steps", in quotes, stands for the number of steps after the warm-up.',
                        multiline=True,
                    ),
                    "optimizer_class": text(
                        "",
                        "The path of an optimizer's class, which takes the place of name, e.g. pytorch_optimizer.ADOPT. Of known libraries only, and only one with which a run can be resumed exactly.",
                    ),
                    "options": text(
                        "",
                        "Further arguments of the optimizer, one name = value a line, e.g. betas = [0.9, 0.99].",
                        multiline=True,
                    ),
                },
            },
            shown=("name", "schedule", "warmup", "weight_decay"),
        )

    def run(
        self,
        name: str,
        schedule: str,
        weight_decay: float = 0.01,
        clip_norm: float = 1.0,
        steps_shown: int = 1000,
        schedule_class: str = "",
        schedule_options: str = "",
        optimizer_class: str = "",
        options: str = "",
        **shape: Any,
    ) -> tuple[OptimizerValue, Tensor]:
        from ..trainer.config.aliases import current_options
        from ..trainer.config.run import OptimizerConfig, ScheduleConfig
        from ..trainer.config.toml import read_options
        from ..trainer.training.optim import check_optimizer
        from .host.class_paths import check_class_path
        from .host.runs.plots import curve_image
        from .sockets.values import OptimizerValue

        optimizer = OptimizerConfig(
            name=check_class_path("optimizer_class", optimizer_class) or name,
            weight_decay=weight_decay,
            max_grad_norm=clip_norm,
            options=read_options("options", options),
        )
        check_optimizer(optimizer)
        kind = check_class_path("schedule_class", schedule_class) or schedule
        given = {"kind": kind, "options": read_options("schedule_options", schedule_options), **shape}
        law = ScheduleConfig(**current_options("schedule", given))
        return OptimizerValue(optimizer=optimizer, schedule=law), curve_image(law, steps_shown)


class LoomMemory(LoomNode):
    """Memory and precision."""

    TITLE = "Loom Memory"
    SEARCH_ALIASES = ("vram", "quantize", "low memory", "gradient checkpointing", "block swap")
    CATEGORY = SETTINGS
    DESCRIPTION = "Memory, precision, and how long training may pause for queued prompts."
    RETURN_TYPES = (MEMORY,)
    RETURN_NAMES = ("memory",)
    OUTPUT_TOOLTIPS = ("Connect to Loom Train LoRA.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return folded(
            {
                "required": {
                    "gradient_checkpointing": widget("MemoryConfig", "gradient_checkpointing"),
                    "precision": widget("TrainingConfig", "precision"),
                    "quantize": widget(
                        "ModelConfig",
                        "quantize",
                        tooltip="Trains on a quantized copy of the base model on the device; the weights that ComfyUI holds stay in RAM meanwhile. nf4 has 4.5 bits a weight and needs bitsandbytes, the others need optimum-quanto. none copies no weight.",
                    ),
                    "yield_max_s": (
                        "FLOAT",
                        {
                            "default": 0.0,
                            "min": 0.0,
                            "max": 86_400.0,
                            "step": 1.0,
                            "tooltip": "Training pauses while queued prompts run. After a pause of this many seconds it makes one step in between, so that a long prompt does not stop it. 0: it pauses while a prompt runs. In both cases prompts that follow each other without end leave it a turn a minute.",
                        },
                    ),
                },
                "optional": {
                    "prefetch": widget("MemoryConfig", "prefetch", max=16),
                    "base": widget("MemoryConfig", "base"),
                    "vram_gb": widget("MemoryConfig", "vram_gb", max=1024.0, step=0.1),
                    "checkpoint": widget("MemoryConfig", "checkpoint"),
                    "checkpoint_offload": widget("MemoryConfig", "checkpoint_offload"),
                    "on_oom": widget("MemoryConfig", "on_oom"),
                    "compile": widget("MemoryConfig", "compile"),
                    "matmul": widget("ModelConfig", "matmul"),
                },
            },
            shown=("gradient_checkpointing", "quantize", "base", "vram_gb"),
        )

    def run(
        self,
        gradient_checkpointing: bool,
        precision: Precision,
        quantize: Quantize,
        yield_max_s: float,
        matmul: Matmul = "off",
        **options: Any,
    ) -> tuple[MemoryValue]:
        from ..trainer.config.run import MemoryConfig
        from .sockets.values import MemoryValue

        memory = MemoryConfig(gradient_checkpointing=gradient_checkpointing, **options)
        value = MemoryValue(
            memory=memory, precision=precision, quantize=quantize, yield_max_s=yield_max_s, matmul=matmul
        )
        return (value,)


class LoomValidation(LoomNode):
    """Samples and the validation loss."""

    TITLE = "Loom Validation"
    SEARCH_ALIASES = ("validation", "sample prompts", "preview while training", "early stopping")
    CATEGORY = SETTINGS
    DESCRIPTION = "Makes samples of these prompts while training, with the current weights, and sets how the validation loss is measured. The prompts are encoded when this node runs."
    RETURN_TYPES = (VALIDATION,)
    RETURN_NAMES = ("validation",)
    OUTPUT_TOOLTIPS = ("Connect to Loom Train LoRA.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return folded(
            {
                "required": {
                    "vae": ("VAE", {"tooltip": "Decodes the samples; its weights are shared, not copied."}),
                    "clip": ("CLIP", {"tooltip": "Encodes the prompts when this node runs."}),
                    "prompts": text("", "One prompt per line.", multiline=True),
                    "every": (
                        "INT",
                        {
                            "default": 250,
                            "min": 0,
                            "max": 1_000_000,
                            "display_name": "sample_every",
                            "tooltip": "Steps between samples; 0 makes them only when the panel's button asks for them (validation.sample_every).",
                        },
                    ),
                },
                "optional": {
                    "negative": text("", "Negative prompt of every sample.", display_name="negative_prompt"),
                    "seed": seed("Seed of the first sample; the next ones count up."),
                    "steps": (
                        "INT",
                        {
                            "default": 20,
                            "min": 1,
                            "max": 200,
                            "display_name": "sample_steps",
                            "tooltip": "Sampling steps (validation.sample_steps).",
                        },
                    ),
                    "cfg": (
                        "FLOAT",
                        {
                            "default": 0.0,
                            "min": 0.0,
                            "max": 100.0,
                            "step": 0.1,
                            "display_name": "guidance_scale",
                            "tooltip": "Classifier-free guidance of the samples; 1 switches it off. 0 is the usual scale of the model: 1 for distilled ones, 4 where none is known (validation.guidance_scale).",
                        },
                    ),
                    "width": (
                        "INT",
                        {"default": 512, "min": 16, "max": 4096, "step": 8, "tooltip": "Width in pixels."},
                    ),
                    "height": (
                        "INT",
                        {"default": 512, "min": 16, "max": 4096, "step": 8, "tooltip": "Height in pixels."},
                    ),
                    "measure_every": widget("ValidationConfig", "every", max=1_000_000),
                    "patience": widget("ValidationConfig", "patience", max=1000),
                    "prompt_library": text("", PROMPT_LIBRARY),
                    "report": widget(
                        "OutputConfig",
                        "report",
                        tooltip="Where curves are also written: TensorBoard (in the run's folder) or Weights & Biases; the library must be installed.",
                    ),
                    **reference_inputs("sample"),
                    # Saved workflows list the values of widgets by position: a new one stands last.
                    "timesteps": widget("ValidationConfig", "timesteps", min=1, max=100),
                    "model_guidance": widget("ValidationConfig", "model_guidance", max=100.0, step=0.1),
                    "preview_model": link(
                        "MODEL",
                        "Makes the samples in place of the MODEL that is trained, with the current LoRA: Turbo, while its base is trained. A model of the same family and size, whose weights are shared; both must fit on the device. Number of steps and guidance are those of this model (validation.model).",
                    ),
                    "doctor": widget("ValidationConfig", "doctor"),
                    "sampler": widget("ValidationConfig", "sampler"),
                    "scheduler": widget("ValidationConfig", "scheduler"),
                    "guidance_rescale": widget("ValidationConfig", "guidance_rescale", max=1.0, step=0.05),
                    "sizes": widget("ValidationConfig", "sizes"),
                    **skip_inputs("ValidationConfig"),
                    "clip_score": widget("ValidationConfig", "clip_score"),
                    "clip_vision": link(
                        "CLIP_VISION",
                        "Compares the samples with the training images while training: the mean similarity (CLIP-I) with its 95 % interval stands in the metrics, in the panel and next to the recommended checkpoint. It is computed in float32 where the weights lie, usually on the CPU. Not linked: the CLIP of clip_score does it, if there is one.",
                    ),
                    "same_seed": widget("ValidationConfig", "same_seed", tooltip=SAME_SEED),
                    "tracker_project": widget("OutputConfig", "tracker_project"),
                    "tracker_run": widget("OutputConfig", "tracker_run", tooltip=TRACKER_RUN),
                },
            },
            shown=("prompts", "every", "seed", "steps", "width", "height"),
        )

    @classmethod
    def IS_CHANGED(cls, prompt_library: str | None = None, **inputs: object) -> str:
        """Changes when the library's file does."""
        from .host.paths import library_state

        return library_state(prompt_library or "")

    def run(self, vae: Vae, clip: Clip, prompts: str, **options: Any) -> tuple[ValidationValue]:
        from .host.runs.samples import prepare_validation

        return (prepare_validation(vae, clip, prompts, options),)
