"""OneTrainer: the JSON of a run, of today and of earlier versions."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...choices import ADAPTERS
from ...config.network import WHOLE
from ...data.sets.checks import Surroundings
from ...errors import ConfigError
from ...types import Record
from .. import values
from ..finish import run_name
from ..models import UNETS, put_base, put_family
from ..optimizers import put_arguments, put_optimizer, usual_decay
from ..translation import Translation
from .concepts import concepts
from .noise import noise, samples

PARTS = ("unet", "transformer", "prior", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4", "vae")


NETWORKS = ("unet", "transformer", "prior")


ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")


FORMATS = {
    "COMFY_LORA": "native",
    "ORIGINAL_LORA": "native",
    "DIFFUSERS_LORA": "diffusers",
    "KOHYA_LORA": "kohya",
    "SAFETENSORS": "kohya",
}


TARGETS = {"attn-only": "attention", "attn-mlp": "attention+mlp", "full": "all", "blocks": "default"}


PACKED = {
    "FLOAT_8": ("quantize", "float8"),
    "INT_8": ("quantize", "int8"),
    "NFLOAT_4": ("quantize", "nf4"),
    "FLOAT_W8A8": ("matmul", "fp8"),  # inputs are rounded too
    "INT_W8A8": ("matmul", "int8"),
}
"""{dtype of the weights: (option of the table model, value)}."""


SCHEDULES = {
    "CONSTANT": "constant",
    "LINEAR": "linear",
    "COSINE": "cosine",
    "COSINE_WITH_HARD_RESTARTS": "restarts",
    "REX": "rex",
}


FORMER = {
    "lora_layers": "layer_filter",
    "lora_layer_preset": "layer_filter_preset",
    "unet_learning_rate": "unet.learning_rate",
    "text_encoder_learning_rate": "text_encoder.learning_rate",
    "train_text_encoder": "text_encoder.train",
    "train_text_encoder_2": "text_encoder_2.train",
    "train_unet": "unet.train",
    "ema_update_step": "ema_update_step_interval",
}
"""{key of an earlier version: today's}."""


ARGUMENTS = (
    "relative_step", "scale_parameter", "warmup_init", "clip_threshold", "decay_rate", "d_coef", "d0", "growth_rate", "decouple",
    "use_bias_correction", "safeguard_warmup", "slice_p", "amsgrad", "momentum", "nesterov", "beta3", "ns_steps",
)  # fmt: skip
"""Options of the optimizer that have the same names in its class."""
OF_PRODIGY_PLUS = (
    "use_stableadamw", "use_cautious", "use_grams", "use_adopt", "use_schedulefree", "use_speed", "split_groups", "prodigy_steps",
    "d_limiter", "factored",
)  # fmt: skip
"""The same of prodigy-plus-schedule-free alone."""


def is_config(data: Any) -> bool:
    """Whether a file holds a run of OneTrainer."""
    return isinstance(data, Mapping) and "training_method" in data and str(data.get("model_type", "")).isupper()


def translate(data: Mapping[str, Any], around: Surroundings) -> Translation:
    """A run. Raises ConfigError for what trains no LoRA."""
    options = _flat(_today(data))
    made = Translation("onetrainer", ("config",), options)
    for name in options:  # a part's option has one row for all parts
        part, _, inner = name.partition(".")
        if part in PARTS and f"part.{inner}" in made.rows:
            made.rows[name] = made.rows[f"part.{inner}"]
    method = made.text("training_method", "FINE_TUNE")
    if method not in ("LORA", "FINE_TUNE"):
        raise ConfigError(f"training_method = {method!r}: LoRAs and whole models can be trained here")
    family = put_family(made, "model_type", made.text("model_type"))
    _model(made)
    _network(made)
    concepts(made, around)
    _training(made)
    _optimizer(made, family)
    noise(made, family)
    samples(made, around)
    return made


def _today(data: Mapping[str, Any]) -> Record:
    """The options under their names of today."""
    options: Record = {}
    inner: Record = {}
    for name, value in data.items():
        if name == "min_snr_gamma":
            options |= {"loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": value} if value else {}
        elif name.startswith("optimizer_") and name != "optimizer_defaults":
            inner[name.removeprefix("optimizer_")] = value
        else:
            options[FORMER.get(name, name)] = value
    given = options.get("optimizer")
    if inner or isinstance(given, str):
        options["optimizer"] = {"optimizer": given, **inner} if isinstance(given, str) else {**(given or {}), **inner}
    return options


def _flat(data: Mapping[str, Any]) -> Record:
    """Options of parts and of the optimizer by dotted names, without those that are null."""
    found: Record = {}
    for name, value in data.items():
        if isinstance(value, Mapping) and name in (*PARTS, "optimizer", "quantization"):
            found |= {f"{name}.{inner}": of for inner, of in value.items() if of is not None and inner != "__version"}
        elif value is not None:
            found[name] = value
    return found


def _model(made: Translation) -> None:
    network = next((part for part in NETWORKS if made.text(f"{part}.model_name")), "")
    base = made.text("base_model_name")
    if network:
        put_base(made, "model.base", made.text(f"{network}.model_name"), f"{network}.model_name")
        put_base(made, "model.encoders", base, "base_model_name")
    elif base:
        put_base(made, "model.base", base, "base_model_name")
    destination = made.text("output_model_destination").replace("\\", "/")
    made.put("name", run_name(Path(destination).stem if destination else "", made.text("save_filename_prefix"), Path(made.text("workspace_dir")).name),
             "output_model_destination")  # fmt: skip
    if "/" in destination:
        made.put("output.loras", destination.rpartition("/")[0], "output_model_destination")
    workspace = made.text("workspace_dir").replace("\\", "/").rstrip("/")
    if workspace:
        made.put("output.directory", workspace.rpartition("/")[0] or "output", "workspace_dir")
    for part in NETWORKS:
        word = made.text(f"{part}.weight_dtype")
        if word in PACKED:
            option, value = PACKED[word]
            made.put(f"model.{option}", value, f"{part}.weight_dtype")
        elif word in ("FLOAT_32", "FLOAT_16", "BFLOAT_16"):
            made.put("model.dtype", values.dtype("weight_dtype", word), f"{part}.weight_dtype")
        if made.has(f"{part}.gradient_checkpointing"):
            made.put(
                "memory.gradient_checkpointing",
                made.on(f"{part}.gradient_checkpointing"),
                f"{part}.gradient_checkpointing",
            )
    if "gradient_checkpointing" in made.options:
        made.put(
            "memory.gradient_checkpointing", made.text("gradient_checkpointing") != "OFF", "gradient_checkpointing"
        )
        if made.text("gradient_checkpointing") == "CPU_OFFLOADED":
            made.put(
                "memory.checkpoint_offload", True, "gradient_checkpointing", nearly="inputs from 1 MiB on wait in RAM"
            )
    _encoders(made)
    if made.on("force_v_prediction"):
        made.put("model.variant", "sdxl-v" if "XL" in made.text("model_type") else "sd1-v", "force_v_prediction")
    made.say("exact", "force_v_prediction", "force_epsilon_prediction", ours="model.variant")


def _encoders(made: Translation) -> None:
    """dtypes of the text encoders, which have one here, and of the VAE."""
    names = [f"{part}.weight_dtype" for part in ENCODERS]
    words = {name: made.text(name) for name in names if made.has(name)}
    packed = [PACKED[word][1] for word in words.values() if word in PACKED]
    packed = ["float8" if one == "fp8" else one for one in packed]
    is_clip = str(made.settings.get("model.family")) in UNETS
    if packed and not is_clip:
        first = next(name for name, word in words.items() if word in PACKED)
        nearly = "one for all here, but CLIP's, which stay as they are" if len(words) > 1 else ""
        made.put("text.quantize", packed[0], first, nearly=nearly)
    made.say(
        "needless",
        *(name for name, word in words.items() if word in PACKED),
        note="text.quantize is one for all, and not of CLIP",
    )
    plain = [
        values.dtype("weight_dtype", word) for word in words.values() if word in ("FLOAT_32", "FLOAT_16", "BFLOAT_16")
    ]
    if plain and not packed:
        nearly = "" if len(set(plain)) == 1 else "one dtype for all here"
        made.put("text.dtype", plain[0], *words, nearly=nearly)
    made.say("needless", *words, note="the quantized encoders compute in text.dtype")
    made.say("needless", "vae.weight_dtype", note="the VAE computes in float32")
    decided = {"model.dtype", "model.quantize", "model.matmul"} & set(made.settings)
    if made.has("weight_dtype") and not decided and made.text("weight_dtype") not in PACKED:
        made.put("model.dtype", values.dtype("weight_dtype", made.get("weight_dtype")), "weight_dtype")
    made.say("needless", "weight_dtype", note="each part has its own")


def _network(made: Translation) -> None:
    if made.text("training_method", "FINE_TUNE") == "FINE_TUNE":
        made.put("network.kind", "full", "training_method")
    word = made.text("peft_type", "LORA").lower()
    kind = "dora" if word == "lora" and made.on("lora_decompose") else word
    nearly = "" if kind in ADAPTERS else f"there is no {word} here; lora takes its place"
    if made.settings.get("network.kind") != WHOLE:
        names = ("training_method", "peft_type", "lora_decompose")
        made.put("network.kind", kind if kind in ADAPTERS else "lora", *names, nearly=nearly)
    own = "lokr_dim" if kind == "lokr" else "lora_rank"
    made.put("network.rank", made.whole(own, 16), own)
    made.put("network.alpha", made.number("lora_alpha", 1.0), "lora_alpha")
    if kind == "lokr":
        made.put("network.lokr_factor", made.whole("lokr_decompose_factor", -1), "lokr_decompose_factor")
        for name in ("lokr_full_matrix", "lokr_decompose_both"):
            if made.on(name):
                made.put(f"network.{name}", True, name)
    else:
        made.say(
            "needless", *(name for name in made.options if name.startswith("lokr_")), note="the network is no LoKr"
        )
    made.say("needless", *(name for name in made.options if name.startswith("oft_")), note="the network is no OFT")
    preset = made.text("layer_filter_preset", "full")
    given = [one.strip() for one in made.text("layer_filter").split(",") if one.strip()]
    family = str(made.settings.get("model.family"))
    if preset in TARGETS and not (preset == "full" and given):
        ours = "transformer" if preset == "attn-mlp" and family in UNETS else TARGETS[preset]
        wider = preset == "attn-mlp" and family in ("flux", "chroma", "flux2")
        nearly = "the output of single blocks is trained too" if wider else ""
        made.put("network.target_modules", ours, "layer_filter_preset", nearly=nearly)
        made.say("needless", "layer_filter", "layer_filter_regex", note="layer_filter_preset decides")
    elif given:
        pattern = (
            made.text("layer_filter") if made.on("layer_filter_regex") else "|".join(re.escape(one) for one in given)
        )
        made.put(
            "network.target_modules", f"regex:{pattern}", "layer_filter", "layer_filter_preset", "layer_filter_regex"
        )
    layout = FORMATS.get(made.text("output_model_format", "SAFETENSORS"), "native")
    made.put(
        "output.format",
        layout if ADAPTERS[made.settings["network.kind"]].all_layouts else "native",
        "output_model_format",
    )
    made.put("output.dtype", values.dtype("output_dtype", made.get("output_dtype", "FLOAT_32")), "output_dtype")


def _training(made: Translation) -> None:
    made.put("training.batch_size", made.whole("batch_size", 1), "batch_size")
    made.put(
        "training.gradient_accumulation_steps",
        made.whole("gradient_accumulation_steps", 1),
        "gradient_accumulation_steps",
    )
    made.put("training.epochs", made.number("epochs", 100), "epochs")
    made.put("training.precision", values.dtype("train_dtype", made.get("train_dtype", "FLOAT_16")), "train_dtype")
    if made.text("ema", "OFF") != "OFF":
        every = max(1, made.whole("ema_update_step_interval", 5))
        made.put(
            "training.ema_decay",
            made.number("ema_decay", 0.999) ** (1 / every),
            "ema_decay",
            "ema",
            "ema_update_step_interval",
        )
    made.say("exact", "ema", ours="training.ema_decay")
    made.say("needless", "ema_decay", "ema_update_step_interval", note="EMA is off")
    for name in ("backup_after", "save_every"):
        unit, count = made.text(f"{name}_unit", "NEVER"), made.whole(name)
        if unit == "STEP" and count:
            made.put("training.save_every", count, name, f"{name}_unit")
        elif unit == "EPOCH" and count:
            made.put("training.save_every_epochs", count, name, f"{name}_unit")
        note = "saving goes by steps here" if unit not in ("STEP", "EPOCH", "NEVER") else ""
        made.say("nearly" if note else "exact", name, f"{name}_unit", note=note)
    if made.on("rolling_backup"):
        made.put(
            "training.keep_checkpoints", made.whole("rolling_backup_count", 3), "rolling_backup_count", "rolling_backup"
        )
    made.say("exact", "rolling_backup", ours="training.keep_checkpoints")
    made.say("needless", "rolling_backup_count", note="rolling_backup is off")
    skip = made.whole("text_encoder_2_layer_skip" if "XL" in made.text("model_type") else "text_encoder_layer_skip")
    if skip:
        made.put("text.clip_skip", skip, "text_encoder_layer_skip", "text_encoder_2_layer_skip")
    made.say("exact", "text_encoder_layer_skip", "text_encoder_2_layer_skip", ours="text.clip_skip")
    made.put("output.report_to", "tensorboard" if made.on("tensorboard", True) else "none", "tensorboard")


def _optimizer(made: Translation, family: str) -> None:
    ours = put_optimizer(made, "optimizer.optimizer", made.text("optimizer.optimizer", "ADAMW"))
    network = next((part for part in NETWORKS if made.has(f"{part}.learning_rate")), "")
    rate_name = f"{network}.learning_rate" if network else "learning_rate"
    rate = made.number(rate_name, 3e-6)
    scaler = made.text("learning_rate_scaler", "NONE")
    scale = (made.whole("batch_size", 1) if scaler in ("BATCH", "BOTH") else 1) * (
        made.whole("gradient_accumulation_steps", 1) if scaler in ("GRADIENT_ACCUMULATION", "BOTH") else 1
    )
    made.put("optimizer.learning_rate", rate * scale, rate_name, "learning_rate_scaler")
    made.say("needless", "learning_rate", note=f"{rate_name} decides")
    made.say("needless", "loss_scaler", note="it has no effect with these optimizers")
    trained = [
        part
        for part in ENCODERS
        if made.on(f"{part}.train", default=part == "text_encoder" and f"{part}.train" not in made.options)
    ]
    if family in ("sd", "sdxl"):
        usual = made.number("learning_rate", 3e-6)
        first, second = (
            made.number(f"{part}.learning_rate", usual) if part in trained else 0.0 for part in ENCODERS[:2]
        )
        options = [f"{part}.{name}" for part in ENCODERS for name in ("train", "learning_rate")]
        made.put("text.learning_rate", first, *options)
        if family == "sdxl" and second != first:
            made.put("text.learning_rate_2", second, *options)
    made.say("exact", *(f"{part}.train" for part in NETWORKS), note="it is trained")
    note = "only the network is trained here"
    made.say("none" if trained else "exact", *(f"{part}.train" for part in ENCODERS), note=note if trained else "")
    own = (*ARGUMENTS, *(OF_PRODIGY_PLUS if ours == "prodigy_plus_schedule_free" else ()))
    arguments = {name: made.get(f"optimizer.{name}") for name in own if made.has(f"optimizer.{name}")}
    if made.has("optimizer.beta1") and made.has("optimizer.beta2"):
        arguments["betas"] = [made.number("optimizer.beta1"), made.number("optimizer.beta2")]
    if made.has("optimizer.eps"):
        arguments["eps"] = (
            [made.number("optimizer.eps"), made.number("optimizer.eps2")]
            if made.has("optimizer.eps2")
            else made.number("optimizer.eps")
        )
    decay = made.number("optimizer.weight_decay") if made.has("optimizer.weight_decay") else usual_decay(ours)
    names = (
        *(f"optimizer.{name}" for name in own),
        *(f"optimizer.{name}" for name in ("beta1", "beta2", "eps", "eps2", "weight_decay")),
    )
    put_arguments(made, arguments, *names, decay=decay)
    word = made.text("learning_rate_scheduler", "CONSTANT")
    kind = SCHEDULES.get(word, "")
    nearly = (
        "" if kind else "a wave without jumps there" if word == "COSINE_WITH_RESTARTS" else f"there is no {word} here"
    )
    made.put(
        "schedule.kind",
        kind or ("restarts" if word == "COSINE_WITH_RESTARTS" else "constant"),
        "learning_rate_scheduler",
        nearly=nearly,
    )
    if made.settings["schedule.kind"] == "restarts":
        made.put("schedule.cycles", max(1, round(made.number("learning_rate_cycles", 1.0))), "learning_rate_cycles")
    warmup = made.number("learning_rate_warmup_steps", 200.0)
    steps = warmup / max(1, made.whole("gradient_accumulation_steps", 1)) if warmup > 1 else warmup
    made.put("schedule.warmup", steps, "learning_rate_warmup_steps")
