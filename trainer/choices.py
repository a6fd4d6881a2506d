"""What a setting can be chosen from: optimizers, schedules, samplers, losses … one table each, by the name that people write.

To add one, write the function or class next to its like and give it an entry here. Validation, `lora-loom train --help`, the
nodes' drop-down lists and docs/configuration.md read these tables; nothing else has to change.

Nothing here imports torch: an entry holds the address of what it stands for, and `Choice.load` imports that when a run needs it.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value of a setting."""

    help: str
    """What it does, in a few words; shown in tooltips and in the documentation."""
    make: str | Callable[..., Any] = ""
    """What it stands for: the function or class itself, or its address, "module:name". A module that begins with a dot is ours."""
    options: tuple[str, ...] = ()
    """The options of the same table that it reads. An option that only other values read is refused together with this one."""

    def load(self) -> Any:
        """The function or class. Raises ImportError where its library is missing."""
        if not isinstance(self.make, str):
            return self.make
        module, _, name = self.make.partition(":")
        return getattr(importlib.import_module(module, __package__), name)

    def values(self, settings: object) -> tuple[Any, ...]:
        """What `settings` has for the options that it reads, in their order."""
        return tuple(getattr(settings, name) for name in self.options)


Entry = TypeVar("Entry", bound=Choice)
CLASS_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
"""Some library's class, "module.Class"."""


def entry_of(table: Mapping[str, Entry], value: str, by_path: Entry | None) -> Entry | None:
    """What a value stands for: an entry of its table, or `by_path` with the class that the value names. None if it is neither."""
    if value in table or by_path is None or not CLASS_PATH.fullmatch(value):
        return table.get(value)
    module, _, name = value.rpartition(".")
    return replace(by_path, make=by_path.make or f"{module}:{name}")


@dataclass(frozen=True, kw_only=True)
class ScheduleChoice(Choice):
    """A learning-rate schedule. `make` is a function of (share of the steps after the warm-up that are done, ScheduleConfig)."""

    by_steps: bool = False
    """Whether `make` is a function of (`training.schedule.Place`, ScheduleConfig) instead, for laws that count steps."""


@dataclass(frozen=True, kw_only=True)
class OptimizerChoice(Choice):
    """An optimizer. `make` is a class of torch's interface: class(parameters or groups, lr=, weight_decay=, **options)."""

    install: str = ""
    """Name of an optional library on the package index."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Arguments that differ from the library's own defaults."""
    rates: tuple[float, float] | None = None
    """Learning rates for adapters that it is used with, in widely apart bounds; None where nothing is known."""
    finds_rate: bool = False
    """Whether it finds its own learning rate, on which a rate of 1 leaves it alone."""
    matrices_only: bool = False
    """Whether it refuses tensors of more than two dimensions, as those of convolutions are."""
    can_fuse: bool = False
    """All tensors in one kernel: an adapter has hundreds of small ones, and each would cost more in calls than in arithmetic."""


@dataclass(frozen=True, kw_only=True)
class AdapterChoice(Choice):
    """An adapter kind. `make` is a function of (NetworkConfig, alpha, regular expression of module paths) that returns PEFT's configuration."""

    network_module: str = "lycoris.kohya"
    """`ss_network_module` of its files: which module of sd-scripts would train it."""
    form: str = "as trained"
    """How the tensors in its files relate to the trained ones."""
    all_layouts: bool = False
    """Whether diffusers and kohya have a form for it, too."""


