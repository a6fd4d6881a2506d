"""The configuration of a run: a tree of frozen dataclasses that check types, names and ranges when they are made.

The text under a field is its documentation: unit, range and consequence. `toml.py` reads the tree from TOML. The options of
datasets are in `dataset.py`, those of sweeps in `sweep.py`. Only the front ends
(`runs/headless.py`, `sweep/run.py`, `score/run.py`) and `unused.py` take the whole tree; everything below takes the tables it needs.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..choices import (
    ADAPTERS,
    LOSSES,
    LR_SCHEDULES,
    OPTIMIZERS,
    TIMESTEP_SAMPLING,
    Choice,
)
from ..errors import ConfigError
from ..storage.names import check_name
from .checks import OneOf, one_of
from .dataset import DataConfig, DatasetConfig, TextConfig
from .section import Section, require
from .sweep import GuidanceConfig, SweepConfig

__all__ = [
    "DataConfig",
    "DatasetConfig",
    "GuidanceConfig",
    "Section",
    "SweepConfig",
    "TextConfig",
    "one_of",
    "require",
]  # imported here for whoever reads the tree

AUTO_TIMESTEPS = Choice(
    help="logit_normal for flow models, uniform for the others", options=("logit_mean", "logit_std")
)


Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["none", "int8", "int4", "int2", "float8"]
BaseMemory = Literal["auto", "resident", "stream"]
LoraDtype = Literal["float32", "bfloat16", "float16"]
ReportTo = Literal["none", "tensorboard", "wandb"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section, table="model"):
    """The base model that a LoRA is trained for, and how it is kept in memory."""

    base: str
    """The base model: a diffusers folder, or one .safetensors file in the original layout."""
    family: str = "auto"
    """Name of the model family; auto detects it from the keys of the file."""
    variant: str = "auto"
    """Variant within the family, e.g. schnell, or sd1-v for a v-prediction file; auto detects it from the file."""
    encoders: str = ""
    """A diffusers folder with text encoders, tokenizers and VAE, for a base model whose file holds only the denoiser."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype in which the frozen base model is kept in memory; auto is the file's own on a GPU and float32 on a CPU."""
    quantize: Quantize = "none"
    """Quantizes the frozen base model with optimum-quanto: it takes less memory, steps are slower, predictions differ slightly."""
    device: str = "auto"
    """Device that trains: cpu, cuda, cuda:1, mps; auto takes the first accelerator there is."""

    def check(self) -> None:
        require(bool(self.base.strip()), "model.base", self.base, "give a diffusers folder or a .safetensors file")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Section, table="network"):
    """The adapter: its type, rank and target modules."""

    kind: Annotated[str, OneOf(ADAPTERS)] = "lora"
    """LoRA type: how the change of a weight is made up."""
    rank: int = 16
    """Rank (dimension) of the adapter. A higher one learns more and forgets more; 8 to 32 suits most concepts."""
    alpha: float | None = None
    """The adapter's change of a weight is scaled by alpha / rank; left out, alpha is the rank and the scale is 1."""
    rslora: bool = False
    """Scales by alpha / sqrt(rank) instead, which keeps large ranks trainable (arXiv 2312.03732). lora and dora only."""
    target_modules: str = "default"
    """Modules of the base model that get an adapter: a preset of the family (attention, attention+mlp, all, conv …), or "regex:" and a pattern for module paths. default: attention, feed-forward and modulation in the blocks of a transformer, attention and feed-forward of a UNet."""
    exclude_modules: str = ""
    """Regular expression; modules whose path matches get no adapter."""
    dropout: float = 0.0
    """Probability that an input of the adapter is set to zero in a training step. lora and dora only."""
    lokr_factor: int = -1
    """Block size of LoKr's small factor; -1 takes the one that splits a weight most evenly."""
    init_from: str = ""
    """A LoRA file that training starts from; its type, rank and target modules must be those of this table."""

    def check(self) -> None:
        require(self.rank >= 1, "network.rank", self.rank, "use 1 or more (16 is usual)")
        require(self.rank <= 16_384, "network.rank", self.rank, "use 16384 or less (16 is usual)")
        remedy = "use a number above 0, or leave it out for alpha = rank"
        require(self.alpha is None or self.alpha > 0, "network.alpha", self.alpha, remedy)
        require(0 <= self.dropout < 1, "network.dropout", self.dropout, "use 0 up to below 1")
        known = self.lokr_factor == -1 or self.lokr_factor >= 1
        require(known, "network.lokr_factor", self.lokr_factor, "use -1 (the most even one) or 1 and more")
        read = ADAPTERS[self.kind].options
        remedy = f"{self.kind} has no dropout here; use 0, or lora"
        require(not self.dropout or "dropout" in read, "network.dropout", self.dropout, remedy)
        remedy = f"{self.kind} has no rslora; leave it out, or use lora"
        require(not self.rslora or "rslora" in read, "network.rslora", self.rslora, remedy)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section, table="optimizer"):
    """How gradients change the adapter's weights."""

    name: Annotated[str, OneOf(OPTIMIZERS)] = "adamw"
    """Optimizer that updates the adapter's weights."""
    learning_rate: float | Literal["auto"] = 1e-4
    """Peak learning rate. 1e-4 is usual for LoRA, 1e-3 for LoKr, a third to a tenth of that for lion, 1.0 for prodigy. auto: by the width of the network and the optimizer, 2e-4 to 5e-4 for real ones; run.json has the number."""
    weight_decay: float = 0.01
    """Decoupled weight decay: the share by which a step shrinks the weights, times the learning rate."""
    max_grad_norm: float = 1.0
    """Gradients whose L2 norm (all adapters together) is above this are scaled down to it; 0 switches clipping off."""
    options: dict[str, float | int | bool | list[float]] = field(default_factory=dict)
    """Further arguments of the optimizer's class, e.g. betas = [0.9, 0.99]."""

    def check(self) -> None:
        remedy = "use a number above 0 (1e-4 is usual)"
        is_rate = self.learning_rate == "auto" or self.learning_rate > 0
        require(is_rate, "optimizer.learning_rate", self.learning_rate, remedy)
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "use 0 or more")
        for name, place in (("lr", "learning_rate"), ("weight_decay", "weight_decay")):
            require(name not in self.options, "optimizer.options", self.options, f"set optimizer.{place} instead")
        require(
            self.max_grad_norm >= 0, "optimizer.max_grad_norm", self.max_grad_norm, "use 0 (off) or more (1.0 is usual)"
        )

    @property
    def rate(self) -> float:
        """The learning rate as a number. Raises ConfigError for "auto", which is made a number when a network is known."""
        if self.learning_rate == "auto":
            raise ConfigError("optimizer.learning_rate = 'auto' has no number before the base model is known")
        return self.learning_rate


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Section, table="schedule"):
    """The learning rate over the steps of a run, as a factor on its peak."""

    kind: Annotated[str, OneOf(LR_SCHEDULES)] = "constant"
    """Learning-rate schedule: how the rate falls after the warm-up, to min_lr_ratio at the last step."""
    warmup: float = 0.0
    """Length of the linear warm-up: a share of all steps if below 1, else a number of steps."""
    cycles: int = 1
    """Number of cosines of restarts."""
    power: float = 1.0
    """Exponent of polynomial; 1 is linear, above 1 falls faster at first."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end of the schedule, as a share of the peak."""

    def check(self) -> None:
        remedy = "use a share of the steps (0.1) or a number of steps (100)"
        require(self.warmup >= 0, "schedule.warmup", self.warmup, remedy)
        require(self.cycles >= 1, "schedule.cycles", self.cycles, "use 1 or more")
        require(self.power > 0, "schedule.power", self.power, "use a number above 0")
        require(
            0 <= self.min_lr_ratio <= 1,
            "schedule.min_lr_ratio",
            self.min_lr_ratio,
            "use 0 to 1, a share of the learning rate",
        )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Section, table="objective"):
    """What a step minimises: at which noise levels, and by which loss."""

    timestep_sampling: Annotated[str, OneOf(TIMESTEP_SAMPLING, {"auto": AUTO_TIMESTEPS})] = "auto"
    """Timestep sampling: the distribution that the noise level of each image in a step is drawn from."""
    logit_mean: float = 0.0
    """Mean of logit_normal: above 0 trains composition more, below 0 detail."""
    logit_std: float = 1.0
    """Standard deviation of logit_normal; smaller concentrates training on fewer noise levels."""
    mode_scale: float = 1.29
    """Strength s of mode sampling (SD3 paper, 3.1): above 0 trains the middle noise levels more, below 0 the ends."""
    beta: tuple[float, float] = (2.0, 2.0)
    """The two parameters of beta sampling; equal ones are symmetric, [1, 1] is uniform."""
    shift: float | Literal["auto", "resolution"] = "auto"
    """Shifts the noise levels of flow models: above 1 trains high noise more. auto is the family's own; resolution grows with the image."""
    min_timestep: float = 0.0
    """Lowest noise level that is trained, as a share of the schedule (0 = clean)."""
    max_timestep: float = 1.0
    """Highest noise level that is trained, as a share of the schedule (1 = pure noise)."""
    loss: Annotated[str, OneOf(LOSSES)] = "mse"
    """Loss between the prediction and its target."""
    huber_delta: float = 0.1
    """Error at which huber and smooth_l1 turn from square to linear."""
    min_snr_gamma: float = 0.0
    """Clamps the loss weight of low noise levels (Min-SNR, arXiv 2303.09556); 5 is usual, 0 switches it off. Epsilon and v models only."""
    noise_offset: float = 0.0
    """Adds a constant per channel to the noise, which allows darker and brighter images; 0.05 to 0.1 is usual, 0 switches it off. Epsilon and v models only."""
    masked_loss: Literal["normalised", "plain"] = "normalised"
    """What a masked loss is divided by: normalised by the mask's own sum, plain by the size of the image (small masks then train weakly)."""
    guidance_scale: float = 1.0
    """Guidance value that guidance-distilled models (Flux dev) receive while training. 1.0 keeps the distillation."""

    def check(self) -> None:
        require(self.logit_std > 0, "objective.logit_std", self.logit_std, "use a number above 0")
        require(
            0 <= self.min_timestep < self.max_timestep <= 1,
            "objective.min_timestep",
            self.min_timestep,
            f"use 0 <= min_timestep < max_timestep = {self.max_timestep} <= 1",
        )
        require(min(self.beta) > 0, "objective.beta", self.beta, "use two numbers above 0")
        require(
            isinstance(self.shift, str) or self.shift > 0,
            "objective.shift",
            self.shift,
            "use a number above 0, auto or resolution",
        )
        require(self.huber_delta > 0, "objective.huber_delta", self.huber_delta, "use a number above 0")
        require(
            self.min_snr_gamma >= 0, "objective.min_snr_gamma", self.min_snr_gamma, "use 0 (off) or more (5 is usual)"
        )
        require(self.noise_offset >= 0, "objective.noise_offset", self.noise_offset, "use 0 (off) or more")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section, table="training"):
    """Length of a run, batches, checkpoints and arithmetic."""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    batch_size: int = 1
    """Images per forward pass. More use more memory."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step: their gradients are averaged, as in a batch that is this many times larger."""
    seed: int = 0
    """Seed of everything random: initial weights, order, noise, timesteps, dropout."""
    save_every: int = 250
    """Steps between checkpoints; 0 saves only at the end."""
    keep_checkpoints: int = 0
    """How many checkpoints are kept to resume from, newest first; 0 keeps all. Their LoRA files always stay."""
    precision: Precision = "auto"
    """dtype of the forward pass; auto is bfloat16 on a GPU and float32 on a CPU. Adapters are always float32."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average (EMA) of the adapter's weights, e.g. 0.995; 0 switches it off. When on, LoRA files hold the EMA."""

    def check(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation_steps"):
            require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "use 1 or more")
        require(self.save_every >= 0, "training.save_every", self.save_every, "use 0 (only at the end) or more")
        require(
            self.keep_checkpoints >= 0, "training.keep_checkpoints", self.keep_checkpoints, "use 0 (keep all) or more"
        )
        require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "use 0 (off) up to below 1")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Section, table="memory"):
    """Memory against time. Nothing here changes what is learnt, except that tiled latents differ slightly."""

    gradient_checkpointing: bool = True
    """Recomputes activations in the backward pass: much less memory, about a third more time."""
    cache: Literal["disk", "online"] = "disk"
    """disk encodes every image and caption once and keeps the result; online keeps nothing: the encoders stay in memory and every step waits for them."""
    vae_batch_size: int = 1
    """Images that the VAE encodes at once while caching; halved by itself where memory runs out."""
    vae_tiling: bool = False
    """The VAE encodes large images in tiles: much less memory, slightly different latents (they are cached apart)."""
    prefetch: int = 1
    """Batches that are read, and brought to the device, while a step computes; 0 reads each when it is needed."""
    shard: bool = False
    """Splits the frozen base model over the GPUs of a run with several processes (FSDP), for one that is larger than a GPU. Steps are slower."""
    base: BaseMemory = "auto"
    """Where the frozen base model lies while training. resident keeps it on the device. stream leaves it where it is, in RAM or in its mapped file, and brings it block by block; what fits vram_gb stays. auto streams only a base larger than vram_gb. The LoRA is the same, bit for bit."""
    vram_gb: float = 0.0
    """Device memory in GB (1e9 bytes) that the frozen base model may take; activations and optimizer come on top. 0 sets no limit for auto, and lets stream keep nothing but two blocks."""

    def check(self) -> None:
        require(self.vae_batch_size >= 1, "memory.vae_batch_size", self.vae_batch_size, "use 1 or more")
        require(self.prefetch >= 0, "memory.prefetch", self.prefetch, "use 0 (off) or more (1 is enough)")
        require(self.vram_gb >= 0, "memory.vram_gb", self.vram_gb, "use 0 (no limit) or gigabytes")
        limited = self.base == "stream" or bool(self.vram_gb)
        require(
            not (self.base == "resident" and self.vram_gb),
            "memory.vram_gb",
            self.vram_gb,
            "base = 'resident' keeps all of the base on the device; use 0, or base = 'auto'",
        )
        require(
            not (self.shard and limited), "memory.shard", self.shard, "a base is either split over GPUs or streamed"
        )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig(Section, table="validation"):
    """What is measured and shown while training: the validation loss, and samples."""

    every: int = 0
    """Steps between measurements of the validation loss; 0 measures at checkpoints and at the end."""
    timesteps: int = 4
    """Number of noise levels at which the validation loss of an image is measured; they are fixed and evenly spread."""
    patience: int = 0
    """Training stops early when the validation loss has not reached a new low for this many measurements; 0 never stops early. When on, every new low has its LoRA file."""
    prompts: tuple[str, ...] = ()
    """Prompts of the samples: images made while training with the current weights, in <run>/samples. The base model's come first."""
    prompt_library: str = ""
    """JSON file with more prompts, {"name": "prompt", …}."""
    sample_every: int = 0
    """Steps between samples; 0 makes them at checkpoints."""
    negative_prompt: str = ""
    """Negative prompt of every sample."""
    references: tuple[str | tuple[str, ...], ...] = ()
    """Reference images (files) for edit models; a sample is made of every prompt with each of them. Files in an inner list are used together."""
    seed: int = 0
    """Seed of the first sample; the next ones count up."""
    sample_steps: int = 20
    """Sampling steps of a sample (Euler)."""
    guidance_scale: float = 0.0
    """Scale of classifier-free guidance; 0 is the family's usual scale, 1 switches guidance off."""
    width: int = 0
    """Width of a sample in pixels; 0 takes data.resolution."""
    height: int = 0
    """Height of a sample in pixels; 0 takes data.resolution."""

    def check(self) -> None:
        require(self.every >= 0, "validation.every", self.every, "use 0 (at checkpoints) or more")
        require(self.sample_every >= -1, "validation.sample_every", self.sample_every, "use 0 (at checkpoints) or more")
        require(self.sample_steps >= 1, "validation.sample_steps", self.sample_steps, "use 1 or more (20 is usual)")
        require(self.guidance_scale >= 0, "validation.guidance_scale", self.guidance_scale, "use 0 (the usual) or more")
        require(self.width >= 0 and self.height >= 0, "validation.width", (self.width, self.height), "use 0 or pixels")
        require(self.patience >= 0, "validation.patience", self.patience, "use 0 (off) or more (3 to 5 is usual)")
        require(self.timesteps >= 1, "validation.timesteps", self.timesteps, "use 1 or more")
        require(self.timesteps <= 1000, "validation.timesteps", self.timesteps, "use 1000 or less")


