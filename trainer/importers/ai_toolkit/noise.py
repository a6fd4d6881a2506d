"""ai-toolkit's noise levels and samples."""

import re
from collections.abc import Mapping
from typing import Any

from ..translation import Translation

SHIFTED = ("shift", "flux_shift", "lumina2_shift")
SAMPLERS = {
    "flowmatch": "euler",
    "euler": "euler",
    "ddim": "ddim",
    "dpmsolver": "dpmpp_2m",
    "dpmsolver++": "dpmpp_2m",
    "heun": "heun",
}
"""{sampler: validation.sampler}."""
STEPS = {"one_step": 1, "two_step": 2, "four_step": 4, "eight_step": 8}
"""{timestep_type: how many noise levels it draws from}."""
LEANING = {"content": [1.0, 1 / 3], "style": [1 / 3, 1.0]}
"""{content_or_style: parameters of the beta distribution of 1 - u^3 or u^3, with u uniform}."""


def objective(made: Translation, is_flow: bool) -> None:
    """Set noise levels and loss."""
    if is_flow:
        _timesteps(made)
    for name, share in (("min_denoising_steps", 0), ("max_denoising_steps", 1)):
        if made.has(f"train.{name}"):
            made.put(f"objective.{name[:3]}_timestep", (made.number(f"train.{name}") + share) / 1000, f"train.{name}")
    word = made.text("train.loss_type", "mse")
    note = "" if word == "mse" else f"there is no {word} here; mse is taken"
    made.say("exact" if word == "mse" else "none", "train.loss_type", note=note)
    if made.on("train.do_guidance_loss"):
        made.put("objective.guided_loss", "target", "train.do_guidance_loss")
        scale = made.get("train.guidance_loss_target", 3.0)
        nearly = "its mean; it is drawn from a range there" if isinstance(scale, list) else ""
        number = sum(scale) / len(scale) if isinstance(scale, list) and scale else scale
        made.put("objective.guided_scale", float(number), "train.guidance_loss_target", nearly=nearly)
    made.say("needless", "train.do_guidance_loss", "train.guidance_loss_target", note="it is off")


def _timesteps(made: Translation) -> None:
    leaning = made.text("train.content_or_style", "balanced")
    word = made.text("train.timestep_type", "sigmoid")
    if word in STEPS:
        levels = [1 - at / STEPS[word] for at in range(STEPS[word])]
        made.put("objective.timestep_sampling", "list", "train.timestep_type")
        made.put("objective.timestep_list", levels, "train.timestep_type")
        made.put("objective.shift", 1.0, why=f"timestep_type = {word}")
    elif leaning in LEANING and word in ("linear", "weighted"):
        made.put("objective.timestep_sampling", "beta", "train.content_or_style", "train.timestep_type")
        made.put("objective.beta", LEANING[leaning], "train.content_or_style")
        made.put("objective.shift", 1.0, why=f"timestep_type = {word}")
    elif word == "sigmoid":
        made.put("objective.timestep_sampling", "logit_normal", "train.timestep_type")
        made.put("objective.shift", 1.0, why="timestep_type = sigmoid")
    elif word in SHIFTED:
        made.put("objective.timestep_sampling", "uniform", "train.timestep_type")
        made.put("objective.shift", "auto", why=f"timestep_type = {word}: the family's own")
    else:
        nearly = "" if word == "linear" else f"there is no {word} here; noise levels are drawn evenly"
        made.put("objective.timestep_sampling", "uniform", "train.timestep_type", nearly=nearly)
        made.put("objective.shift", 1.0, why=f"timestep_type = {word}")
    note = (
        "it leans to neither" if leaning == "balanced" else f"with timestep_type = {word} there is no such leaning here"
    )
    made.say("exact" if leaning == "balanced" else "none", "train.content_or_style", note=note)
    made.say("needless", "train.snr_gamma", "train.min_snr_gamma", note="flow models have no such weight")


def samples(made: Translation, process: Mapping[str, Any]) -> None:
    """Set prompts and settings of the samples."""
    given = process.get("sample") or {}
    prompts = [
        one if isinstance(one, str) else str(one.get("prompt", ""))
        for one in (given.get("prompts") or given.get("samples") or [])
    ]
    flags = any(re.search(r"\s--\w", prompt) for prompt in prompts)
    prompts = [re.split(r"\s--(?=\w)", prompt)[0] for prompt in prompts if prompt]
    if not prompts or made.on("train.disable_sampling"):
        made.settings.pop("validation.sample_every", None)
        return
    nearly = "flags behind the prompts are left out" if flags or given.get("samples") else ""
    made.put("validation.prompts", prompts, "sample.prompts", "sample.samples", nearly=nearly)
    made.put("validation.same_seed", not made.on("sample.walk_seed"), "sample.walk_seed")
    made.put("validation.width", made.whole("sample.width", 512), "sample.width")
    made.put("validation.height", made.whole("sample.height", 512), "sample.height")
    negative = made.get("sample.neg", "")
    made.put("validation.negative_prompt", "" if negative is False else str(negative), "sample.neg")
    if made.settings.get("model.family") == "flux" and made.settings.get("model.variant") != "schnell":
        made.put("validation.model_guidance", made.number("sample.guidance_scale", 7.0), "sample.guidance_scale")
        made.put("validation.guidance_scale", 1.0, why="guidance is fed to the network")
    word = made.text("sample.sampler", "ddpm")
    if word in SAMPLERS:
        made.put("validation.sampler", SAMPLERS[word], "sample.sampler")
    made.say("nearly", "sample.sampler", note=f"there is no {word} here; euler is taken")
