"""SimpleTuner: config.json, config.toml and config.env."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ...config.toml import toml_tables
from ...data.sets.checks import Surroundings
from ...errors import ConfigError
from ...types import Record
from .. import values
from ..accelerate import deepspeed
from ..finish import run_name
from ..kohya import shell
from ..models import HUB, put_base, put_family
from ..optimizers import put_arguments, put_optimizer, usual_decay
from ..table import by_name
from ..translation import Translation
from .datasets import datasets
from .kernels import attention, encoders_dtype, hub
from .network import adapter, network
from .noise import noise, rollout, schedule, steps_range, tread

PRECISIONS = {"int8": "int8", "int4": "int4", "int2": "int2", "fp8": "float8", "fp8uz": "float8"}


VARIANTS = {
    "flux": {"krea": "krea", "schnell": "schnell", "kontext": "kontext", "dev": "dev", "fluxbooru": "fluxbooru", "libreflux": "libreflux"},
    "qwen_image": {
        "edit-v1": "qwen-image-edit", "edit-v2": "qwen-image-edit-plus", "edit-v2+": "qwen-image-edit-plus", "edit-v3": "qwen-image-edit-plus",
    },
    "z_image": {"turbo": "z-image-turbo", "turbo-ostris-v2": "z-image-turbo", "ostris-de-turbo": "z-image-turbo", "base": "z-image"},
    "krea2": {"turbo": "turbo", "raw": "raw"},
    "flux2": {"dev": "dev", "klein-4b": "klein-base", "klein-9b": "klein-base"},
}  # fmt: skip
"""{our family: {model_flavour: model.variant}}, where there is one."""


FLAVOUR_HUB = {
    "krea": "black-forest-labs/FLUX.1-Krea-dev",
    "schnell": "black-forest-labs/FLUX.1-schnell",
    "kontext": "black-forest-labs/FLUX.1-Kontext-dev",
    "fluxbooru": "terminusresearch/fluxbooru-v0.3",
    "libreflux": "jimmycarter/LibreFlux-SimpleTuner",
    "turbo": "Tongyi-MAI/Z-Image-Turbo",
    "turbo-ostris-v2": "Tongyi-MAI/Z-Image-Turbo",
    "ostris-de-turbo": "Tongyi-MAI/Z-Image-Turbo",
    "klein-4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "klein-9b": "black-forest-labs/FLUX.2-klein-base-9B",
}
"""{model_flavour: repository}, where it is another than the family's."""


WHICH_FILE = ("CONFIG_BACKEND", "CONFIG_TYPE", "ENV")
"""Variables of the config.env above others: which folder and kind of configuration is read."""
SWITCHES_OF_OLD = ("STABLE_DIFFUSION_3", "FLUX")
"""Variables of older files that name the family."""


def translate(options: Mapping[str, Any], around: Surroundings) -> Translation:
    """A configuration whose file lies in `folder`. Raises ConfigError for a value that cannot be read."""
    made = Translation("simpletuner", ("config",), {**_of_environment(options, around), **options})
    made.say("exact", *WHICH_FILE, note="which configuration is read")
    family = _model(made)
    _names(made)
    network(made, family, around)
    _optimizer(made)
    schedule(made)
    noise(made, family)
    steps_range(made)
    rollout(made)
    tread(made)
    _text(made, family)
    _training(made)
    _validation(made, family, around)
    datasets(made, around)
    return made


def translate_prompts(data: Mapping[str, str], around: Surroundings) -> Translation:
    """A prompt library alone."""
    made = Translation("simpletuner", ("config",), {})
    made.put("validation.prompts", list(data.values()), why="the prompts of the library")
    made.notes.append(
        "validation.prompt_library: name the file there instead, and samples carry the names of the prompts"
    )
    return made


