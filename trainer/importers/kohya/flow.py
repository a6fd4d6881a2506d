"""Loss and noise levels of sd-scripts and musubi-tuner."""

from ..translation import Translation


def noise(made: Translation) -> None:
    """Set the trained noise levels and the loss of SD and SDXL."""
    for name, ours in (("min_timestep", "objective.min_timestep"), ("max_timestep", "objective.max_timestep")):
        if made.has(name):
            made.put(ours, made.number(name) / 1000, name)
    loss(made, "snr")


def loss(made: Translation, schedule: str) -> None:
    """Set the loss. `schedule` is that of huber's delta where none is named."""
    word = made.text("loss_type", "l2")
    if word in ("huber", "smooth_l1"):
        made.put("objective.loss", word, "loss_type", nearly="a pseudo-Huber loss there")
        scale = made.number("huber_c", 0.1) * made.number("huber_scale", 1.0)
        made.put("objective.huber_delta", scale, "huber_c", "huber_scale", nearly="a pseudo-Huber loss there")
        word = made.text("huber_schedule", schedule)
        by_level = word == "snr" and schedule != "snr"
        nearly = "flow models have no such schedule here" if by_level else ""
        made.put("objective.huber_schedule", schedule if by_level else word, "huber_schedule", nearly=nearly)
    elif word in ("l2", "mse"):
        made.say("exact", "loss_type", ours="objective.loss")
        made.say("needless", "huber_c", "huber_scale", "huber_schedule", note="the loss is l2")
    if made.on("masked_loss"):
        made.put("objective.masked_loss", "plain", "masked_loss")


OF_BETAS = (
    "min_snr_gamma", "multires_noise_iterations", "multires_noise_discount", "debiased_estimation_loss", "zero_terminal_snr",
    "scale_v_pred_loss_like_noise_pred",
)  # fmt: skip
"""Options that sd-scripts reads for epsilon and v models alone."""
RESOLUTION = ("flux_shift", "qwen_shift", "nextdit_shift", "flux2_shift", "krea2_shift")


SHIFTS = {"flux": 3.0, "lumina": 6.0, "musubi": 1.0}


def flow(made: Translation, part: str) -> None:
    """Set noise levels of a flow model."""
    loss(made, "constant")
    if part in ("flux", "sd3") and made.has("apply_t5_attn_mask"):
        made.put("text.t5_attention_mask", made.on("apply_t5_attn_mask"), "apply_t5_attn_mask")
    made.say("needless", *OF_BETAS, note="flow models have no such noise or weight")
    if part == "flux":
        made.put("objective.guidance_scale", made.number("guidance_scale", 3.5), "guidance_scale")
        if made.text("model_prediction_type", "sigma_scaled") == "raw":
            made.say("exact", "model_prediction_type", note="the only one here")
        else:
            made.say("nearly", "model_prediction_type", note="the prediction is compared as it is (raw) here")
    shift = (
        made.number("training_shift", 1.0)
        if part == "sd3"
        else made.number("discrete_flow_shift", SHIFTS.get(part, 3.0))
    )
    method = "sigma" if part == "sd3" else made.text("timestep_sampling", "shift" if part == "lumina" else "sigma")
    name = "training_shift" if part == "sd3" else "discrete_flow_shift"
    if method == "sigma":
        _weighted(made, part)
        made.put("objective.shift", shift, name)
    elif method == "uniform":
        made.put("objective.timestep_sampling", "uniform", "timestep_sampling")
        made.put("objective.shift", 1.0, why="timestep_sampling is uniform")
    else:
        unknown = method not in ("sigmoid", "shift", *RESOLUTION)
        nearly = f"there is no {method} here" if unknown else ""
        made.put("objective.timestep_sampling", "logit_normal", "timestep_sampling", nearly=nearly)
        made.put("objective.logit_std", made.number("sigmoid_scale", 1.0), "sigmoid_scale")
        made.put("objective.shift", "resolution" if method in RESOLUTION else shift if method == "shift" else 1.0,
                 name if method == "shift" else "timestep_sampling")  # fmt: skip
    made.say(
        "needless",
        name,
        "sigmoid_scale",
        "logit_mean",
        "logit_std",
        "mode_scale",
        "weighting_scheme",
        note=f"timestep_sampling = {method} does not read it",
    )
    for limit, other in (("min_timestep", "max_timestep"), ("max_timestep", "min_timestep")):
        if made.has(limit):
            from_noise = method == "sigma" and part != "sd3"
            share = made.number(limit) / 1000
            made.put(f"objective.{other if from_noise else limit}", 1 - share if from_noise else share, limit)


def _weighted(made: Translation, part: str) -> None:
    """timestep_sampling = sigma: the distribution is weighting_scheme, counted from pure noise except for SD3."""
    scheme = made.text("weighting_scheme", "uniform")
    known = {"uniform": "uniform", "none": "uniform", "logit_normal": "logit_normal", "mode": "mode"}
    nearly = "" if scheme in known else f"there is no loss weight {scheme} here; noise levels are drawn evenly"
    made.put(
        "objective.timestep_sampling",
        known.get(scheme, "uniform"),
        "weighting_scheme",
        "timestep_sampling",
        nearly=nearly,
    )
    if scheme == "logit_normal":
        sign = 1 if part == "sd3" else -1
        made.put("objective.logit_mean", sign * made.number("logit_mean", 0.0) + 0.0, "logit_mean")
        made.put("objective.logit_std", made.number("logit_std", 1.0), "logit_std")
    elif scheme == "mode":
        made.put("objective.mode_scale", made.number("mode_scale", 1.29), "mode_scale")