OPTIMIZERS: dict[str, OptimizerChoice] = {
    "adamw": OptimizerChoice(help="the safe choice", make="torch.optim:AdamW", can_fuse=True, rates=(1e-5, 5e-3)),
    "adamw8bit": OptimizerChoice(
        help="AdamW with its state in 8 bits", make="bitsandbytes.optim:AdamW8bit", install="bitsandbytes", rates=(1e-5, 5e-3)
    ),
    "lion": OptimizerChoice(
        help="wants a learning rate 3 to 10 times lower", make="lion_pytorch:Lion", install="lion-pytorch", rates=(1e-6, 1e-3)
    ),
    "prodigy": OptimizerChoice(
        help="finds its own learning rate: set learning_rate to 1.0",
        make="prodigyopt:Prodigy",
        install="prodigyopt",
        defaults={"decouple": True, "use_bias_correction": True, "safeguard_warmup": True},
        rates=(0.1, 10.0),
        finds_rate=True,
    ),
    "adafactor": OptimizerChoice(
        help="keeps little state in memory",
        make="transformers.optimization:Adafactor",
        defaults={"relative_step": False, "scale_parameter": False, "warmup_init": False},
        rates=(1e-5, 5e-3),
    ),
    "sgd": OptimizerChoice(
        help="with Nesterov momentum; no state but that, and rates far above AdamW's",
        make="torch.optim:SGD", defaults={"momentum": 0.9, "nesterov": True}, can_fuse=True, rates=(1e-4, 10.0),
    ),
    "muon": OptimizerChoice(
        help="orthogonal steps for matrices, at AdamW's rates (torch 2.9; not for dora; default targets are then without convolutions)",
        make="torch.optim:Muon", install="torch>=2.9", defaults={"adjust_lr_fn": "match_rms_adamw"}, rates=(1e-5, 5e-3),
        matrices_only=True,
    ),
    "adamw_schedule_free": OptimizerChoice(
        help="AdamW that averages its weights in place of a schedule; its files hold the average",
        make="schedulefree:AdamWScheduleFree", install="schedulefree", rates=(1e-5, 1e-2),
    ),
    "radam_schedule_free": OptimizerChoice(
        help="the same without a need for a warm-up",
        make="schedulefree:RAdamScheduleFree", install="schedulefree", rates=(1e-5, 1e-2),
    ),
    "prodigy_plus_schedule_free": OptimizerChoice(
        help="finds its own learning rate and averages its weights: no schedule, learning_rate 1.0",
        make="prodigyplus.prodigy_plus_schedulefree:ProdigyPlusScheduleFree", install="prodigy-plus-schedule-free",
        rates=(0.1, 10.0), finds_rate=True,
    ),
    "dadapt_adam": OptimizerChoice(
        help="D-Adaptation: finds its own learning rate, learning_rate 1.0",
        make="dadaptation:DAdaptAdam", install="dadaptation", defaults={"decouple": True}, rates=(0.1, 10.0), finds_rate=True,
    ),
    "dadapt_lion": OptimizerChoice(
        help="the same for Lion", make="dadaptation:DAdaptLion", install="dadaptation", rates=(0.1, 10.0), finds_rate=True
    ),
    "dadapt_adan": OptimizerChoice(
        help="the same for Adan", make="dadaptation:DAdaptAdan", install="dadaptation", rates=(0.1, 10.0), finds_rate=True
    ),
    "dadapt_sgd": OptimizerChoice(
        help="the same for SGD", make="dadaptation:DAdaptSGD", install="dadaptation", rates=(0.1, 10.0), finds_rate=True
    ),
    "dadapt_adagrad": OptimizerChoice(
        help="the same for AdaGrad", make="dadaptation:DAdaptAdaGrad", install="dadaptation", rates=(0.1, 10.0), finds_rate=True
    ),
    "paged_adamw8bit": OptimizerChoice(
        help="adamw8bit whose state moves to RAM where the GPU is full", make="bitsandbytes.optim:PagedAdamW8bit", install="bitsandbytes",
        rates=(1e-5, 5e-3),
    ),
    "lion8bit": OptimizerChoice(
        help="Lion with its state in 8 bits", make="bitsandbytes.optim:Lion8bit", install="bitsandbytes", rates=(1e-6, 1e-3)
    ),
    "paged_lion8bit": OptimizerChoice(
        help="lion8bit whose state moves to RAM where the GPU is full", make="bitsandbytes.optim:PagedLion8bit", install="bitsandbytes",
        rates=(1e-6, 1e-3),
    ),
    "ademamix": OptimizerChoice(
        help="AdamW with a second, slow momentum (arXiv 2409.03137)", make="bitsandbytes.optim:AdEMAMix", install="bitsandbytes",
        rates=(1e-5, 5e-3),
    ),
    "ademamix8bit": OptimizerChoice(
        help="the same with its state in 8 bits", make="bitsandbytes.optim:AdEMAMix8bit", install="bitsandbytes", rates=(1e-5, 5e-3)
    ),
    "stable_adamw": OptimizerChoice(
        help="AdamW whose steps are clipped as Adafactor's: no gradient clipping needed",
        make="pytorch_optimizer:StableAdamW", install="pytorch_optimizer", rates=(1e-5, 5e-3),
    ),
    "came": OptimizerChoice(
        help="Adafactor's memory with AdamW's confidence (arXiv 2307.02047)",
        make="pytorch_optimizer:CAME", install="pytorch_optimizer", rates=(1e-5, 5e-3),
    ),
    "soap": OptimizerChoice(
        help="AdamW in the eigenvectors of Shampoo: more work a step, fewer steps (arXiv 2409.11321)",
        make="pytorch_optimizer:SOAP", install="pytorch_optimizer", rates=(1e-5, 5e-3),
    ),
}  # fmt: skip
"""[optimizer] name."""