def environment(text: str) -> Record | None:
    """The options of a config.env, with those in TRAINER_EXTRA_ARGS; None for another text."""
    found = shell.variables(text)
    known = by_name("simpletuner", ("config",))
    marks = {
        "MODEL_FAMILY",
        "DATALOADER_CONFIG",
        "TRAINER_EXTRA_ARGS",
        "STABLE_DIFFUSION_3",
        "MODEL_TYPE",
        "CONFIG_BACKEND",
        "CONFIG_TYPE",
        "TRAINING_NUM_PROCESSES",
    }
    if not marks & set(found):
        return None
    used = {name for name in found if f"${{{name}}}" in text or f"${name}" in text}
    found = {name: value for name, value in found.items() if name not in used or f"env:{name}" in known}
    extra: Record = {}
    for name in ("TRAINER_EXTRA_ARGS", "DEBUG_EXTRA_ARGS"):
        extra |= shell.options(shell.words(found.pop(name, "")))[1]
    lower = {
        name if f"env:{name}" in known or name in (*SWITCHES_OF_OLD, *WHICH_FILE) else name.lower(): value
        for name, value in found.items()
    }
    return {**lower, **extra}


def _of_environment(options: Mapping[str, Any], around: Surroundings) -> Record:
    """The configuration that a config.env names by ENV and CONFIG_BACKEND; none if it is not there, or another file is translated."""
    named, kind = options.get("ENV"), str(options.get("CONFIG_BACKEND") or options.get("CONFIG_TYPE") or "")
    if not kind and not set(options) & {"num_processes", "env:TRAINING_NUM_PROCESSES", "TRAINING_NUM_PROCESSES"}:
        return {}
    kind = kind or "json"
    place = f"config.{kind}" if named in (None, "default") else f"{named}/config.{kind}"
    path = around.find(place) if kind in ("json", "toml") else None
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = json.loads(text) if kind == "json" else toml_tables(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return dict(data)


def _model(made: Translation) -> str:
    family = put_family(made, "model_family", made.text("model_family")) if made.has("model_family") else ""
    for legacy, ours in zip(SWITCHES_OF_OLD, ("sd3", "flux"), strict=True):
        if made.on(legacy):
            family = put_family(made, legacy, ours)
    named = made.text("pretrained_model_name_or_path")
    flavour = made.text("model_flavour", "turbo-ostris-v2" if family == "z_image" and not named else "")
    variant = VARIANTS.get(family, {}).get(flavour, "")
    if variant:
        made.put("model.variant", variant, "model_flavour")
    else:
        made.say("nearly", "model_flavour", note="it only picks which model is downloaded; model.base says it here")
    base = named or FLAVOUR_HUB.get(flavour, HUB.get(family, ""))
    part = "transformer" if made.has("pretrained_transformer_model_name_or_path") else "unet"
    other = made.text(f"pretrained_{part}_model_name_or_path")
    sub = made.text(f"pretrained_{part}_subfolder", part)
    if other:
        names = (f"pretrained_{part}_model_name_or_path", f"pretrained_{part}_subfolder")
        put_base(made, "model.base", other, *names)
        if sub not in ("none", part):
            made.settings["model.base"] += f"/{sub}"
        put_base(made, "model.encoders", base, "pretrained_model_name_or_path")
    elif base:
        put_base(
            made,
            "model.base",
            base,
            *(["pretrained_model_name_or_path"] if made.has("pretrained_model_name_or_path") else []),
        )
    vae = made.text("pretrained_vae_model_name_or_path")
    if vae and vae == made.text("pretrained_model_name_or_path"):
        made.say("exact", "pretrained_vae_model_name_or_path", note="the VAE of the base model is used")
    elif vae:
        put_base(made, "model.vae", vae, "pretrained_vae_model_name_or_path")
    adapter(made, family, flavour)
    _precision(made)
    _memory(made)
    return family


def _precision(made: Translation) -> None:
    word = made.text("base_model_precision", "no_change")
    bits, _, library = word.partition("-")
    bits = {"fp8wo": "fp8", "int4wo": "int4", "int8wo": "int8"}.get(bits, bits)
    if bits in PRECISIONS:
        nearly = "" if library == "quanto" else f"optimum-quanto quantizes here, not {library}"
        made.put("model.quantize", PRECISIONS[bits], "base_model_precision", nearly=nearly)
    elif word == "nf4-bnb":
        made.put("model.quantize", "nf4", "base_model_precision")
    elif word in ("no_change", "bf16", "fp16", "fp32"):
        made.put("model.quantize", "none", "base_model_precision")
        if word != "no_change":
            made.put("model.dtype", values.dtype("base_model_precision", word), "base_model_precision")
    if made.has("base_model_default_dtype"):
        dtype = values.dtype("base_model_default_dtype", made.get("base_model_default_dtype"))
        made.put("model.dtype", dtype, "base_model_default_dtype")
    mixed = made.text("mixed_precision", "bf16")
    if mixed == "fp8":
        made.put("training.precision", "bfloat16", "mixed_precision", nearly="there are no float8 products here")
    else:
        made.put("training.precision", values.dtype("mixed_precision", mixed), "mixed_precision")


def _memory(made: Translation) -> None:
    interval = made.whole("gradient_checkpointing_interval", 0)
    if interval > 1:
        nearly = "" if interval <= 4 else "at most one block in four is recomputed here"
        made.put("memory.checkpoint", f"every {min(interval, 4)}", "gradient_checkpointing_interval", nearly=nearly)
    else:
        made.say("exact", "gradient_checkpointing_interval", ours="memory.checkpoint", note="every block is recomputed")
    if made.text("dynamo_backend", "no").lower() not in ("no", "none", ""):
        made.put(
            "memory.compile",
            True,
            "dynamo_backend",
            nearly="the blocks, one by one and for any shape; off where it fails",
        )


def _names(made: Translation) -> None:
    given = made.text("output_dir").rstrip("/\\")
    last = re.split(r"[/\\]", given)[-1] if given else ""
    generic = last.lower() in ("", "models", "output", "datasets")
    repository = made.text("hub_model_id").rpartition("/")[2]
    name = run_name(*("" if generic else last, made.text("tracker_run_name"), repository))
    source = "output_dir" if not generic else "tracker_run_name" if made.has("tracker_run_name") else "hub_model_id"
    made.put("name", name, source)
    if given:
        parent = given if generic else given[: -len(last)].rstrip("/\\") or "output"
        made.put("output.directory", parent, "output_dir")


def _optimizer(made: Translation) -> None:
    rate = made.number("learning_rate", 4e-7)
    if made.on("lr_scale") or made.on("lr_scale_sqrt"):
        images = made.whole("train_batch_size", 4) * max(1, made.whole("gradient_accumulation_steps", 1))
        rate *= images if made.on("lr_scale") else images**0.5
    made.put("optimizer.learning_rate", rate, "learning_rate", "lr_scale", "lr_scale_sqrt")
    legacy = [
        ("use_8bit_adam", "bnb-adamw8bit"),
        ("use_prodigy_optimizer", "prodigy"),
        ("use_adafactor_optimizer", "adafactor"),
    ]
    word = next((name for switch, name in legacy if made.on(switch)), made.text("optimizer", "adamw_bf16"))
    ours = put_optimizer(made, "optimizer", word)
    made.say("exact", *(switch for switch, _ in legacy), ours="optimizer.name")
    arguments = values.pairs("optimizer_config", made.get("optimizer_config"))
    for first, second in (("beta1", "beta2"), ("optimizer_beta1", "optimizer_beta2"), ("adam_beta1", "adam_beta2")):
        given = {**arguments, **made.options}
        if first in given and second in given:
            arguments["betas"] = [values.number(first, given[first]), values.number(second, given[second])]
        arguments.pop(first, None)
        arguments.pop(second, None)
    if made.has("adam_epsilon"):
        arguments["eps"] = made.number("adam_epsilon")
    decay = made.number("adam_weight_decay", 0.01) if usual_decay(ours) else 0.0
    names = (
        "optimizer_config",
        "optimizer_beta1",
        "optimizer_beta2",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "adam_weight_decay",
    )
    put_arguments(made, arguments, *names, decay=decay)
    by_value = made.text("grad_clip_method", "value") == "value"
    nearly = "each number of a gradient is clipped there, the norm of all here" if by_value else ""
    made.put(
        "optimizer.max_grad_norm", made.number("max_grad_norm", 2.0), "max_grad_norm", "grad_clip_method", nearly=nearly
    )


def _text(made: Translation, family: str) -> None:
    if made.on("train_text_encoder"):
        rate = made.number("text_encoder_lr", made.number("learning_rate", 4e-7))
        made.put("text.learning_rate", rate, "train_text_encoder", "text_encoder_lr")
    made.say("exact", "train_text_encoder", ours="text.learning_rate")
    made.say("needless", "text_encoder_lr", note="train_text_encoder is off")
    if family in ("flux", "sd3") and made.has("flux_attention_masked_training"):
        masked, note = made.on("flux_attention_masked_training"), "T5 itself does not read the padding here either"
        made.put("text.t5_attention_mask", masked, "flux_attention_masked_training", nearly=note if masked else "")
    encoders_dtype(made, family)
    attention(made, family)


def _training(made: Translation) -> None:
    steps, epochs = made.whole("max_train_steps"), made.number("num_train_epochs", 1)
    if steps > 0:
        made.put("training.steps", steps, "max_train_steps")
        made.say("needless", "num_train_epochs", note="max_train_steps decides")
    else:
        made.put("training.epochs", epochs or 1, "num_train_epochs")
    if made.has("checkpoint_epoch_interval"):
        made.put("training.save_every_epochs", made.number("checkpoint_epoch_interval"), "checkpoint_epoch_interval")
    made.put("training.batch_size", made.whole("train_batch_size", 4), "train_batch_size")
    made.put("training.save_every", made.whole("checkpoint_step_interval", 500) or 500, "checkpoint_step_interval")
    keep = made.whole("checkpoints_total_limit", 5)
    made.put(
        "training.keep_checkpoints",
        keep,
        "checkpoints_total_limit",
        nearly="LoRA files of deleted checkpoints stay here; training.keep_loras limits them",
    )
    if made.on("use_ema"):
        decay = made.number("ema_decay", 0.995) ** (1 / max(1, made.whole("ema_update_interval", 1)))
        made.put("training.ema_decay", decay, "ema_decay", "use_ema", "ema_update_interval")
    else:
        made.say("exact", "use_ema", ours="training.ema_decay")
        made.say("needless", "ema_decay", "ema_update_interval", note="use_ema is off")
    if made.on("vae_enable_slicing"):
        made.put("memory.vae_batch_size", 1, "vae_enable_slicing", "vae_batch_size")
    report = made.text("report_to", "none")
    chosen = report if report in ("none", "tensorboard", "wandb") else "none"
    made.put("output.report_to", chosen, "report_to", nearly="" if chosen == report else f"there is no {report} here")
    if chosen == "wandb" and made.has("tracker_project_name"):
        made.put("output.tracker_project", made.text("tracker_project_name"), "tracker_project_name")
    made.say("needless", "tracker_project_name", note="only wandb has projects")
    named = made.settings.get("name") == made.text("tracker_run_name")
    made.say(
        "exact" if named else "nearly", "tracker_run_name", note="" if named else "a run has its own name", ours="name"
    )
    hub(made)
    deepspeed(made, made.get("deepspeed_config"))


OF_SAMPLES = (
    "validation_step_interval", "validation_negative_prompt", "validation_num_inference_steps", "validation_seed", "validation_resolution",
    "validation_guidance", "validation_guidance_real", "validation_noise_scheduler", "evaluation_type", "num_validation_images",
    "validation_preview", "validation_preview_steps", "validation_guidance_rescale", "validation_guidance_skip_layers",
)  # fmt: skip
"""Options of the samples."""
SAMPLERS = {"euler": "euler", "ddim": "ddim", "dpm++": "dpmpp_2m", "flow_matching": "euler"}
"""{validation_noise_scheduler: validation.sampler}."""


def _clip_score(made: Translation, around: Surroundings) -> None:
    """evaluation_type = clip, by the CLIP of a folder."""
    names = ("evaluation_type", "pretrained_evaluation_model_name_or_path")
    place = made.text(names[1], "openai/clip-vit-large-patch14-336")
    found = around.find(place) if made.text(names[0]) == "clip" else None
    if found is not None:
        made.put("validation.clip_score", str(found), *names)
    elif made.text(names[0]) == "clip":
        made.say("none", *names, note=f"download {place} and name its folder as validation.clip_score")
    made.say("needless", *names, note="samples are not scored")


def _validation(made: Translation, family: str, around: Surroundings) -> None:
    library = made.get("user_prompt_library") or made.get("use_prompt_library") or made.get("validation_prompt_library")
    if isinstance(library, str) and library.endswith(".json"):
        path = around.find(library)
        names = ("user_prompt_library", "use_prompt_library", "validation_prompt_library")
        made.put("validation.prompt_library", str(path) if path else library, *names)
    if made.has("validation_prompt") and not made.on("validation_disable"):
        made.put("validation.prompts", [made.text("validation_prompt")], "validation_prompt")
    made.say("exact", "validation_disable", ours="validation.prompts")
    if not {"validation.prompts", "validation.prompt_library"} & set(made.settings):
        made.say("needless", *OF_SAMPLES, note="there are no prompts to make samples of")
        return
    made.put("validation.sample_every", made.whole("validation_step_interval", 100), "validation_step_interval")
    made.put(
        "validation.negative_prompt",
        made.text("validation_negative_prompt", "blurry, cropped, ugly"),
        "validation_negative_prompt",
    )
    made.put(
        "validation.sample_steps", made.whole("validation_num_inference_steps", 30), "validation_num_inference_steps"
    )
    made.put(
        "validation.seed",
        made.whole("validation_seed", made.whole("seed", 0)),
        "validation_seed",
    )
    made.put("validation.same_seed", True, why="every prompt has validation_seed there")
    word = made.text("validation_noise_scheduler")
    if word in SAMPLERS:
        made.put("validation.sampler", SAMPLERS[word], "validation_noise_scheduler")
    made.say("nearly", "validation_noise_scheduler", note=f"there is no {word} here; euler is taken")
    sizes = str(made.get("validation_resolution", 1024)).split(",")
    sides = [_sides(size) for size in sizes]
    if len(sides) > 1:
        made.put("validation.sizes", ", ".join(f"{width}x{height}" for width, height in sides), "validation_resolution")
    else:
        for ours, side in zip(("validation.width", "validation.height"), sides[0], strict=True):
            made.put(ours, side, "validation_resolution")
    if family == "flux":
        made.put("validation.guidance_scale", made.number("validation_guidance_real", 1.0), "validation_guidance_real")
        if made.settings.get("model.variant") not in ("schnell", "libreflux"):
            guidance = made.number("validation_guidance", 7.5)
            made.put("validation.model_guidance", guidance, "validation_guidance")
        made.say("needless", "validation_guidance", note="this model is fed no guidance value")
    else:
        made.put("validation.guidance_scale", made.number("validation_guidance", 7.5), "validation_guidance")
    _clip_score(made, around)


def _sides(text: str) -> tuple[int, int]:
    """A size in pixels; a decimal number is millions of them."""
    if "." in text and "x" not in text:
        side = round((float(text) * 1e6) ** 0.5 / 16) * 16
        return side, side
    return values.sides("validation_resolution", text.strip())
