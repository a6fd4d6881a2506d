"""PowerShell scripts with a block of settings at the top, which guides hand out: the command is put together below from variables."""

import re
from collections.abc import Mapping

from ...types import Record
from .shell import ASSIGNED, CONTINUED, filled

NAMES = {
    "ckpt": "pretrained_model_name_or_path", "image_dir": "train_data_dir", "reg_dir": "reg_data_dir", "vae_path": "vae",
    "is_sd_v2_ckpt": "v2", "is_sd_v2_768_ckpt": "v_parameterization", "optimizer_t": "optimizer_type",
    "scale_weight_normals": "scale_weight_norms", "scheduler": "lr_scheduler", "lr_r_num_cycles": "lr_scheduler_num_cycles",
    "lr_warmup_ratio": "lr_warmup_steps",
}  # fmt: skip
"""{variable of the block: option of sd-scripts}, where the names differ."""
SAME = (
    "output_name", "output_dir", "logging_dir", "log_prefix", "clip_skip", "max_train_epochs", "max_train_steps", "train_batch_size", "resolution",
    "optimizer_args", "noise_offset", "min_snr_gamma", "learning_rate", "unet_lr", "text_encoder_lr", "lr_scheduler_type", "lr_scheduler_args",
    "network_dim", "network_alpha", "network_module", "max_token_length", "shuffle_caption", "keep_tokens", "seed", "save_precision",
    "mixed_precision", "save_every_n_epochs", "save_last_n_epochs", "gradient_checkpointing", "gradient_accumulation_steps",
    "max_data_loader_n_workers",
)  # fmt: skip
NETWORK = {"locon_dim": "conv_dim", "locon_alpha": "conv_alpha", "lycoris_algo": "algo"}
SWITCHES = ("v2", "v_parameterization", "shuffle_caption", "gradient_checkpointing")
ALWAYS = re.compile(r"--(\w+)(?:=(`?\"?[\w.]+`?\"?))?(?=\s|\"|$)")


def block_options(text: str) -> Record | None:
    """The options of such a script; None for another text. A variable counts as it is set first, before the script calculates with it."""
    if "$run_parameters" not in text or "train_network.py" not in text:
        return None
    first: dict[str, str] = {}
    for line in CONTINUED.sub(" ", text).splitlines():
        match = ASSIGNED.match(line) if line.lstrip().startswith("$") else None
        if match is not None and match["name"] not in first and not match["plus"]:
            first[match["name"]] = _value(match["value"], first)
    options: Record = {}
    for name in (*NAMES, *SAME):
        option = NAMES.get(name, name)
        if first.get(name, "") not in ("", "0") or (name in first and option == "keep_tokens"):
            options[option] = True if option in SWITCHES else first[name]
    arguments = [f"{option}={first[name]}" for name, option in NETWORK.items() if first.get(name, "0") not in ("", "0")]
    if arguments:
        options["network_args"] = arguments
    return {**_always(text, options), **options}


def _value(text: str, known: Mapping[str, str]) -> str:
    """The value of an assignment: texts put together by +, or what stands before a comment."""
    text = re.split(r"\s#", text)[0].strip()
    pieces = re.findall(r'"((?:[^"]|"")*)"', text)
    return (
        "".join(filled(piece, known) for piece in pieces).replace('""', "").strip() if pieces else filled(text, known)
    )


def _always(text: str, options: Record) -> Record:
    """Options that the script sets without asking a variable."""
    found: Record = {}
    for line in text.splitlines():
        if line.strip().startswith("$run_parameters +=") and "$" not in line.partition("+=")[2]:
            for name, value in ALWAYS.findall(line):
                if name not in options and name not in SWITCHES:
                    found[name] = value.strip('`"') or True
    return found