@dataclass(frozen=True, kw_only=True)
class OutputConfig(Section, table="output"):
    """Where a run is written, and the form of its LoRA files."""

    directory: str = "output"
    """Folder of the runs; one is written to <directory>/<name>/."""
    loras: str = ""
    """Second folder for LoRA files, e.g. ComfyUI's models/loras; empty keeps them in the run's folder only."""
    cache: str = ""
    """Folder of cached latents and text encodings; empty means <directory>/cache."""
    report_to: ReportTo = "none"
    """Where curves are also written: TensorBoard (<run>/tensorboard) or Weights & Biases; the library must be installed."""
    dtype: LoraDtype = "bfloat16"
    """dtype of the saved LoRA."""
    format: Literal["native", "diffusers", "kohya"] = "native"
    """Key format of the saved LoRA: native is what ComfyUI reads in full, diffusers is for its load_lora_weights, kohya for sd-scripts. LoRA type lora only."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """A run: everything that a TOML file says."""

    name: str
    """Name of the run, of its folder and of its LoRA files."""
    model: ModelConfig
    dataset: tuple[DatasetConfig, ...] = ()
    """Datasets, which are trained on together; one [[dataset]] table each."""
    dataset_files: tuple[str, ...] = ()
    """Files that describe datasets: kohya's dataset TOML, SimpleTuner's multidatabackend.json, or a TOML with [[dataset]] tables."""
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    def check(self) -> None:
        check_name(self.name)
        some = bool(self.dataset or self.dataset_files)
        require(some, "dataset", self.dataset, "add at least one [[dataset]] table with a folder")
        require(
            bool(self.dataset_files) or any(d.role == "train" for d in self.dataset),
            "dataset.role",
            "no set has role = 'train'",
            "give one set role = 'train'",
        )