OPTIMIZER_CLASS = OptimizerChoice(
    help="an optimizer of torch's interface, if a run with it can be continued exactly, which is tried before it starts"
)
"""[optimizer] name, where it is the path of a class."""

LR_SCHEDULES: dict[str, ScheduleChoice] = {
    "constant": ScheduleChoice(help="stays at the peak", make=".training.schedule:constant"),
    "linear": ScheduleChoice(
        help="falls in a straight line", make=".training.schedule:linear", options=("min_lr_ratio",)
    ),
    "cosine": ScheduleChoice(
        help="falls along half a cosine", make=".training.schedule:cosine", options=("min_lr_ratio",)
    ),
    "restarts": ScheduleChoice(
        help="cosines one after another, as many as cycles",
        make=".training.schedule:restarts",
        options=("min_lr_ratio", "cycles"),
    ),
    "polynomial": ScheduleChoice(
        help="falls as (1 - t) ** power", make=".training.schedule:polynomial", options=("min_lr_ratio", "power")
    ),
    "warm_restarts": ScheduleChoice(
        help="cosines one after another, each with a warm-up, a lower peak and another length if wanted",
        make=".training.schedule:warm_restarts",
        options=("min_lr_ratio", "cycles", "cycle_warmup", "cycle_decay", "cycle_growth"),
        by_steps=True,
    ),
    "inverse_sqrt": ScheduleChoice(
        help="falls as 1 / sqrt(steps)", make=".training.schedule:inverse_sqrt", options=("min_lr_ratio", "timescale"), by_steps=True,
    ),
    "wsd": ScheduleChoice(
        help="warm-up, stable, decay: falls at the end only", make=".training.schedule:wsd", options=("min_lr_ratio", "decay"), by_steps=True,
    ),
    "rex": ScheduleChoice(
        help="stays high for long, then falls fast (arXiv 2107.04197)", make=".training.schedule:rex", options=("min_lr_ratio",)
    ),
    "sine": ScheduleChoice(
        help="waves between the peak and min_lr_ratio, as many as cycles",
        make=".training.schedule:sine",
        options=("min_lr_ratio", "cycles"),
        by_steps=True,
    ),
}  # fmt: skip
"""[schedule] kind."""

SCHEDULE_CLASS = ScheduleChoice(
    help="a schedule of torch's interface, class(optimizer, **options)",
    make=".training.schedule:of_class",
    options=("options",),
    by_steps=True,
)
"""[schedule] kind, where it is the path of a class."""

