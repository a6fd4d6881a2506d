"""ai-toolkit: a YAML or JSON file with one training process."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...choices import ADAPTERS, LR_SCHEDULES
from ...data.sets.checks import Surroundings
from ...errors import ConfigError
from ...types import Record
from .. import values
from ..finish import run_name
from ..models import UNETS, is_flow, put_adapter, put_base, put_family
from ..optimizers import put_arguments, put_optimizer, usual_decay
from ..translation import DatasetTable, Translation
from .noise import objective, samples

TRAINERS = ("sd_trainer", "diffusion_trainer", "ui_trainer")
FLAGS = {"is_flux": "flux", "is_xl": "sdxl", "is_v3": "sd3", "is_v2": "sd2", "is_lumina2": "lumina2"}
QUANTIZED = {
    "qfloat8": "float8",
    "float8": "float8",
    "qint8": "int8",
    "int8": "int8",
    "qint4": "int4",
    "uint4": "int4",
    "int4": "int4",
}
OF_DATASETS: dict[str, str] = {
    "folder_path": "folder", "dataset_path": "folder", "default_caption": "caption", "trigger_word": "trigger",
    "caption_dropout_rate": "caption_dropout", "token_dropout_rate": "tag_dropout", "shuffle_tokens": "shuffle_tags",
    "keep_tokens": "keep_tokens", "bucket_tolerance": "bucket_step", "num_repeats": "repeats", "flip_x": "flip",
    "loss_multiplier": "weight", "mask_path": "masks", "control_path": "references",
}  # fmt: skip
"""{option of a dataset: ours}, where the value stays as it is."""
PER_STEP = {
    "train.steps": "training.steps",
    "save.save_every": "training.save_every",
    "sample.sample_every": "validation.sample_every",
}


def is_config(data: Any) -> bool:
    """Whether a file holds a job of ai-toolkit."""
    return (
        isinstance(data, Mapping)
        and "job" in data
        and isinstance(data.get("config"), Mapping)
        and "process" in data["config"]
    )


def translate(data: Mapping[str, Any], around: Surroundings) -> Translation:
    """The first training process of a job. Raises ConfigError if it has none."""
    config = data["config"]
    processes = config["process"] if isinstance(config["process"], list) else [config["process"]]
    training = [one for one in processes if isinstance(one, Mapping) and one.get("type") in TRAINERS]
    if str(data["job"]) not in ("extension", "train") or not training:
        raise ConfigError(f"job = {data['job']!r}: it trains no LoRA, so there is nothing to import")
    name = str(config.get("name", ""))
    process = _named(training[0], name)
    made = Translation("ai_toolkit", ("job",), {"job": data["job"], "config.name": name, **_flat(process)})
    made.say("exact", "job", "process.type", note="it trains")
    made.put("name", run_name(name), "config.name")
    if len(processes) > 1:
        made.notes.append(f"{len(processes) - 1} more processes of the file are left out: import them one by one")
    family = _model(made)
    if made.has("model.assistant_lora_path"):
        put_adapter(made, made.text("model.assistant_lora_path"), 1.0, "training", "model.assistant_lora_path")
    _network(made, family)
    _datasets(made, process, around)
    _training(made, family)
    _optimizer(made)
    samples(made, process)
    return made


def _named(process: Any, name: str) -> Any:
    """The process with [name] filled in everywhere."""
    if isinstance(process, Mapping):
        return {key: _named(value, name) for key, value in process.items()}
    if isinstance(process, list):
        return [_named(value, name) for value in process]
    return process.replace("[name]", name) if isinstance(process, str) else process


def _flat(process: Mapping[str, Any]) -> Record:
    """Options by dotted names, but for lists of tables."""
    found: Record = {}
    for name, value in process.items():
        if name == "datasets":
            continue
        if isinstance(value, Mapping):
            for inner, of in value.items():
                deep = isinstance(of, Mapping) and inner in ("ema_config", "network_kwargs")
                found |= (
                    {f"{name}.{inner}.{last}": one for last, one in of.items()} if deep else {f"{name}.{inner}": of}
                )
        else:
            found[f"process.{name}"] = value
    return found


def _model(made: Translation) -> str:
    flag = next((name for name in FLAGS if made.on(f"model.{name}")), "")
    word = made.text("model.arch") or FLAGS.get(flag, "")
    family = put_family(made, "model.arch" if made.has("model.arch") else f"model.{flag}", word) if word else ""
    made.say("needless", *(f"model.{name}" for name in FLAGS), note="the family is known")
    if made.on("model.is_v_pred"):
        made.put("model.variant", {"sdxl": "sdxl-v"}.get(family, "sd2-v"), "model.is_v_pred")
    base = made.text("model.name_or_path")
    if made.has("model.unet_path"):
        put_base(made, "model.base", made.text("model.unet_path"), "model.unet_path")
        put_base(made, "model.encoders", base, "model.name_or_path")
    elif base:
        put_base(made, "model.base", base, "model.name_or_path")
    if made.on("model.quantize"):
        word = made.text("model.qtype", "qfloat8").partition("|")[0]
        nearly = "" if word in QUANTIZED else f"there is no {word} here"
        made.put("model.quantize", QUANTIZED.get(word, "float8"), "model.quantize", "model.qtype", nearly=nearly)
    else:
        made.say("exact", "model.quantize", ours="model.quantize")
        made.say("needless", "model.qtype", note="model.quantize is off")
    if made.has("model.dtype"):
        made.put("model.dtype", values.dtype("model.dtype", made.get("model.dtype")), "model.dtype")
    _encoders(made, family)
    return family


def _encoders(made: Translation, family: str) -> None:
    """Text encoders in fewer bits, which follow the network's quantizing there, and what is merged into the base model."""
    names = ("model.quantize_te", "model.qtype_te", "model.text_encoder_bits")
    bits = made.whole("model.text_encoder_bits", 16)
    if family in UNETS:
        made.say("needless", *names, note="CLIP is small, and not quantized here")
    elif made.on("model.quantize_te", made.on("model.quantize")):
        word = made.text("model.qtype_te", "qfloat8")
        nearly = "" if word in QUANTIZED else f"there is no {word} here"
        why = "" if made.has("model.quantize_te") else "model.quantize"
        made.put("text.quantize", QUANTIZED.get(word, "float8"), *names, nearly=nearly, why=why)
    elif bits in (4, 8):
        made.put("text.quantize", f"int{bits}", *names)
    made.say("needless", *names, note="they are not quantized")
    if made.has("model.vae_path"):
        put_base(made, "model.vae", made.text("model.vae_path"), "model.vae_path")
    if made.has("model.lora_path"):
        put_adapter(made, made.text("model.lora_path"), 1.0, "always", "model.lora_path")


