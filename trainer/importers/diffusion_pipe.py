"""diffusion-pipe: the TOML of a run and the dataset TOML that it names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..choices import ADAPTERS
from ..config.toml import read_toml
from ..data.sets.checks import Surroundings
from ..types import Record
from . import values
from .finish import run_name
from .models import is_flow, put_base, put_family
from .optimizers import put_arguments, put_optimizer, usual_decay
from .translation import DatasetTable, Translation

BASES = ("transformer_path", "diffusion_model", "checkpoint_path", "ckpt_path", "single_file_path", "diffusers_path")
ENCODERS = ("llm_path", "clip_path", "t5_path", "text_encoder_path", "text_encoders", "text_encoder")
EPOCHS = 100
"""Epochs that its examples have; it has no default."""


def is_run(data: Any) -> bool:
    """Whether a file holds a run of diffusion-pipe."""
    if not isinstance(data, Mapping) or not isinstance(data.get("model"), Mapping) or "type" not in data["model"]:
        return False
    return "adapter" in data or "micro_batch_size_per_gpu" in data or isinstance(data.get("dataset"), str)


def is_datasets(data: Any) -> bool:
    """Whether a file holds datasets of diffusion-pipe."""
    tables = data.get("directory") if isinstance(data, Mapping) else None
    return isinstance(tables, list) and all(isinstance(one, Mapping) and "path" in one for one in tables)


def translate_datasets(data: Mapping[str, Any], around: Surroundings) -> Translation:
    """A dataset TOML alone."""
    made = Translation("diffusion_pipe", ("run",), {})
    _add_sets(made, data, around)
    return made


def translate(data: Mapping[str, Any], around: Surroundings) -> Translation:
    """The TOML of a run. Raises ConfigError for a value that cannot be read."""
    options: Record = {}
    for name, value in data.items():
        options |= (
            {f"{name}.{inner}": of for inner, of in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    made = Translation("diffusion_pipe", ("run",), options)
    _model(made)
    _network(made, isinstance(data.get("adapter"), Mapping))
    _datasets(made, around)
    _training(made)
    _optimizer(made)
    _noise(made)
    return made


def _model(made: Translation) -> None:
    put_family(made, "model.type", made.text("model.type"))
    base = next((name for name in BASES if made.has(f"model.{name}")), "")
    if base:
        put_base(made, "model.base", made.text(f"model.{base}"), f"model.{base}")
    if base != "diffusers_path" and made.has("model.diffusers_path"):
        put_base(made, "model.encoders", made.text("model.diffusers_path"), "model.diffusers_path")
    _encoders(made)
    for name in ("transformer_dtype", "diffusion_model_dtype"):
        if made.text(f"model.{name}").startswith("float8"):
            made.put("model.quantize", "float8", f"model.{name}", nearly="a plain cast there; with scales here")
    if made.has("model.dtype"):
        dtype = values.dtype("model.dtype", made.get("model.dtype"))
        made.put("training.precision", dtype, "model.dtype")
        if "model.quantize" not in made.settings:
            made.put("model.dtype", dtype, "model.dtype")
    if made.on("model.v_pred"):
        made.put("model.variant", "sdxl-v", "model.v_pred")
    given = made.text("output_dir").rstrip("/\\")
    made.put("name", run_name(Path(given).name), "output_dir")
    if given:
        made.put("output.directory", str(Path(given).parent), "output_dir")


def _encoders(made: Translation) -> None:
    """VAE and text encoders."""
    vae = next((name for name in ("vae_path", "vae") if made.has(f"model.{name}")), "")
    if vae:
        put_base(made, "model.vae", made.text(f"model.{vae}"), f"model.{vae}")
    for name, kind in (("text_encoder_fp8", "float8"), ("text_encoder_nf4", "nf4"), ("llama3_4bit", "int4")):
        if made.on(f"model.{name}"):
            made.put("text.quantize", kind, f"model.{name}")
    for name in ENCODERS:
        made.say("none", f"model.{name}", note="name a diffusers folder with text encoders and VAE in model.encoders")


def _network(made: Translation, has_adapter: bool) -> None:
    if not has_adapter:
        made.put("network.kind", "full", why="the file has no adapter")
        made.put("output.dtype", values.dtype("save_dtype", made.get("save_dtype", "bfloat16")), "save_dtype")
        return
    word = made.text("adapter.type", "lora")
    nearly = "" if word in ADAPTERS else f"there is no {word} here; lora takes its place"
    made.put("network.kind", word if word in ADAPTERS else "lora", "adapter.type", nearly=nearly)
    if made.has("adapter.rank"):
        made.put("network.rank", made.whole("adapter.rank"), "adapter.rank")
    made.put("network.target_modules", "all", why="every Linear of the blocks there")
    if made.has("adapter.exclude_modules"):
        given = made.get("adapter.exclude_modules")
        joined = "|".join(f"(^|\\.){one}$" for one in given) if isinstance(given, list) else str(given)
        made.put("network.exclude_modules", joined, "adapter.exclude_modules")
    merged = made.get("adapter.fuse_adapters") or made.get("model.merge_adapters")
    if isinstance(merged, list) and merged:
        tables = [
            {"file": str(one["path"]), "strength": float(one.get("weight", 1.0)), "use": "always"}
            if isinstance(one, Mapping)
            else {"file": str(one), "strength": 1.0, "use": "always"}
            for one in merged
        ]
        made.put("model.base_lora", tables, "adapter.fuse_adapters", "model.merge_adapters")
    if made.has("adapter.init_from_existing"):
        place = f"{made.text('adapter.init_from_existing').rstrip('/')}/adapter_model.safetensors"
        made.put("network.init_from", place, "adapter.init_from_existing")
    made.put(
        "output.dtype",
        values.dtype("save_dtype", made.get("save_dtype", made.get("adapter.dtype", "bfloat16"))),
        "save_dtype",
        "adapter.dtype",
    )


def _datasets(made: Translation, around: Surroundings) -> None:
    if made.number("uncond_fraction"):
        made.put("dataset.caption_dropout", made.number("uncond_fraction"), "uncond_fraction")
    place = made.text("dataset")
    path = around.find(place) if place else None
    if path is None:
        made.say("none", "dataset", note=f"{place} is not there: import from the folder that it is named from")
        made.notes.append(
            f"dataset: {place} is not there; write its folders as [[dataset]] tables, or import again where it is"
        )
    else:
        made.say("exact", "dataset", note=f"read from {path}", ours="dataset")
        _add_sets(made, read_toml(path), around.at(path.parent))


def _add_sets(made: Translation, data: Mapping[str, Any], around: Surroundings) -> None:
    shared = {name: value for name, value in data.items() if name != "directory"}
    for given in data.get("directory", []):
        inner = Translation(
            "diffusion_pipe", ("dataset",), {**shared, **{_named(name): value for name, value in given.items()}}
        )
        _set(inner)
        inner.rest()
        table = DatasetTable(options=inner.for_datasets)
        table.comments = {name: inner.comments.get(f"dataset.{name}", "") for name in table.options}
        for name in ("folder", "masks", "references"):
            place = str(table.options.get(name, ""))
            found = around.find(place) if place else None
            if found is not None and not Path(place).exists():
                table.options[name] = str(found)
        made.inner += inner.taken.values() if not made.datasets else []
        made.datasets.append(table)
        if "masks" in table.options:
            made.put("objective.masked_loss", "plain", why="masks are not normalised there")
    made.notes.append(
        "dataset: images without a caption are left out there; here they stop the run, and data.strict names them"
    )


def _named(name: str) -> str:
    return f"directory.{name}" if name in ("path", "mask_path", "control_path") else name


def _set(inner: Translation) -> None:
    inner.put("dataset.folder", inner.text("directory.path"), "directory.path")
    inner.put("dataset.captions", "sidecar", why="text files beside the images")
    sizes = inner.get("resolutions") or [512]
    squares = [values.sides("resolutions", one) for one in sizes]
    uneven = any(width != height for width, height in squares)
    inner.put(
        "dataset.resolutions",
        [round((w * h) ** 0.5) for w, h in squares],
        "resolutions",
        nearly="their areas are taken" if uneven else "",
    )
    if inner.on("enable_ar_bucket"):
        inner.put("dataset.buckets", "pixel_area", "enable_ar_bucket")
        _aspects(inner)
    else:
        inner.put("dataset.buckets", "off", "enable_ar_bucket")
    shuffled = inner.whole("cache_shuffle_num")
    if shuffled or inner.on("shuffle_tags"):
        inner.put("dataset.shuffle_tags", True, "shuffle_tags", "cache_shuffle_num")
        inner.put("dataset.caption_variants", max(2, shuffled), "cache_shuffle_num")
        if inner.has("cache_shuffle_delimiter"):
            inner.put(
                "dataset.tag_separator",
                str(inner.get("cache_shuffle_delimiter")).strip() or " ",
                "cache_shuffle_delimiter",
            )
    inner.say("exact", "shuffle_tags", "cache_shuffle_num", "cache_shuffle_delimiter", ours="dataset.shuffle_tags")
    repeats = inner.number("num_repeats", 1)
    inner.put(
        "dataset.repeats", max(1, round(repeats)), "num_repeats", nearly="" if repeats == round(repeats) else "rounded"
    )
    if inner.has("caption_prefix"):
        inner.put("dataset.prefix", str(inner.get("caption_prefix")), "caption_prefix")


def _aspects(inner: Translation) -> None:
    given = inner.get("ar_buckets")
    if isinstance(given, list):
        inner.put("dataset.aspects", [one[0] / one[1] if isinstance(one, list) else one for one in given], "ar_buckets")
    elif inner.has("num_ar_buckets"):
        low, high, count = inner.number("min_ar", 0.5), inner.number("max_ar", 2.0), inner.whole("num_ar_buckets")
        series = [low * (high / low) ** (at / max(1, count - 1)) for at in range(count)]
        inner.put("dataset.aspects", [round(one, 6) for one in series], "min_ar", "max_ar", "num_ar_buckets")


def _memory(made: Translation) -> None:
    """Stages of a pipeline over several GPUs, or blocks that are swapped."""
    swapped, stages = made.whole("blocks_to_swap"), made.whole("pipeline_stages", 1)
    if stages > 1 and not swapped:
        made.put("memory.shard", True, "pipeline_stages", nearly="FSDP takes the place of stages")
    made.say("needless", "pipeline_stages", note="one stage" if stages < 2 else "blocks_to_swap streams the base here")
    if swapped:
        nearly = "all blocks that do not fit memory.vram_gb are streamed, with the same result"
        made.put("memory.base", "stream", "blocks_to_swap", nearly=nearly)
    made.say("needless", "blocks_to_swap", note="no block is swapped")


def _training(made: Translation) -> None:
    _memory(made)
    batch = made.get("image_micro_batch_size_per_gpu") or made.get("micro_batch_size_per_gpu", 1)
    smallest = (
        min(int(one[-1]) for one in batch)
        if isinstance(batch, list)
        else values.whole("micro_batch_size_per_gpu", batch)
    )
    nearly = "the smallest of the sizes holds for every resolution" if isinstance(batch, list) else ""
    made.put(
        "training.batch_size", smallest, "image_micro_batch_size_per_gpu", "micro_batch_size_per_gpu", nearly=nearly
    )
    made.put(
        "training.gradient_accumulation_steps",
        made.whole("gradient_accumulation_steps", 1),
        "gradient_accumulation_steps",
    )
    if made.has("max_steps"):
        made.put("training.steps", made.whole("max_steps"), "max_steps")
        made.say("nearly", "epochs", note="max_steps decides here; there, whichever is reached first")
    else:
        made.put("training.epochs", made.number("epochs", EPOCHS), "epochs")
    if made.has("save_every_n_steps"):
        made.put("training.save_every", made.whole("save_every_n_steps"), "save_every_n_steps")
    elif made.has("save_every_n_epochs"):
        made.put("training.save_every_epochs", made.number("save_every_n_epochs"), "save_every_n_epochs")
    made.put(
        "memory.gradient_checkpointing", bool(made.get("activation_checkpointing", False)), "activation_checkpointing"
    )
    if made.text("activation_checkpointing") == "unsloth":
        made.put(
            "memory.checkpoint_offload", True, "activation_checkpointing", nearly="inputs from 1 MiB on wait in RAM"
        )
    if made.on("monitoring.enable_wandb"):
        made.put("output.report_to", "wandb", "monitoring.enable_wandb")
        for name, ours in (("wandb_tracker_name", "tracker_project"), ("wandb_run_name", "tracker_run")):
            if made.has(f"monitoring.{name}"):
                made.put(f"output.{ours}", made.text(f"monitoring.{name}"), f"monitoring.{name}")
    made.say("needless", "monitoring.wandb_tracker_name", "monitoring.wandb_run_name", note="wandb is off")
    made.say("exact", "monitoring.enable_wandb", ours="output.report_to")
    for name, kind in (("huber_delta", "huber"), ("pseudo_huber_c", "huber"), ("smooth_l1_beta", "smooth_l1")):
        if made.has(name):
            made.put("objective.loss", kind, name)
            made.put(
                "objective.huber_delta",
                made.number(name),
                name,
                nearly="a pseudo-Huber loss there" if name == "pseudo_huber_c" else "",
            )


def _optimizer(made: Translation) -> None:
    ours = put_optimizer(made, "optimizer.type", made.text("optimizer.type", "adamw"))
    rate_name = "model.unet_lr" if made.has("model.unet_lr") else "optimizer.lr"
    constant = made.has("force_constant_lr")
    if constant:
        made.put("optimizer.learning_rate", made.number("force_constant_lr"), "force_constant_lr")
        made.say("needless", rate_name, note="force_constant_lr decides")
    elif made.has(rate_name):
        made.put("optimizer.learning_rate", made.number(rate_name), rate_name)
    arguments = {
        name: values.literal(made.get(f"optimizer.{name}"))
        for name in ("betas", "eps")
        if made.has(f"optimizer.{name}")
    }
    decay = made.number("optimizer.weight_decay") if made.has("optimizer.weight_decay") else usual_decay(ours)
    put_arguments(made, arguments, "optimizer.betas", "optimizer.eps", "optimizer.weight_decay", decay=decay)
    made.put("optimizer.max_grad_norm", made.number("gradient_clipping", 1.0), "gradient_clipping")
    word = "constant" if constant else made.text("lr_scheduler", "constant")
    known = word in ("constant", "linear", "cosine")
    nearly = "" if word == "constant" else "its length counts epochs there" if known else f"there is no {word} here"
    made.put("schedule.kind", word if known else "constant", "lr_scheduler", nearly=nearly)
    if word == "cosine" and made.has("optimizer.lr"):
        made.put("schedule.min_lr_ratio", min(1.0, 1e-6 / made.number("optimizer.lr")), why="it ends at 1e-6 there")
    if not constant:
        made.put("schedule.warmup", made.whole("warmup_steps", 0), "warmup_steps")


def _noise(made: Translation) -> None:
    if not is_flow(str(made.settings.get("model.family", "")), made.text("model.type")):
        return
    word = made.text("model.timestep_sample_method", "logit_normal")
    made.put(
        "objective.timestep_sampling",
        word if word in ("logit_normal", "uniform") else "logit_normal",
        "model.timestep_sample_method",
    )
    if word == "logit_normal":
        made.put("objective.logit_std", made.number("model.sigmoid_scale", 1.0), "model.sigmoid_scale")
    by_size = made.on("model.flux_shift") or made.on("model.lumina_shift")
    shift: float | str = made.number("model.shift") if made.has("model.shift") else "resolution" if by_size else 1.0
    made.put("objective.shift", shift, "model.shift", "model.flux_shift", "model.lumina_shift")
