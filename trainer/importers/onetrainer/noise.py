"""OneTrainer's noise levels, loss and samples."""

import json
import math
from collections.abc import Callable

from ...data.sets.checks import Surroundings
from ...errors import ConfigError
from .. import values
from ..models import is_flow
from ..translation import Translation

LAWS = {"UNIFORM": "uniform", "LOGIT_NORMAL": "logit_normal", "HEAVY_TAIL": "mode", "BETA": "beta"}
"""{timestep_distribution: law here}, of those that are there."""
SAMPLERS = {"EULER": "euler", "DDIM": "ddim", "DPMPP": "dpmpp_2m"}
"""{beginning of a sampler's noise_scheduler: validation.sampler}."""


def noise(made: Translation, family: str) -> None:
    """Set noise levels, their weights and the loss."""
    flow = is_flow(family, made.text("model_type"))
    if flow:
        if made.on("dynamic_timestep_shifting"):
            made.put("objective.shift", "resolution", "dynamic_timestep_shifting")
            made.say("needless", "timestep_shift", note="dynamic_timestep_shifting wins over it")
        else:
            made.put("objective.shift", made.number("timestep_shift", 1.0), "timestep_shift")
    made.say("needless", "timestep_shift", "dynamic_timestep_shifting", note="it is off, or of flow models only")
    word = made.text("timestep_distribution", "UNIFORM")
    weight, bias = made.number("noising_weight"), made.number("noising_bias")
    law = LAWS.get(word, "")
    if word in SHAPES:
        _as_beta(made, word, weight, bias)
    else:
        nearly = "" if law else f"there is no {word} here"
        made.put("objective.timestep_sampling", law or "uniform", "timestep_distribution", nearly=nearly)
    if law == "logit_normal":
        made.put("objective.logit_mean", bias, "noising_bias")
        made.put("objective.logit_std", 1 + weight, "noising_weight")
    elif law == "mode":
        made.put("objective.mode_scale", weight, "noising_weight")
    elif law == "beta" and weight > 0 and bias > 0:
        made.put("objective.beta", [weight, bias], "noising_weight", "noising_bias")
    made.say("needless", "noising_weight", "noising_bias", note=f"{word} does not read it")
    if made.text("loss_weight_fn", "CONSTANT") == "MIN_SNR_GAMMA" and not flow:
        made.put(
            "objective.min_snr_gamma",
            made.number("loss_weight_strength", 5.0),
            "loss_weight_strength",
            "loss_weight_fn",
        )
    if flow:
        made.say(
            "needless", "rescale_noise_scheduler_to_zero_terminal_snr", note="flow models begin at pure noise anyway"
        )
    constant = made.text("loss_weight_fn", "CONSTANT") in ("CONSTANT", "MIN_SNR_GAMMA")
    made.say(
        "needless" if constant else "none",
        "loss_weight_fn",
        "loss_weight_strength",
        note="no weight of the loss" if constant else "there is no such weight here",
    )
    if made.number("huber_strength") and not made.number("mse_strength", 1.0):
        made.put("objective.loss", "huber", "huber_strength", "mse_strength")
        made.put("objective.huber_delta", made.number("huber_delta", 1.0), "huber_delta")
    made.say(
        "none" if made.number("huber_strength") else "exact",
        "huber_strength",
        "mse_strength",
        note="one loss is taken: mse" if made.number("huber_strength") else "",
    )
    made.say("needless", "huber_delta", note="the loss is mse")


SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "INVERTED_PARABOLA": lambda x, weight, bias: max(0.0, 2 - weight * (x - 0.5 - bias) ** 2),
    "COS_MAP": lambda x, weight, bias: 2 / (math.pi * (1 - 2 * x + 2 * x * x)),
    "SIGMOID": lambda x, weight, bias: 1 / (1 + math.exp(-weight * (x - 0.5 - bias))),
}
"""{timestep_distribution: its density at a share of the schedule, up to a factor}, of those that are not here."""


def _as_beta(made: Translation, word: str, weight: float, bias: float) -> None:
    """The beta distribution with the same mean and variance."""
    shares = [(at + 0.5) / 1000 for at in range(1000)]
    densities = [SHAPES[word](share, weight, bias) for share in shares]
    total = sum(densities) or 1.0
    mean = sum(share * density for share, density in zip(shares, densities, strict=True)) / total
    variance = sum((share - mean) ** 2 * density for share, density in zip(shares, densities, strict=True)) / total
    size = mean * (1 - mean) / variance - 1 if variance else 2.0
    names = ("timestep_distribution", "noising_weight", "noising_bias")
    nearly = f"the beta distribution with the mean and spread of {word}"
    made.put("objective.timestep_sampling", "beta", "timestep_distribution", nearly=nearly)
    made.put("objective.beta", [round(mean * size, 4), round((1 - mean) * size, 4)], *names, nearly=nearly)


def samples(made: Translation, around: Surroundings) -> None:
    """Set prompts and settings of the samples."""
    samples = made.get("samples")
    place = made.text("sample_definition_file_name")
    path = around.find(place) if place and samples is None else None
    if path is not None:
        try:
            samples = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"sample_definition_file_name = {place!r} cannot be read: {error}") from error
    shown = [one for one in samples or [] if values.is_on(one.get("enabled", True)) and one.get("prompt")]
    unit = made.text("sample_after_unit", "MINUTE")
    if not shown or unit == "NEVER":
        made.say(
            "needless",
            "samples",
            "sample_definition_file_name",
            "sample_after",
            "sample_after_unit",
            note="there is nothing to sample",
        )
        return
    made.put("validation.prompts", [str(one["prompt"]) for one in shown], "samples", "sample_definition_file_name",
             nearly="" if len(shown) == 1 else "the size and seed of the first hold for all")  # fmt: skip
    names = {"negative_prompt": "negative_prompt", "width": "width", "height": "height", "seed": "seed", "diffusion_steps": "sample_steps",
             "cfg_scale": "guidance_scale"}  # fmt: skip
    for theirs, ours in names.items():
        if theirs in shown[0]:
            made.put(f"validation.{ours}", shown[0][theirs], why=f"{theirs} of the first sample")
    scheduler = str(shown[0].get("noise_scheduler", ""))
    sampler = next((ours for word, ours in SAMPLERS.items() if scheduler.startswith(word)), "")
    if sampler:
        made.put("validation.sampler", sampler, why="noise_scheduler of the first sample")
        if scheduler.endswith("KARRAS"):
            made.put("validation.scheduler", "karras", why="noise_scheduler of the first sample")
    if unit == "STEP":
        made.put("validation.sample_every", max(1, made.whole("sample_after", 10)), "sample_after", "sample_after_unit")
    made.say("nearly", "sample_after", "sample_after_unit", note="samples are made at checkpoints here")