def _network(made: Translation, family: str) -> None:
    word = made.text("network.type", "lora").lower()
    kind = {"lierla": "lora", "locon": "lora"}.get(word, word)
    nearly = "" if kind in ADAPTERS else f"there is no {word} here; lora takes its place"
    made.put("network.kind", kind if kind in ADAPTERS else "lora", "network.type", nearly=nearly)
    rank = made.whole("network.rank", made.whole("network.linear", 4))
    alpha = made.number("network.linear_alpha", made.number("network.alpha", 1.0))
    if kind == "lokr" and made.on("network.lokr_full_rank", True):
        made.put("network.lokr_full_matrix", True, "network.lokr_full_rank")
        given = ("network.rank", "network.linear", "network.linear_alpha", "network.alpha")
        made.say("needless", *given, note="whole matrices have no rank and no alpha")
    else:
        made.put("network.rank", rank, "network.rank", "network.linear")
        made.put("network.alpha", alpha, "network.linear_alpha", "network.alpha")
    if kind == "lokr":
        made.put("network.lokr_factor", made.whole("network.lokr_factor", -1), "network.lokr_factor")
    targets = [(f"{place}.{name}", ours) for place in ("network.network_kwargs", "model") for name, ours in
               (("only_if_contains", "network.target_modules"), ("ignore_if_contains", "network.exclude_modules"))]  # fmt: skip
    for name, ours in targets:
        if made.has(name):
            given = made.get(name)
            pattern = "|".join(re.escape(str(one)) for one in (given if isinstance(given, list) else [given]))
            made.put(ours, f"regex:{pattern}" if ours == "network.target_modules" else pattern, name)
    if "network.target_modules" in made.settings:
        return
    if is_flow(family, made.text("model.arch")):
        made.put("network.target_modules", "default", why="every Linear of the blocks there")
    elif family in UNETS and made.whole("network.conv", 0):
        made.put("network.target_modules", "conv", why="network.conv")
        made.put("network.conv_rank", made.whole("network.conv"), "network.conv")
        made.put(
            "network.conv_alpha", made.number("network.conv_alpha", made.number("network.conv")), "network.conv_alpha"
        )


