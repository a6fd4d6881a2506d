"""What sd-scripts and musubi-tuner write beside LoRAs: curves, uploads, samples."""

import re
from pathlib import Path

from ...config.prompt_library import read_prompt_file
from ...data.sets.checks import Surroundings
from ...errors import ConfigError
from ..finish import run_name
from ..translation import Translation, as_option

SAMPLERS = {
    "ddim": "ddim", "heun": "heun", "k_heun": "heun", "dpmsolver": "dpmpp_2m", "dpmsolver++": "dpmpp_2m", "euler": "euler", "k_euler": "euler",
}  # fmt: skip
"""{sample_sampler: validation.sampler}."""


def trackers(made: Translation) -> None:
    """Set where curves and files are also written."""
    if made.has("huggingface_repo_id"):
        made.put(
            "output.hub_private", made.text("huggingface_repo_visibility") != "public", "huggingface_repo_visibility"
        )
    made.say("needless", "huggingface_repo_visibility", note="nothing is pushed")
    tracker = made.text("log_with", "tensorboard" if made.has("logging_dir") else "none")
    made.put("output.report_to", "tensorboard" if tracker == "all" else tracker, "log_with")
    if tracker in ("tensorboard", "all") and made.has("logging_dir"):
        made.put("output.tracker_dir", made.text("logging_dir"), "logging_dir")
        if made.has("log_prefix"):
            prefix = run_name(made.text("log_prefix") + made.settings["name"])
            made.put("output.tracker_run", prefix, "log_prefix", nearly="before the run's name; before the time there")
    made.say("needless", "logging_dir", "log_prefix", note="TensorBoard writes into the run's folder, or not at all")


def samples(made: Translation, around: Surroundings) -> None:
    """Set prompts and settings of the samples."""
    _prompts(made, around)
    sampler = SAMPLERS.get(made.text("sample_sampler"), "")
    if sampler and any(name.startswith("validation.p") for name in made.settings):
        made.put("validation.sampler", sampler, "sample_sampler")
    made.say("needless", "sample_sampler", note="euler makes the samples, or there are none")


def _is_read(path: Path) -> bool:
    """Whether samples read the file as it is, with all its options."""
    try:
        read_prompt_file(path, "sample_prompts")
    except ConfigError:
        return False
    return True


def _sample_steps(made: Translation) -> None:
    if made.has("sample_every_n_epochs"):
        made.put("validation.sample_every", 0, "sample_every_n_epochs", nearly="samples are made at checkpoints here")
        made.say("needless", "sample_every_n_steps", note="sample_every_n_epochs decides")


def _prompts(made: Translation, around: Surroundings) -> None:
    place = made.text("sample_prompts")
    path = around.find(place) if place else None
    if path is None:
        made.say("none", "sample_prompts", note=f"{place} is not there: write validation.prompts")
        made.say(
            "needless", "sample_every_n_steps", "sample_every_n_epochs", "sample_at_first", note="there are no prompts"
        )
        return
    if path.suffix.lower() == ".txt" and _is_read(path):
        made.put("validation.prompt_library", str(path), "sample_prompts")
        _sample_steps(made)
        return
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    kept = [line for line in lines if line and not line.startswith("#")]
    parted = [re.split(r"\s--(?=\w)", line) for line in kept]
    flags = {
        flag.split(maxsplit=1)[0]: flag.partition(" ")[2]
        for words in reversed(parted)
        for flag in words[1:]
        if flag.strip()
    }
    _sample_steps(made)
    names = {
        "n": "negative_prompt",
        "w": "width",
        "h": "height",
        "d": "seed",
        "s": "sample_steps",
        "l": "guidance_scale",
    }
    nearly = "the flags of the first prompt hold for all" if flags else ""
    made.put("validation.prompts", [words[0] for words in parted], "sample_prompts", nearly=nearly)
    for flag, ours in names.items():
        if flag in flags:
            name = f"validation.{ours}"
            made.put(name, as_option(name, f"--{flag}", flags[flag]), why=f"--{flag} of {path.name}")
