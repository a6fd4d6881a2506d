"""The configuration of a run: a tree of frozen dataclasses that check types, names and ranges when they are made.

The text under a field is its documentation: unit, range and consequence. `toml.py` reads the tree from TOML. Larger
tables have files of their own. Only the front ends
(`runs/headless.py`, `sweep/run.py`, `score/run.py`) and `unused.py` take the whole tree; everything below takes the tables it needs.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..choices import SAMPLERS, SCHEDULERS
from ..storage.names import check_name
from .checks import OneOf, one_of, parse_sizes
from .dataset import DataConfig, DatasetConfig, TextConfig
from .model import Attention, BaseLoraConfig, Matmul, ModelConfig, Quantize, check_packing, packing_of
from .network import NetworkConfig, check_loftq
from .objective import ObjectiveConfig
from .optimizer import OptimizerConfig, ScheduleConfig
from .section import Section, require
from .sweep import GuidanceConfig, SweepConfig, check_skips

__all__ = [
    "Attention",
    "BaseLoraConfig",
    "DataConfig",
    "DatasetConfig",
    "GuidanceConfig",
    "Matmul",
    "ModelConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "Quantize",
    "ScheduleConfig",
    "Section",
    "SweepConfig",
    "TextConfig",
    "check_packing",
    "one_of",
    "packing_of",
    "require",
]  # imported here for whoever reads the tree

Precision = Literal["auto", "float32", "bfloat16", "float16"]
BaseMemory = Literal["auto", "resident", "stream"]
OnOom = Literal["stop", "adapt"]
Checkpoint = Literal["auto", "all", "every 2", "every 3", "every 4", "ffn", "off"]
LoraDtype = Literal["float32", "bfloat16", "float16"]
ReportTo = Literal["none", "tensorboard", "wandb"]


PASSES = {"character": (2000, 7000), "style": (8000, 12000)}
"""{goal: (least, most)} images that are used in a run in all, as experienced users recommend."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section, table="training"):
    """Length of a run, batches, checkpoints and arithmetic."""

    steps: int = 0
    """Optimizer steps of the whole run. 0: by the number of images, the batch size and the goal; the log has the number, and a run keeps it."""
    batch_size: int = 1
    """Images per forward pass. More use more memory."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step: their gradients are averaged, as in a batch that is this many times larger."""
    seed: int = 0
    """Seed of everything random: initial weights, order, noise, timesteps, dropout."""
    save_every: int = 250
    """Steps between checkpoints; 0 saves only at the end."""
    keep_checkpoints: int = 0
    """How many checkpoints are kept to resume from, newest first; 0 keeps all. Their LoRA files stay (see keep_loras)."""
    precision: Precision = "auto"
    """dtype of the forward pass; auto is bfloat16 on a GPU and float32 on a CPU. In ComfyUI auto is the MODEL's own dtype, and for a float32 one on a CPU that computes bfloat16 too, the faster of both: they are tried, and a run keeps what it began with. Adapters are always float32."""
    epochs: float = 0.0
    """Length of the run in epochs: passes over all training images, each as often as it repeats. Above 0 it takes the place of steps; the log has the number of steps."""
    save_every_epochs: float = 0.0
    """Epochs between checkpoints; above 0 it takes the place of save_every, rounded to steps."""
    keep_loras: int = 0
    """How many LoRA files of checkpoints are kept, newest first, and those with the lowest validation loss; 0 keeps all."""
    keep_best: bool = False
    """The run's file, <name>.safetensors, is the LoRA with the lowest validation loss instead of the last one. When on, every new low has its LoRA file. Needs validation images."""
    goal: Literal["character", "style"] = "character"
    """What is trained, where steps is 0: every image is used about 100 times, 2000 to 7000 images in all for a character, 8000 to 12000 for a style."""
    ema_decay: float | Literal["auto"] = "auto"
    """Decay of an exponential moving average (EMA) of the adapter's weights, which LoRA files hold. auto: over about the last tenth of the steps so far, from step 100 on; the validation loss and samples are of it alone. None for full fine-tunes and for optimizers that average by themselves; an earlier run goes on as it began. A number, e.g. 0.995: the current weights are measured and sampled too. 0: off. It takes four bytes per trained parameter."""

    def check(self) -> None:
        require(self.steps >= 0, "training.steps", self.steps, "use 0 (by the number of images) or more")
        for name in ("batch_size", "gradient_accumulation_steps"):
            require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "use 1 or more")
        require(self.save_every >= 0, "training.save_every", self.save_every, "use 0 (only at the end) or more")
        require(
            self.keep_checkpoints >= 0, "training.keep_checkpoints", self.keep_checkpoints, "use 0 (keep all) or more"
        )
        require(self.epochs >= 0, "training.epochs", self.epochs, "use 0 (steps count) or a number of epochs")
        remedy = "use 0 (save_every counts) or a number of epochs"
        require(self.save_every_epochs >= 0, "training.save_every_epochs", self.save_every_epochs, remedy)
        require(self.keep_loras >= 0, "training.keep_loras", self.keep_loras, "use 0 (keep all) or more")
        is_decay = self.ema_decay == "auto" or 0 <= self.ema_decay < 1
        require(is_decay, "training.ema_decay", self.ema_decay, "use 0 (off) up to below 1, or auto")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Section, table="memory"):
    """Memory against time. Nothing here changes what is learnt, except that tiled latents differ slightly."""

    gradient_checkpointing: bool = True
    """Recomputes activations in the backward pass: much less memory, about a third more time; where everything fits with ease a run leaves it out by itself (see checkpoint)."""
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
    """Where the frozen base model lies while training. resident keeps it on the device. stream leaves it where it is, in RAM or in its mapped file, and brings it block by block; what fits stays. auto streams a base that does not fit, by vram_gb or by a prediction of what everything else takes. The LoRA is the same, bit for bit."""
    vram_gb: float = 0.0
    """Device memory in GB (1e9 bytes) that the frozen base model may take; activations and optimizer come on top. 0 leaves the size to auto, and lets stream keep nothing but two blocks."""

    checkpoint: Checkpoint = "auto"
    """What the backward pass recomputes. all is every block; every 2 is one block in two, so the others keep their activations and cost no time; ffn is the feed-forwards alone; off is nothing. auto is off where the memory plan says that everything fits with ease, and all otherwise; where memory then runs out after all, a run goes on with all. With gradient_checkpointing = false it is off. The LoRA is the same, bit for bit, and it may change when a run is continued."""
    checkpoint_offload: bool = False
    """Lets what blocks are recomputed from wait in RAM: less device memory for large images and batches, some time. Nothing else changes."""
    on_oom: OnOom = "stop"
    """What happens where memory runs out in the run. stop ends it with an error; its checkpoints stay. adapt goes on from the last checkpoint with the next setting that takes less memory and gives the same LoRA, bit for bit: all blocks recomputed, checkpoint_offload, then less and less of the base on the device. The log and run.json say which."""

    compile: bool = False
    """Compiles the network's blocks, one by one and for any shape (torch.compile): faster steps after a first one that takes minutes. It is tried before the run, compared with the plain network, and off with a sentence in the log where it fails or there is no compiler. Results differ by rounding, so a run keeps it. Not with a streamed base, shard, checkpoint = "ffn" or on_oom = "adapt"."""

    @property
    def recompute(self) -> str:
        """The value of `checkpoint`, with auto resolved."""
        if self.checkpoint == "auto":
            return "all" if self.gradient_checkpointing else "off"
        return self.checkpoint

    @property
    def recomputes_blocks(self) -> bool:
        """Whether blocks are recomputed as a whole."""
        return self.recompute not in ("off", "ffn")

    @property
    def may_keep(self) -> bool:
        """Whether a plan may decide that nothing is recomputed. A base that is streamed or split has no room for it; what is compiled
        stays as it was compiled."""
        is_laid_out = self.base == "stream" or bool(self.vram_gb) or self.shard
        left_to_plan = self.checkpoint == "auto" and self.gradient_checkpointing
        return left_to_plan and not (is_laid_out or self.checkpoint_offload or self.compile)

    @property
    def every(self) -> int:
        """One in so many blocks is recomputed."""
        return int(self.recompute.removeprefix("every ")) if self.recompute.startswith("every ") else 1

    def _check_checkpoint(self) -> None:
        require(
            self.gradient_checkpointing or self.checkpoint in ("auto", "off"),
            "memory.checkpoint",
            self.checkpoint,
            "gradient_checkpointing = false recomputes nothing; leave one of them out",
        )
        require(
            not (self.checkpoint_offload and self.recompute == "off"),
            "memory.checkpoint_offload",
            self.checkpoint_offload,
            "without checkpointing there is nothing to recompute from; use false, or checkpoint = 'all'",
        )
        require(
            not (self.shard and self.recompute == "ffn"),
            "memory.checkpoint",
            self.checkpoint,
            "a base that is split over GPUs recomputes whole blocks; use 'all'",
        )

    def _check_compile(self) -> None:
        for other, is_on, remedy in (
            ("base = 'stream' or vram_gb", self.base == "stream" or bool(self.vram_gb), "what is streamed is asked for block by block"),
            ("shard = true", self.shard, "what is split over GPUs is gathered block by block"),
            ("checkpoint = 'ffn'", self.recompute == "ffn", "a compiled block is recomputed as a whole"),
            ("on_oom = 'adapt'", self.on_oom == "adapt", "which goes on with the same numbers, bit for bit"),
        ):  # fmt: skip
            require(
                not (self.compile and is_on),
                "memory.compile",
                self.compile,
                f"it does not go with {other}: {remedy}; leave one of them out",
            )

    def check(self) -> None:
        require(self.vae_batch_size >= 1, "memory.vae_batch_size", self.vae_batch_size, "use 1 or more")
        require(self.prefetch >= 0, "memory.prefetch", self.prefetch, "use 0 (off) or more (1 is enough)")
        require(self.vram_gb >= 0, "memory.vram_gb", self.vram_gb, "use 0 (no limit) or gigabytes")
        self._check_checkpoint()
        self._check_compile()
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
    doctor: bool = False
    """Examines every training image once, after five epochs: captions that contradict their image, images that fight the others or teach nothing, near doubles. The findings are in the log and in <run>/doctor.json; nothing is changed by them."""
    prompts: tuple[str, ...] = ()
    """Prompts of the samples: images made while training with the current weights, in <run>/samples. The base model's come first."""
    prompt_library: str = ""
    """File with more prompts: JSON {"name": "prompt", …}, or sd-scripts' .txt with a prompt a line and --w, --h, --s, --l, --d (seed), --n (negative prompt) of its own. Names stand in the names of the samples."""
    sample_every: int = 0
    """Steps between samples; 0 makes them at checkpoints."""
    negative_prompt: str = ""
    """Negative prompt of every sample."""
    model: str = ""
    """Another base model that samples are made with, for instance the Turbo model whose base is trained: a diffusers folder or a .safetensors file of the same family. Both are in memory. Empty: the base model that is trained."""
    references: tuple[str | tuple[str, ...], ...] = ()
    """Reference images (files) for edit models; a sample is made of every prompt with each of them. Files in an inner list are used together."""
    seed: int = 0
    """Seed of the first sample; the next ones count up."""
    sample_steps: int = 20
    """Sampling steps of a sample."""
    sampler: Annotated[str, OneOf(SAMPLERS)] = "euler"
    """Sampler of the samples: how one noise level leads to the next."""
    scheduler: Annotated[str, OneOf(SCHEDULERS)] = "normal"
    """Scheduler of the samples: how noise levels are spaced, named and computed as in ComfyUI."""
    guidance_rescale: float = 0.0
    """How far the contrast of a guided sample goes back to that of an unguided one, 0 to 1 (arXiv 2305.08891, phi); 0.7 is usual."""
    skip_layers: tuple[int, ...] = ()
    """Skip-layer guidance of SD3.5: samples also go away from what the network predicts without these blocks, such as [7, 8, 9] of Medium. Empty: off."""
    skip_layer_scale: float = 3.0
    """Strength of the skip-layer guidance; 2.5 to 3 is usual."""
    skip_layer_start: float = 0.01
    """Share of the schedule from which on it acts, counted from the noise."""
    skip_layer_end: float = 0.15
    """Share of the schedule up to which it acts."""
    clip_score: str = ""
    """Folder of a CLIP (as transformers saves one) that scores the samples: by their prompts (CLIP-T) and by how alike they are to the training images (CLIP-I, with a 95 % interval). The scores stand in the metrics, the second one next to the recommended checkpoint. Empty: off."""
    sizes: str = ""
    """Several sizes of samples, "512x512, 768x512": every prompt is made in each, from the same seed; empty takes width and height."""
    guidance_scale: float = 0.0
    """Scale of classifier-free guidance; 0 is the family's usual scale, 1 switches guidance off."""
    model_guidance: float = 3.5
    """Guidance value that guidance-distilled models (Flux dev) are fed in samples, as users of the model set it; objective.guidance_scale is what they are fed while training. Other models take none."""
    width: int = 0
    """Width of a sample in pixels; 0 takes data.resolution."""
    height: int = 0
    """Height of a sample in pixels; 0 takes data.resolution."""
    same_seed: bool = False
    """Every sample is made from validation.seed, so that prompts are compared on the same noise (SimpleTuner's validation_seed); false counts up from sample to sample. A prompt's own seed goes before."""

    def check(self) -> None:
        require(self.every >= 0, "validation.every", self.every, "use 0 (at checkpoints) or more")
        require(self.sample_every >= -1, "validation.sample_every", self.sample_every, "use 0 (at checkpoints) or more")
        require(self.sample_steps >= 1, "validation.sample_steps", self.sample_steps, "use 1 or more (20 is usual)")
        require(self.guidance_scale >= 0, "validation.guidance_scale", self.guidance_scale, "use 0 (the usual) or more")
        remedy = "use 0 or more (3.5 is usual)"
        require(self.model_guidance >= 0, "validation.model_guidance", self.model_guidance, remedy)
        require(
            0 <= self.guidance_rescale <= 1, "validation.guidance_rescale", self.guidance_rescale, "use 0 (off) to 1"
        )
        parse_sizes("validation.sizes", self.sizes)
        check_skips("validation", self.skip_layer_scale, self.skip_layer_start, self.skip_layer_end)
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
    """Second folder for LoRA files, e.g. ComfyUI's models/loras; for the models of a full fine-tune models/diffusion_models, or models/checkpoints where the base is a whole checkpoint. Empty keeps them in the run's folder only."""
    cache: str = ""
    """Folder of cached latents and text encodings; empty means <directory>/cache."""
    report_to: ReportTo = "none"
    """Where curves are also written: TensorBoard (<run>/tensorboard) or Weights & Biases; the library must be installed."""
    tracker_project: str = "lora-loom"
    """Project in Weights & Biases."""
    tracker_run: str = ""
    """Name of the run in Weights & Biases, or of its folder in tracker_dir; empty takes the run's own."""
    dtype: LoraDtype = "bfloat16"
    """dtype of the saved LoRA, or of the denoiser in the file of a full fine-tune."""
    format: Literal["native", "diffusers", "kohya"] = "native"
    """Key format of the saved LoRA: native is what ComfyUI reads in full, diffusers is for its load_lora_weights, kohya for sd-scripts. LoRA type lora only."""
    hub_repo: str = ""
    """Repository of the Hugging Face hub, "owner/name", that the run's file is pushed to when it is finished, with a model card and the last samples. The token is that of HF_TOKEN or `hf auth login`. A push that fails is said and ends nothing: `lora-loom push RUN` tries again. Empty pushes nothing."""
    hub_checkpoints: bool = False
    """Pushes the files of the checkpoints too."""
    hub_private: bool = True
    """A repository that the push makes is private."""
    tracker_dir: str = ""
    """Folder in which TensorBoard finds all runs, each in a folder of its name (kohya's logging_dir); empty writes to <run>/tensorboard, which `tensorboard --logdir` on the folder of the runs finds as well."""

    def check(self) -> None:
        if self.tracker_run and self.tracker_dir:
            check_name(self.tracker_run)


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
        check_loftq(self.network, self.model.quantize, self.model.matmul)
        some = bool(self.dataset or self.dataset_files)
        require(some, "dataset", self.dataset, "add at least one [[dataset]] table with a folder")
        require(
            bool(self.dataset_files) or any(d.role == "train" for d in self.dataset),
            "dataset.role",
            "no set has role = 'train'",
            "give one set role = 'train'",
        )