def _datasets(made: Translation, process: Mapping[str, Any], around: Surroundings) -> None:
    regularisation = made.number("train.reg_weight", 1.0)
    for number, given in enumerate(process.get("datasets") or [], 1):
        inner = Translation("ai_toolkit", ("job",), {f"datasets.{name}": value for name, value in given.items()})
        _dataset(inner, regularisation)
        trigger = inner.text("datasets.trigger_word") or made.text("process.trigger_word")
        if trigger:
            nearly = "it is put in front of every caption here; there it replaces [trigger], or is put in front where it is missing"
            inner.put("dataset.trigger", trigger, "datasets.trigger_word", nearly=nearly)
            made.say("nearly", "process.trigger_word", note=nearly, ours="dataset.trigger")
        if made.on("train.diff_output_preservation") and not inner.on("datasets.is_reg"):
            _preservation(made, inner)
        inner.rest()
        table = DatasetTable(options={"folder": "", "recursive": True, **inner.for_datasets})
        table.comments = {name: inner.comments.get(f"dataset.{name}", "") for name in table.options}
        place = str(table.options["folder"])
        found = around.find(place) if place else None
        if found is not None and not Path(place).exists():
            table.options["folder"] = str(found)
        made.inner += [*inner.taken.values()] if number == 1 else []
        made.notes += [
            f"dataset {number}: {one.text()}"
            for one in inner.taken.values()
            if number > 1 and one.became in ("nearly", "none")
        ]
        made.datasets.append(table)
    made.say("exact", "train.reg_weight", note="the weight of regularisation sets", ours="dataset.weight")


def _preservation(made: Translation, inner: Translation) -> None:
    """The base's prediction is kept for the captions of a set with the class in place of the trigger."""
    inner.put("dataset.teacher", "base", why="train.diff_output_preservation")
    inner.put("dataset.class_prompt", made.text("train.diff_output_preservation_class"), why="the class there")
    inner.put("dataset.teacher_weight", made.number("train.diff_output_preservation_multiplier", 1.0), why="its weight")
    made.say("exact", "train.diff_output_preservation", ours="dataset.teacher")
    made.say("exact", "train.diff_output_preservation_class", ours="dataset.class_prompt")
    made.say("exact", "train.diff_output_preservation_multiplier", ours="dataset.teacher_weight")


def _dataset(inner: Translation, regularisation: float) -> None:
    extension = inner.text("datasets.caption_ext", ".txt").lstrip(".")
    inner.put("dataset.captions", "json" if extension == "json" else "sidecar", "datasets.caption_ext")
    if extension not in ("json", "txt", "caption"):
        inner.put("dataset.caption_extension", f".{extension}", "datasets.caption_ext")
    sizes = inner.get("datasets.resolution", 512)
    inner.put(
        "dataset.resolutions",
        [values.whole("resolution", one) for one in (sizes if isinstance(sizes, list) else [sizes])],
        "datasets.resolution",
    )
    for theirs, ours in OF_DATASETS.items():
        name = f"datasets.{theirs}"
        if inner.has(name) and theirs != "trigger_word":
            value = inner.get(name)
            inner.put(f"dataset.{ours}", value, name, nearly="sub-folders too" if theirs == "dataset_path" else "")
    more = [
        inner.text(f"datasets.control_path_{one}") for one in (1, 2, 3) if inner.has(f"datasets.control_path_{one}")
    ]
    if more:
        inner.put("dataset.references", more, *(f"datasets.control_path_{one}" for one in (1, 2, 3)))
    square = inner.on("datasets.square_crop") or not inner.on("datasets.buckets", True)
    inner.put("dataset.buckets", "off" if square else "pixel_area", "datasets.buckets", "datasets.square_crop")
    if inner.on("datasets.is_reg") or inner.on("datasets.prior_reg"):
        inner.put("dataset.role", "regularisation", "datasets.is_reg", nearly="alternates with training batches there")
        if regularisation != 1.0:
            inner.put("dataset.weight", regularisation, why="train.reg_weight")
    if inner.on("datasets.prior_reg"):
        inner.put("dataset.teacher", "base", "datasets.prior_reg")
    inner.say("exact", "datasets.is_reg", "datasets.prior_reg", ours="dataset.role")


