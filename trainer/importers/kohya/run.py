"""kohya's sd-scripts: its command line, the TOML of a run, LoRA_Easy_Training_Scripts' TOML. musubi-tuner builds on it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...choices import ADAPTERS
from ...config.toml import read_toml
from ...data.sets.checks import Surroundings
from ...errors import ConfigError
from ...types import Record
from .. import values
from ..accelerate import split
from ..finish import run_name
from ..models import put_base
from ..optimizers import put_arguments, put_optimizer, usual_decay
from ..table import by_name
from ..translation import Translation
from . import shell
from .datasets import datasets
from .flow import flow, noise
from .network import network
from .outputs import samples, trackers
from .powershell import block_options
from .schedules import put_schedule

LISTS = (
    "network_args",
    "optimizer_args",
    "lr_scheduler_args",
    "base_weights",
    "base_weights_multiplier",
    "text_encoder_lr",
)
"""Options of the command line that take several words."""


SCRIPTS = {"sdxl": "sdxl", "flux": "flux", "sd3": "sd3", "lumina": "lumina"}
"""{beginning of the script's name: part of the table}. train_network.py alone is Stable Diffusion 1 and 2."""


WHOLE_SCRIPTS = ("sdxl_train.py", "flux_train.py", "sd3_train.py", "lumina_train.py", "fine_tune.py", "train_db.py")
"""Scripts that train the whole model."""
FAMILIES = {"sdxl": "sdxl", "flux": "flux", "sd3": "sd3", "lumina": "lumina2", "sd": "sd"}


def command_options(text: str) -> tuple[str, Record]:
    """Returns (script, options) of the command in a text; ("", {}) if it trains nothing."""
    block = block_options(text)
    if block is not None:
        return "train_network.py", block
    script, options = shell.options(shell.command(text), LISTS)
    known = by_name("sd_scripts", ("args",))
    return script, options if script or any(name in known for name in options) else {}


def translate_command(text: str, around: Surroundings) -> Translation:
    """A command line, or a script with one, with the TOML files that it names."""
    script, options = command_options(text)
    config = str(options.get("config_file", ""))
    if config:
        path = around.find(config) or around.find(f"{config}.toml")
        if path is None:
            raise ConfigError(f"config_file = {config!r} is not there: import it from the folder that it is named from")
        options = {**flat(read_toml(path)), **options}
    return translate(options, around, script)


def translate_run(data: Mapping[str, Any], around: Surroundings) -> Translation:
    """The TOML of a run, whose tables mean nothing."""
    return translate(flat(data), around, "")


def flat(data: Mapping[str, Any]) -> Record:
    """All options of all tables."""
    found: Record = {}
    for name, value in data.items():
        found |= value if isinstance(value, Mapping) else {name: value}
    return found


def translate_easy(data: Mapping[str, Any], around: Surroundings) -> Translation:
    """LoRA_Easy_Training_Scripts' TOML: tables of arguments, and [[subsets]]."""
    options: Record = {}
    for table in data.values():
        if isinstance(table, Mapping):
            for part in ("args", "dataset_args"):
                options |= table.get(part, {})
    if "batch_size" in options:
        options.setdefault("train_batch_size", options.pop("batch_size"))
    if "warmup_ratio" in options:
        options.setdefault("lr_warmup_steps", options.pop("warmup_ratio"))
    script = "sdxl_train_network.py" if options.pop("sdxl", False) else ""
    return translate(options, around, script, list(data.get("subsets", [])))


def part_of(script: str, options: Mapping[str, Any]) -> str:
    """Which of its models is trained: by the script's name, else by the network module and options that only one has."""
    module = str(options.get("network_module", ""))
    for word, part in SCRIPTS.items():
        if script.startswith(word) or module.endswith(f"_{word}"):
            return part
    marks = {"discrete_flow_shift": "flux", "training_shift": "sd3", "gemma2": "lumina"}
    return next((part for mark, part in marks.items() if mark in options), "sd")


def translate(
    options: Mapping[str, Any], around: Surroundings, script: str, subsets: Sequence[Record] = ()
) -> Translation:
    """Options of sd-scripts. `subsets` are those that stand beside them. Raises ConfigError for a value that cannot be read."""
    part = part_of(script, options)
    made = Translation("sd_scripts", ("args", part), options)
    family = FAMILIES[part]
    known = bool(script) or part != "sd"
    if known:
        made.put("model.family", family, "model_type", why=f"by {script or 'the options'}")
    base = made.text("pretrained_model_name_or_path")
    if base:
        put_base(made, "model.base", base, "pretrained_model_name_or_path")
    if made.on("v_parameterization"):
        made.put(
            "model.variant", {"sdxl": "sdxl-v"}.get(family, "sd2-v" if made.on("v2") else "sd1-v"), "v_parameterization"
        )
    encoders(made)
    if script in WHOLE_SCRIPTS:
        whole(made, script)
    else:
        base_loras(made)
        network(made, family)
    is_whole = script in WHOLE_SCRIPTS
    rates(made, text_encoders=0 if is_whole else {"sd": 1, "sdxl": 2}.get(family, 0))
    if family in ("sd", "sdxl"):
        noise(made)
    else:
        flow(made, part)
    datasets(made, around, subsets)
    training(made, around)
    return made


def whole(made: Translation, script: str) -> None:
    """Set a full fine-tune."""
    made.put("network.kind", "full", why=f"{script} trains the whole model")
    if made.on("full_fp16"):
        made.put("model.dtype", "bfloat16", "full_fp16", nearly="weights train in bfloat16, rounded at random")
    elif made.on("full_bf16"):
        made.put("model.dtype", "bfloat16", "full_bf16")
    else:
        made.put("model.dtype", "float32", why="its weights are kept in fp32")
    text = "the text encoders are not trained with the whole model here"
    for name in ("train_text_encoder", "learning_rate_te", "learning_rate_te1", "learning_rate_te2"):
        if made.has(name) and made.get(name) not in (False, 0, 0.0, "0", "0.0"):
            made.say("none", name, note=text)


def encoders(made: Translation) -> None:
    """Files of VAEs, and of text encoders, which stand in one folder here."""
    for name in ("ae", "vae"):
        if made.has(name):
            put_base(made, "model.vae", made.text(name), name)
    for name in ("clip_l", "clip_g", "t5xxl", "gemma2"):
        if made.has(name):
            made.say("none", name, note="name a diffusers folder with text encoders in model.encoders")


def base_loras(made: Translation) -> None:
    """LoRAs that are merged into the base model before training: base LoRAs, which stay apart here."""
    if not made.has("base_weights"):
        return
    given, factors = made.get("base_weights"), made.get("base_weights_multiplier", [])
    files = given if isinstance(given, list) else [given]
    strengths = [
        values.number("base_weights_multiplier", one) for one in (factors if isinstance(factors, list) else [factors])
    ]
    tables = [
        {"file": str(file), "strength": strengths[at] if at < len(strengths) else 1.0, "use": "always"}
        for at, file in enumerate(files)
    ]
    made.put("model.base_lora", tables, "base_weights", "base_weights_multiplier")


def rates(made: Translation, *, text_encoders: int, unet: str = "unet_lr") -> None:
    """Set optimizer, learning rates and schedule. `text_encoders` is how many of the model can be trained."""
    rate = made.number("learning_rate", 2e-6)
    first = unet if made.has(unet) else "learning_rate"
    made.put("optimizer.learning_rate", made.number(first, rate), first)
    if text_encoders and made.on("network_train_unet_only"):
        made.put("text.learning_rate", 0.0, "network_train_unet_only")
        made.say("needless", "text_encoder_lr", note="network_train_unet_only is on")
    elif text_encoders:
        given = made.get("text_encoder_lr", [rate])
        each = [values.number("text_encoder_lr", one) for one in (given if isinstance(given, list) else [given])]
        option = "text_encoder_lr" if made.has("text_encoder_lr") else "learning_rate"
        made.put("text.learning_rate", each[0], option)
        if text_encoders > 1 and each[-1] != each[0]:
            made.put("text.learning_rate_2", each[-1], option)
        if made.on("network_train_text_encoder_only"):
            made.put("text.alone", True, "network_train_text_encoder_only")
            for choice in ("network.target_modules", "network.exclude_modules"):  # of a network without an adapter
                made.settings.pop(choice, None)
        made.say("needless", "network_train_text_encoder_only", note="the network is trained too")
    else:
        made.say("needless", "network_train_unet_only", "text_encoder_lr", note="only the network is trained here")
    made.say("needless", "learning_rate", note=f"{unet} decides")
    legacy = "AdamW8bit" if made.on("use_8bit_adam") else "Lion" if made.on("use_lion_optimizer") else "AdamW"
    ours = put_optimizer(made, "optimizer_type", made.text("optimizer_type") or legacy)
    made.say("exact", "use_8bit_adam", "use_lion_optimizer", ours="optimizer.name")
    arguments = values.pairs("optimizer_args", made.get("optimizer_args"))
    if ours == "adafactor" and arguments.get("relative_step", True):
        arguments["relative_step"] = False
        made.notes.append(
            "optimizer: Adafactor finds its own rate there (relative_step); here it gets the learning rate of the file"
        )
    if (
        ours == "adamw"
        and made.taken.get("optimizer_type")
        and made.taken["optimizer_type"].note.startswith("there is no")
    ):
        arguments = {key: value for key, value in arguments.items() if key in ("weight_decay", "betas", "eps")}
    put_arguments(made, arguments, "optimizer_args", decay=usual_decay(ours))
    put_schedule(made)
    if made.has("max_grad_norm"):
        made.put("optimizer.max_grad_norm", made.number("max_grad_norm"), "max_grad_norm")


def training(made: Translation, around: Surroundings) -> None:
    """Set length, batches, checkpoints, dtypes, samples and folders."""
    made.put("name", run_name(made.text("output_name", "last")), "output_name")
    if made.has("output_dir"):
        made.put(
            "output.loras",
            made.text("output_dir"),
            "output_dir",
            nearly="a run has its own folder; its LoRA files stand here too",
        )
    if "training.batch_size" not in made.settings:
        made.put("training.batch_size", made.whole("train_batch_size", 1), "train_batch_size")
    made.put(
        "training.gradient_accumulation_steps",
        made.whole("gradient_accumulation_steps", 1),
        "gradient_accumulation_steps",
    )
    if made.number("max_train_epochs"):
        made.put("training.epochs", made.number("max_train_epochs"), "max_train_epochs")
        made.say("needless", "max_train_steps", note="max_train_epochs decides")
    else:
        made.put("training.steps", made.whole("max_train_steps", 1600), "max_train_steps")
    if made.has("save_every_n_steps"):
        made.put("training.save_every", made.whole("save_every_n_steps"), "save_every_n_steps")
    elif made.has("save_every_n_epochs"):
        made.put("training.save_every_epochs", made.number("save_every_n_epochs"), "save_every_n_epochs")
    if made.has("save_last_n_epochs"):
        each = max(1.0, made.number("save_every_n_epochs", 1))
        made.put("training.keep_loras", max(1, int(made.number("save_last_n_epochs") / each)), "save_last_n_epochs")
    elif made.has("save_last_n_steps") and made.number("save_every_n_steps"):
        kept = made.whole("save_last_n_steps") // made.whole("save_every_n_steps") + 1
        made.put("training.keep_loras", kept, "save_last_n_steps")
    made.put(
        "training.precision", values.dtype("mixed_precision", made.get("mixed_precision", "no")), "mixed_precision"
    )
    made.put("output.dtype", values.dtype("save_precision", made.get("save_precision", "float")), "save_precision")
    norms = made.settings.get("network.train_norm", False)  # they have native names alone
    made.put(
        "output.format",
        "kohya" if ADAPTERS[made.settings["network.kind"]].all_layouts and not norms else "native",
        why="the key format of its files",
    )
    made.put("memory.gradient_checkpointing", made.on("gradient_checkpointing"), "gradient_checkpointing")
    if made.trainer == "sd_scripts":
        tokens = made.whole("max_token_length", 75)
        made.put("text.clip_tokens", tokens if tokens in (75, 150, 225) else 75, "max_token_length")
    if made.on("fp8_base") or made.on("fp8_base_unet"):
        nearly = "" if made.on("fp8_scaled") else "a plain cast there; with scales here"
        made.put("model.quantize", "float8", "fp8_base", "fp8_base_unet", "fp8_scaled", nearly=nearly)
    if made.on("deepspeed"):
        made.say("nearly", "deepspeed", note="FSDP (memory.shard) and streaming (memory.base) take its place")
        split(made, "zero_stage", "offload_param_device")
    trackers(made)
    samples(made, around)
