"""OneTrainer's noise levels, loss and samples."""

import json

from ...data.sets.checks import Surroundings
from ...errors import ConfigError
from .. import values
from ..translation import Translation

FLOW = ("sd3", "flux", "lumina2", "qwen_image", "z_image")


def noise(made: Translation, family: str) -> None:
    """Set noise levels, their weights and the loss."""
    if family in FLOW:
        if made.on("dynamic_timestep_shifting"):
            made.put("objective.shift", "resolution", "dynamic_timestep_shifting")
            made.say("needless", "timestep_shift", note="dynamic_timestep_shifting wins over it")
        else:
            made.put("objective.shift", made.number("timestep_shift", 1.0), "timestep_shift")
    made.say("needless", "timestep_shift", "dynamic_timestep_shifting", note="it is off, or of flow models only")
    word = made.text("timestep_distribution", "UNIFORM")
    weight, bias = made.number("noising_weight"), made.number("noising_bias")
    law = {"UNIFORM": "uniform", "LOGIT_NORMAL": "logit_normal", "HEAVY_TAIL": "mode", "BETA": "beta"}.get(word, "")
    made.put(
        "objective.timestep_sampling",
        law or "uniform",
        "timestep_distribution",
        nearly="" if law else f"there is no {word} here",
    )
    if law == "logit_normal":
        made.put("objective.logit_mean", bias, "noising_bias")
        made.put("objective.logit_std", 1 + weight, "noising_weight")
    elif law == "mode":
        made.put("objective.mode_scale", weight, "noising_weight")
    elif law == "beta" and weight > 0 and bias > 0:
        made.put("objective.beta", [weight, bias], "noising_weight", "noising_bias")
    made.say("needless", "noising_weight", "noising_bias", note=f"{word} does not read it")
    if made.text("loss_weight_fn", "CONSTANT") == "MIN_SNR_GAMMA" and family not in FLOW:
        made.put(
            "objective.min_snr_gamma",
            made.number("loss_weight_strength", 5.0),
            "loss_weight_strength",
            "loss_weight_fn",
        )
    if family in FLOW:
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
    if unit == "STEP":
        made.put("validation.sample_every", max(1, made.whole("sample_after", 10)), "sample_after", "sample_after_unit")
    made.say("nearly", "sample_after", "sample_after_unit", note="samples are made at checkpoints here")