def _training(made: Translation, family: str) -> None:
    passes = made.whole("train.gradient_accumulation_steps", 1)
    updates = made.whole("train.gradient_accumulation", 1)
    made.put(
        "training.gradient_accumulation_steps",
        max(passes, updates, 1),
        "train.gradient_accumulation_steps",
        "train.gradient_accumulation",
    )
    for name, ours in PER_STEP.items():
        default = {"train.steps": 1000, "save.save_every": 1000, "sample.sample_every": 100}[name]
        made.put(ours, max(1, made.whole(name, default) // max(1, passes)), name)
    if passes > 1:
        made.notes.append(
            f"training.steps: every pass counts as a step there; {passes} of them are one here, so steps and intervals are divided by it"
        )
    made.put("training.batch_size", made.whole("train.batch_size", 1), "train.batch_size")
    nearly = "LoRA files of deleted checkpoints stay here; training.keep_loras limits them"
    made.put(
        "training.keep_checkpoints",
        made.whole("save.max_step_saves_to_keep", 5),
        "save.max_step_saves_to_keep",
        nearly=nearly,
    )
    made.put("training.precision", values.dtype("train.dtype", made.get("train.dtype", "fp32")), "train.dtype")
    made.put("output.dtype", values.dtype("save.dtype", made.get("save.dtype", "float16")), "save.dtype")
    if made.text("save.save_format", "safetensors") == "diffusers":
        made.put("output.format", "diffusers", "save.save_format")
    made.say("exact", "save.save_format", ours="output.format")
    ema = made.on("train.ema_config.use_ema")
    if ema:
        made.put(
            "training.ema_decay",
            made.number("train.ema_config.ema_decay", 0.999),
            "train.ema_config.ema_decay",
            "train.ema_config.use_ema",
        )
    made.say(
        "exact" if ema else "needless",
        "train.ema_config.use_ema",
        "train.ema_config.ema_decay",
        note="" if ema else "EMA is off",
    )
    if made.on("logging.use_wandb"):
        made.put("output.report_to", "wandb", "logging.use_wandb")
        for name in ("project", "run"):
            if made.has(f"logging.{name}_name"):
                made.put(f"output.tracker_{name}", made.text(f"logging.{name}_name"), f"logging.{name}_name")
    made.say("exact", "logging.use_wandb", ours="output.report_to")
    made.say("needless", "logging.project_name", "logging.run_name", note="wandb is off")
    _hub(made)
    objective(made, is_flow(family, made.text("model.arch")))
    if made.on("train.disable_sampling"):
        made.say("exact", "train.disable_sampling", ours="validation.prompts")
    if not made.on("train.train_unet", True):
        raise ConfigError("train.train_unet = False: only the network can be trained; set it to true")
    made.say("exact", "train.train_unet", note="it is trained")


def _hub(made: Translation) -> None:
    """Set what is pushed to the hub."""
    if made.on("save.push_to_hub"):
        made.put("output.hub_repo", made.text("save.hf_repo_id"), "save.push_to_hub", "save.hf_repo_id")
        made.put("output.hub_private", made.on("save.hf_private"), "save.hf_private")
    made.say("needless", "save.push_to_hub", "save.hf_repo_id", "save.hf_private", note="nothing is pushed")


def _optimizer(made: Translation) -> None:
    ours = put_optimizer(made, "train.optimizer", made.text("train.optimizer", "adamw"))
    rate_name = "train.unet_lr" if made.has("train.unet_lr") else "train.lr"
    rate = made.number(rate_name, 1e-6)
    raised = ours == "prodigy" and rate < 0.1
    made.put(
        "optimizer.learning_rate",
        1.0 if raised else rate,
        rate_name,
        nearly="below 0.1 it becomes 1.0 there" if raised else "",
    )
    made.say("needless", "train.lr", note="train.unet_lr decides")
    if made.on("train.train_text_encoder"):
        made.put(
            "text.learning_rate",
            made.number("train.text_encoder_lr", rate),
            "train.train_text_encoder",
            "train.text_encoder_lr",
        )
    made.say("exact", "train.train_text_encoder", ours="text.learning_rate")
    arguments = values.pairs("optimizer_params", made.get("train.optimizer_params"))
    if ours.startswith("adam"):
        arguments = {"eps": 1e-6, **arguments}
    put_arguments(made, arguments, "train.optimizer_params", decay=usual_decay(ours))
    word = made.text("train.lr_scheduler", "constant")
    kind = {"constant_with_warmup": "constant", "cosine_with_restarts": "restarts"}.get(word, word)
    nearly = "" if kind in LR_SCHEDULES else f"there is no {word} here"
    if word == "linear":
        nearly, kind = "it rises from a third to the whole rate there", "constant"
    made.put("schedule.kind", kind if kind in LR_SCHEDULES else "constant", "train.lr_scheduler", nearly=nearly)
    params = values.pairs("lr_scheduler_params", made.get("train.lr_scheduler_params"))
    if word == "constant_with_warmup":
        made.put("schedule.warmup", float(params.get("num_warmup_steps", 1000)), "train.lr_scheduler_params")
    if "eta_min" in params and kind in ("cosine", "restarts"):
        made.put("schedule.min_lr_ratio", float(params["eta_min"]) / rate, "train.lr_scheduler_params")
    made.say(
        "none" if params else "needless", "train.lr_scheduler_params", note="this schedule has no such options here"
    )
