"""SimpleTuner's learning-rate schedules, noise levels and loss."""

from collections.abc import Mapping

from .. import values
from ..models import is_flow
from ..translation import Translation


def schedule(made: Translation) -> None:
    """Set the learning-rate schedule and its warm-up."""
    kind, warmup, steps = (
        made.text("lr_scheduler", "constant_with_warmup"),
        made.whole("lr_warmup_steps"),
        made.whole("max_train_steps"),
    )
    floor = min(1.0, made.number("lr_end", 4e-7) / made.number("learning_rate", 4e-7))
    if kind in ("cosine", "sine", "cosine_with_restarts", "cosine_with_warmup"):
        _waves(made, kind, warmup or 1000, steps)
        made.put("schedule.min_lr_ratio", floor, "lr_end")
        return
    if kind in ("constant", "constant_with_warmup"):
        made.put("schedule.kind", "constant", "lr_scheduler")
    elif kind in ("linear", "polynomial"):
        made.put("schedule.kind", kind, "lr_scheduler")
        if kind == "polynomial":
            made.put("schedule.power", made.number("lr_power", 0.8), "lr_power")
            made.put("schedule.min_lr_ratio", floor, "lr_end")
    else:
        made.put("schedule.kind", "constant", "lr_scheduler", nearly=f"there is no {kind} here")
    made.put("schedule.warmup", warmup, "lr_warmup_steps")
    if steps and warmup >= steps:
        made.notes.append(
            f"schedule.warmup: {warmup} steps of warm-up in a run of {steps}: the rate never reaches its peak"
        )


def _waves(made: Translation, kind: str, period: int, steps: int) -> None:
    """Its cosine and sine have no warm-up: lr_warmup_steps is their period."""
    note = f"lr_warmup_steps is the period there, {period} steps, and there is no warm-up"
    cycles = max(1, round(steps / period)) if steps else 1
    if kind == "sine":
        made.put("schedule.kind", "sine", "lr_scheduler", nearly=note)
        made.put("schedule.cycles", max(1, round(cycles / 2)), "lr_warmup_steps")
    elif cycles == 1:
        made.put("schedule.kind", "cosine", "lr_scheduler", nearly="" if steps == period else note)
    else:
        made.put("schedule.kind", "restarts", "lr_scheduler", nearly=f"{note}; it rises again smoothly there")
        made.put("schedule.cycles", cycles, "lr_warmup_steps")
    made.put("schedule.warmup", 0, "lr_warmup_steps")


SPACINGS = {"trailing": "simple", "leading": "ddim_uniform", "linspace": "normal"}
"""{spacing of diffusers: our schedule of the same noise levels}."""


def noise(made: Translation, family: str) -> None:
    """Set noise levels, loss and guidance value."""
    if is_flow(family, made.text("model_family")):
        _flow(made)
        made.say("needless", "snr_gamma", note="flow models have no such weight, there either")
        made.say("needless", "rescale_betas_zero_snr", note="flow models begin at pure noise anyway")
        made.say(
            "needless",
            "training_scheduler_timestep_spacing",
            "inference_scheduler_timestep_spacing",
            note="it has no effect on flow models",
        )
    else:
        spacing = made.text("inference_scheduler_timestep_spacing")
        if spacing in SPACINGS:
            made.put("validation.scheduler", SPACINGS[spacing], "inference_scheduler_timestep_spacing")
        if made.has("snr_gamma"):
            made.put("objective.min_snr_gamma", made.number("snr_gamma"), "snr_gamma")
            if made.on("use_soft_min_snr"):
                made.put("objective.soft_min_snr", True, "use_soft_min_snr", nearly="another form of the smooth weight")
        if made.on("offset_noise"):
            nearly = "in every step, there in a share of them (noise_offset_probability)"
            made.put(
                "objective.noise_offset",
                made.number("noise_offset", 0.1),
                "noise_offset",
                "offset_noise",
                nearly=nearly,
            )
        made.say("needless", "flow_schedule_shift", "flow_schedule_auto_shift", note="this is no flow model")
    made.say("needless", "noise_offset", "offset_noise", note="offset_noise is off")
    if made.has("masked_loss_probability"):
        made.put(
            "objective.unmasked_probability", 1 - made.number("masked_loss_probability"), "masked_loss_probability"
        )
    if made.number("input_perturbation"):
        fades = made.whole("input_perturbation_steps")
        nearly = "it does not fade here" if fades else ""
        made.put("objective.ip_noise_gamma", made.number("input_perturbation"), "input_perturbation", nearly=nearly)
    made.say("needless", "input_perturbation", "input_perturbation_steps", note="no noise is added")
    loss = made.text("loss_type", "l2")
    if loss in ("l2", "mse"):
        made.say("exact", "loss_type", ours="objective.loss")
    elif loss in ("huber", "smooth_l1"):
        made.put("objective.loss", loss, "loss_type", nearly="a pseudo-Huber loss there")
        law = made.text("huber_schedule", "snr")
        flow = is_flow(family, made.text("model_family"))
        ours = (
            "exponential" if flow and law == "snr" else law if law in ("constant", "exponential", "snr") else "constant"
        )
        made.put(
            "objective.huber_schedule",
            ours,
            "huber_schedule",
            nearly="" if ours == law else f"flow models have no {law}",
        )
    made.say("needless", "huber_schedule", "huber_c", note="the loss has no such point")
    if family == "flux" and made.settings.get("model.variant") == "fluxbooru":
        nearly = "" if made.number("flux_guidance_value", 1.0) == 3.5 else "it becomes 3.5 there, too, for this model"
        made.put("objective.guidance_scale", 3.5, "flux_guidance_value", nearly=nearly)
    elif family == "flux" and made.settings.get("model.variant") not in ("schnell", "libreflux"):
        made.put("objective.guidance_scale", made.number("flux_guidance_value", 1.0), "flux_guidance_value")
    made.say("needless", "flux_guidance_value", note="this model is fed no guidance value")


