"""What trainers come with, as tables of our configuration: data for bench/learning.py, each with its source.

A row is what another trainer's settings give in this trainer, not what its code does: rank, alpha, rate, schedule, target
modules, timestep sampling and EMA are its own. Not emulated: core's TrainLoraNode (a loss on x0; bench/host_quality.py runs the
real node), sd-scripts' weight of 1 / sigma^2, SimpleTuner's rank 128 and clipping by value, ai-toolkit's timestep weighting and
its own rank for convolutions, OneTrainer's batch of 4 and its training of the text encoder, and the larger initial weights of
diffusers' scripts, with which they learn more.
"""

from dataclasses import dataclass
from typing import Any

Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one trainer comes with, in our tables."""

    source: str
    tables: Tables


def settings(source: str, rate: float | str, targets: str = "default", **tables: dict[str, Any]) -> Settings:
    """Rank 16, batch 1 and no average of weights, unless the tables say otherwise."""
    network = {"rank": 16, "target_modules": targets, **tables.pop("network", {})}
    optimizer = {"learning_rate": rate, **tables.pop("optimizer", {})}
    training = {"ema_decay": 0.0, **tables.pop("training", {})}
    return Settings(source=source, tables={"network": network, "optimizer": optimizer, "training": training, **tables})


def ours(before: str) -> dict[str, Settings]:
    """Our own rows. `before` are the default target modules of version 0.1."""
    drawn, averaged = {"objective": {"timestep_spread": "independent"}}, {"training": {"ema_decay": "auto"}}
    return {
        "ours in version 0.1": settings("CHANGELOG.md", 1e-4, before, **drawn),
        "ours, default targets, 1e-4": settings("trainer/families", 1e-4),
        "ours, the defaults": settings("trainer/training/rate.py at the width of this base, trainer/training/loop.py", "auto", **averaged),
        "ours, the defaults at the rate for width 3072": settings("trainer/training/rate.py at the width of Flux", 4.2e-4, **averaged),
        "ours, find": settings("trainer/training/find_rate.py", "find", **averaged),
        "ours, no average": settings("the defaults but ema_decay", "auto"),
        "ours, independent levels": settings("the defaults but timestep_spread", "auto", **drawn, **averaged),
        "ours, EMA": settings("the defaults but ema_decay = 0.98", "auto", training={"ema_decay": 0.98}),
        "ours, WSD": settings("the defaults but a fall over the last fifth in place of the average", "auto", schedule={"kind": "wsd", "warmup": 0.05}),
        "ours, warm-up": settings("the defaults but no average, and a short warm-up", "auto", schedule={"warmup": 0.05}),
        **{f"grid: {rate:g}": settings("trainer/training/rate.py, rates beside it", rate, **averaged) for rate in (6e-4, 1e-3, 2e-3, 4e-3)},
        **{f"grid: attention, {rate:g}": settings("trainer/families, fewer modules", rate, "attention") for rate in (1e-3, 4e-3)},
    }  # fmt: skip


BLOCKS = r"regex:transformer_blocks\.\d+\."
SHIFT_1 = {"timestep_sampling": "logit_normal", "shift": 1.0}
IMAGE_ATTENTION = r"regex:attn\.(to_[qkv]|to_out\.0)$"
EVERY = "regex:."
WARMUP_200: Tables = {"network": {"alpha": 1.0}, "schedule": {"warmup": 200}}

SD3 = {
    **ours("attention"),
    "ai-toolkit, job of its UI": settings(
        "ostris/ai-toolkit, ui/src/app/jobs/new/jobConfig.ts", 1e-4, BLOCKS, network={"rank": 32},
        optimizer={"weight_decay": 1e-4}, objective=SHIFT_1, dataset={"caption_dropout": 0.05},
    ),
    "ai-toolkit, SD3.5 example": settings(
        "ostris/ai-toolkit, config/examples/train_lora_sd35_large_24gb.yaml", 1e-4, BLOCKS,
        objective={"timestep_sampling": "uniform", "shift": 1.0}, training={"ema_decay": 0.99},
    ),
    "OneTrainer, SD3 LoRA preset": settings(
        "Nerogar/OneTrainer, training_presets/#sd 3 LoRA.json", 3e-4, EVERY, objective=SHIFT_1,
        network={"alpha": 1.0, "exclude_modules": "pos_embed"}, schedule={"warmup": 200},
    ),
    "SimpleTuner, SD3 example": settings("bghira/SimpleTuner, documentation/quickstart/SD3.md", 1e-4, IMAGE_ATTENTION),
    "diffusers, train_dreambooth_lora_sd3": settings(
        "huggingface/diffusers, examples/dreambooth/train_dreambooth_lora_sd3.py", 1e-4, "attention",
        network={"rank": 4}, objective={"timestep_sampling": "uniform"},
    ),
}  # fmt: skip
FLUX = {
    **ours("attention"),
    "ai-toolkit, Flux example": settings(
        "ostris/ai-toolkit, config/examples/train_lora_flux_24gb.yaml", 1e-4, BLOCKS, objective=SHIFT_1,
        dataset={"caption_dropout": 0.05}, training={"ema_decay": 0.99},
    ),
    "OneTrainer, Flux LoRA preset": settings(
        "Nerogar/OneTrainer, training_presets/#flux LoRA.json", 3e-4, "all", objective=SHIFT_1, **WARMUP_200,
    ),
    "diffusers, train_dreambooth_lora_flux": settings(
        "huggingface/diffusers, examples/dreambooth/train_dreambooth_lora_flux.py", 1e-4, IMAGE_ATTENTION,
        network={"rank": 4}, objective={"timestep_sampling": "uniform", "shift": 1.0},
    ),
}  # fmt: skip
WITH_TIME = r"regex:attentions\.|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)$|samplers\.0\.conv$"
UNET = {
    **ours("transformer"),
    **{f"grid: without convolutions, {rate:g}": settings("trainer/families, fewer modules", rate, "transformer") for rate in (1e-3, 2e-3)},
    **{f"grid: convolutions of rank {rank}": settings("trainer/families, lower rank", "auto", network={"conv_rank": rank}) for rank in (4, 8)},
    "grid: modulation too": settings("trainer/families, more modules", "auto", WITH_TIME),
    "ai-toolkit, job of its UI": settings(
        "ostris/ai-toolkit, ui/src/app/jobs/new/jobConfig.ts", 1e-4, "conv", network={"rank": 32},
        optimizer={"weight_decay": 1e-4}, dataset={"caption_dropout": 0.05},
    ),
    "OneTrainer, SD1.5 LoRA preset": settings(
        "Nerogar/OneTrainer, training_presets/#sd 1.5 LoRA.json", 3e-4, "all", objective={"noise_offset": 0.05}, **WARMUP_200,
    ),
    "diffusers, train_text_to_image_lora": settings(
        "huggingface/diffusers, examples/text_to_image/train_text_to_image_lora.py", 1e-4, "attention", network={"rank": 4},
    ),
}  # fmt: skip
PEERS = {"demo": SD3, "unet": UNET, "flux": FLUX}
"""{toy base: {trainer: settings}}."""