TIMESTEP_SAMPLING: dict[str, Choice] = {
    "uniform": Choice(help="every noise level equally often", make=".diffusion.timesteps:Uniform"),
    "logit_normal": Choice(
        help="the middle noise levels most (SD3 paper)",
        make=".diffusion.timesteps:LogitNormal",
        options=("logit_mean", "logit_std"),
    ),
    "mode": Choice(
        help="the middle or the ends more (SD3 paper)", make=".diffusion.timesteps:Mode", options=("mode_scale",)
    ),
    "beta": Choice(help="a beta distribution", make=".diffusion.timesteps:beta_law", options=("beta",)),
    "list": Choice(
        help="the noise levels of timestep_list alone, as those of a model that samples in few steps",
        make=".diffusion.timesteps:Listed",
        options=("timestep_list",),
    ),
}
"""[objective] timestep_sampling: a `TimestepLaw`, made of the values of its options."""

LOSSES: dict[str, Choice] = {
    "mse": Choice(help="squared error", make=".diffusion.loss:mse"),
    "huber": Choice(
        help="forgives outliers: linear beyond huber_delta",
        make=".diffusion.loss:huber",
        options=("huber_delta", "huber_schedule"),
    ),
    "smooth_l1": Choice(
        help="huber divided by huber_delta", make=".diffusion.loss:smooth_l1", options=("huber_delta", "huber_schedule")
    ),
}
"""[objective] loss: functions of (prediction, target, delta), all fp32, that return the loss of every element."""

GUIDED_LOSSES: dict[str, Choice] = {
    "off": Choice(help="the plain loss", make=".diffusion.guided_loss:plain"),
    "target": Choice(
        help="the prediction against u + s (target - u), with u the prediction for the empty text",
        make=".diffusion.guided_loss:target_form",
        options=("guided_scale",),
    ),
    "output": Choice(
        help="(prediction + (s - 1) u) / s against the target: the same optimum, with losses and gradients of the usual size",
        make=".diffusion.guided_loss:output_form",
        options=("guided_scale",),
    ),
}
"""[objective] guided_loss: functions of (prediction, target, prediction for the empty text, s) that return what is compared with what."""

ADAPTERS: dict[str, AdapterChoice] = {
    "lora": AdapterChoice(
        help="low-rank matrices; what every program reads",
        make=".lora.kinds.configs:lora_config",
        options=(
            "dropout",
            "rslora",
            "rank_dropout",
            "scale_weight_norms",
            "loraplus_lr_ratio",
            "init",
            "tucker",
            "dylora_unit",
        ),
        network_module="networks.lora",
        all_layouts=True,
    ),
    "dora": AdapterChoice(
        help="weight-decomposed LoRA: direction and magnitude apart",
        make=".lora.kinds.configs:dora_config",
        options=("dropout", "rslora", "loraplus_lr_ratio", "init"),
        network_module="networks.lora",
        form="dora_scale = m * |W| / |W + dW|, for loaders that divide by |W| (ComfyUI); not the trained magnitude m",
    ),
    "loha": AdapterChoice(
        help="Hadamard product of two low-rank matrices", make=".lora.kinds.configs:loha_config", options=("tucker",)
    ),
    "lokr": AdapterChoice(
        help="Kronecker product: very small files",
        make=".lora.kinds.configs:lokr_config",
        options=("lokr_factor", "lokr_factors", "lokr_full_matrix", "lokr_decompose_both"),
        form="alpha / rank is multiplied into lokr_w2 where both factors are full",
    ),
    "glora": AdapterChoice(help="a LoRA, and one that changes the input of the weight", make=".lora.kinds.dense:Glora"),
    "oft": AdapterChoice(
        help="rotates blocks of a weight's rows, rank is the size of a block; has no alpha",
        make=".lora.kinds.rotations:Oft",
    ),
    "boft": AdapterChoice(
        help="OFT as a butterfly: small blocks that reach all rows", make=".lora.kinds.rotations:Boft"
    ),
    "diff": AdapterChoice(
        help="everything: a difference as large as the weights, which files and memory hold whole; has no rank",
        make=".lora.kinds.dense:Difference",
    ),
    "ia3": AdapterChoice(
        help="a factor for each row, few numbers in training; has no rank. Files hold differences as large as the weights",
        make=".lora.kinds.dense:Ia3",
        form="diff = ia3 * W, because ComfyUI reads no (IA)^3",
    ),
    "full": AdapterChoice(
        help="full fine-tune: no LoRA, the weights of the base model themselves; files are whole models. Command line only",
        make=".full.network:trained_part",
        network_module="",
        form="the model itself",
    ),
}
"""[network] kind."""