def rollout(made: Translation) -> None:
    """Set scheduled sampling. Its probability rises from one share to another, here from none to one."""
    most = made.whole("scheduled_sampling_max_step_offset")
    if not most:
        return
    made.put("objective.scheduled_sampling_max_step_offset", most, "scheduled_sampling_max_step_offset")
    ramp = made.whole("scheduled_sampling_ramp_steps")
    share = made.number("scheduled_sampling_prob_end", 0.5) if ramp else made.number("scheduled_sampling_probability")
    names = ("scheduled_sampling_prob_end",) if ramp else ("scheduled_sampling_probability",)
    made.put("objective.scheduled_sampling_probability", share, *names)
    if ramp:
        first = made.number("scheduled_sampling_prob_start")
        nearly = f"it begins at {first:g} there" if first else ""
        made.put("objective.scheduled_sampling_ramp_steps", ramp, "scheduled_sampling_ramp_steps", nearly=nearly)
    if made.has("scheduled_sampling_strategy"):
        strategy = made.text("scheduled_sampling_strategy")
        made.put("objective.scheduled_sampling_strategy", strategy, "scheduled_sampling_strategy")


def tread(made: Translation) -> None:
    """Set token routing. Raises ConfigError for a value that cannot be read."""
    given = made.get("tread_config")
    if not isinstance(given, Mapping):
        return
    ratio, first, last = ("selection_ratio", "start_layer_idx", "end_layer_idx")
    routes = [
        f"{values.whole(first, one.get(first, 0))}:{values.whole(last, one.get(last, -1))}:{values.number(ratio, one.get(ratio, 0.5)):g}"
        for one in given.get("routes", [])
        if isinstance(one, Mapping)
    ]
    if routes:
        made.put("objective.tread_routes", ",".join(routes), "tread_config")


def steps_range(made: Translation) -> None:
    """The noise levels that are trained, of the 1000."""
    if made.text("timestep_bias_strategy", "none") == "range":
        made.put(
            "objective.min_timestep",
            made.number("timestep_bias_begin") / 1000,
            "timestep_bias_begin",
            "timestep_bias_strategy",
        )
        made.put("objective.max_timestep", made.number("timestep_bias_end", 1000) / 1000, "timestep_bias_end")
    made.say("needless", "timestep_bias_begin", "timestep_bias_end", note="timestep_bias_strategy is not range")


def _flow(made: Translation) -> None:
    listed = _listed(made)
    if listed:
        made.put("objective.timestep_sampling", "list", why="a list of noise levels")
        made.put(
            "objective.timestep_list", listed, "flux_fast_schedule", "flow_custom_timesteps", "flow_timesteps_mode"
        )
        made.put("objective.shift", 1.0, why="the list is taken as it is")
        made.say(
            "needless", "flow_schedule_shift", "flow_schedule_auto_shift", "flow_sigmoid_scale", note="the list decides"
        )
        return
    if made.on("flow_use_uniform_schedule"):
        made.put("objective.timestep_sampling", "uniform", "flow_use_uniform_schedule")
    elif made.on("flow_use_beta_schedule"):
        made.put("objective.timestep_sampling", "beta", "flow_use_beta_schedule")
        shape = [made.number(f"flow_beta_schedule_{name}", 2.0) for name in ("alpha", "beta")]
        made.put("objective.beta", shape, "flow_beta_schedule_alpha", "flow_beta_schedule_beta")
    else:
        made.put("objective.timestep_sampling", "logit_normal", why="SimpleTuner's default for flow models")
        made.put("objective.logit_std", made.number("flow_sigmoid_scale", 1.0), "flow_sigmoid_scale")
    if made.on("flow_schedule_auto_shift"):
        made.put("objective.shift", "resolution", "flow_schedule_auto_shift")
        made.say("needless", "flow_schedule_shift", note="flow_schedule_auto_shift wins over it")
    else:
        made.put(
            "objective.shift",
            made.number("flow_schedule_shift", 3.0) or 1.0,
            "flow_schedule_shift",
            "flow_schedule_auto_shift",
        )


FAST = [*[1.0] * 7, 0.75, 0.5, 0.25]
"""Noise levels of flux_fast_schedule: seven in ten draws are pure noise."""


def _listed(made: Translation) -> list[float]:
    """The noise levels that alone are trained; [] where all are."""
    if made.on("flux_fast_schedule"):
        return FAST
    given = made.get("flow_custom_timesteps")
    if given is None:
        return []
    parts = given if isinstance(given, list) else str(given).strip("[]() ").split(",")
    levels = [values.number("flow_custom_timesteps", part) for part in parts if str(part).strip()]
    return [level / 1000 if max(levels) > 1 else level for level in levels]