SAMPLERS: dict[str, Choice] = {
    "euler": Choice(help="first order, one evaluation a step", make=".diffusion.samplers:euler"),
    "heun": Choice(help="second order, two evaluations a step", make=".diffusion.samplers:heun"),
    "dpmpp_2m": Choice(help="DPM++ 2M: second order from the step before", make=".diffusion.samplers:dpmpp_2m"),
    "ddim": Choice(help="deterministic DDIM; equals euler at equal noise levels", make=".diffusion.samplers:ddim"),
}
"""[sweep] sampler: functions of (denoise, noisy latents, noise levels, progress) that return latents. ComfyUI has its own list."""

SCHEDULERS: dict[str, Choice] = {
    "normal": Choice(help="even in the model's timesteps (diffusers: linspace)", make=".diffusion.samplers:normal"),
    "simple": Choice(
        help="every n-th noise level of the model's table, from the highest on (trailing)",
        make=".diffusion.samplers:simple",
    ),
    "karras": Choice(help="even in sigma ** (1 / 7) (arXiv 2206.00364)", make=".diffusion.samplers:karras"),
    "sgm_uniform": Choice(help="as normal, without the lowest noise level", make=".diffusion.samplers:sgm_uniform"),
    "ddim_uniform": Choice(
        help="every n-th noise level, from the second lowest on (leading)", make=".diffusion.samplers:ddim_uniform"
    ),
}
"""[sweep] scheduler: functions of (objective, steps) that return falling noise levels without the final 0."""

GUIDANCE_METHODS: dict[str, Choice] = {
    "cfg": Choice(help="classifier-free guidance", make=".diffusion.guidance:CFG", options=("scale",)),
    "apg": Choice(
        help="adaptive projected guidance (arXiv 2410.02416)",
        make=".diffusion.guidance:APG",
        options=("scale", "eta", "norm_threshold", "momentum"),
    ),
}
"""[[sweep.guidance]] method: a `Guidance`, made of the values of its options."""

NOT_HERE: dict[str, dict[str, str]] = {
    "network.kind": {
        "tlora": "T-LoRA leaves out ranks at high noise when images are made, too, and ComfyUI computes one change of a weight for all noise levels, with which such a file gives burnt images; use lora, and objective.max_timestep or dataset.timestep_range to train less at high noise",
        "locon": "it is lora with target_modules = 'conv', and conv_rank for the rank of convolutions",
        "dylora": "it is lora with dylora_unit, such as 4",
        "lycoris": "name the algorithm: lora, loha, lokr, glora, oft, boft, diff or ia3",
        "vera": "ComfyUI reads no VeRA; use lora with a small rank",
        "adalora": "ComfyUI reads one rank for a module, which AdaLoRA changes; use lora and resize its file by the norm (sv_fro)",
    },
    "model.attention": {
        "sage": "SageAttention has no gradient: it is for making images; use auto, flash or xformers",
    },
}
"""{option: {word of other trainers: what to do, as there is no such value here}}."""
