"""A model card: what a run trained, on what, and how, with its samples, as the README of a repository of the hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.network import WHOLE
from ..types import Record

SHOWN = {
    "network": ("kind", "rank", "alpha", "target_modules", "rslora", "dropout"),
    "optimizer": ("name", "learning_rate", "weight_decay", "max_grad_norm"),
    "schedule": ("kind", "warmup"),
    "objective": ("loss", "timestep_sampling", "shift", "min_snr_gamma"),
    "training": ("steps", "batch_size", "gradient_accumulation_steps", "precision", "ema_decay", "seed"),
    "data": ("resolution",),
}
"""Settings that stand in a card, by table. Paths and captions do not."""
MOST_SAMPLES = 8


def model_card(
    record: Record,
    metadata: Mapping[str, str],
    files: Sequence[str],
    samples: Sequence[tuple[str, str]],
    losses: Sequence[float] = (),
) -> str:
    """Markdown with the hub's front matter.

    `record` is run.json, `metadata` that of the run's last file, `files` and `samples` are paths within the repository, the latter with
    their prompts; `losses` are validation losses over the run.
    """
    from huggingface_hub import ModelCardData

    name, config = str(record["name"]), record.get("config") or {}
    trigger = metadata.get("modelspec.trigger_phrase", "")
    whole = (config.get("network") or {}).get("kind") == WHOLE
    tags = [
        "text-to-image",
        "diffusers" if config.get("output", {}).get("format") == "diffusers" else "comfyui",
        "lora-loom",
    ]
    front: dict[str, Any] = {"tags": tags if whole else ["lora", *tags]}
    if trigger:
        front["instance_prompt"] = trigger
    if samples:
        front["widget"] = [{"text": prompt, "output": {"url": path}} for path, prompt in samples]
    head = ["---", ModelCardData(**front).to_yaml().strip(), *TO_FILL_IN, "---"]
    parts = [f"# {name}", _about(metadata, trigger, whole=whole), _pictures(samples), _use(files, whole=whole)]
    parts += [
        _settings(config, losses),
        "## License\n\nTo be stated by whoever publishes this: the license of the base model may decide it.",
    ]
    return "\n".join(head) + "\n\n" + "\n\n".join(part for part in parts if part) + "\n"


TO_FILL_IN = (
    "# base_model: owner/name    the base model's id on the hub",
    "# license: apache-2.0       yours to state; the license of the base model may decide it",
)
"""Lines of the front matter that only the user can fill in, as comments."""


def _about(metadata: Mapping[str, str], trigger: str, *, whole: bool) -> str:
    base = metadata.get("modelspec.architecture", "").partition("/")[0]
    what = "A fine-tuned model" if whole else "A LoRA"
    lines = [
        f"{what} for {base or 'its base model'}, trained with [LoRA Loom](https://github.com/lora-loom/lora-loom)."
    ]
    if trigger:
        lines.append(f"Trigger: `{trigger}`")
    return "\n\n".join(lines)


def _pictures(samples: Sequence[tuple[str, str]]) -> str:
    if not samples:
        return ""
    lines = [f"![{_plain(prompt)}]({path})\n\n{_plain(prompt)}" for path, prompt in samples]
    return "\n\n".join(["## Samples", *lines])


def _plain(prompt: str) -> str:
    """A prompt as text that Markdown does not read."""
    return " ".join("".join(f"\\{letter}" if letter in "[]()<>*_`\\#|!" else letter for letter in prompt).split())


def _use(files: Sequence[str], *, whole: bool) -> str:
    node = (
        "models/diffusion_models (UNETLoader), or models/checkpoints for a whole checkpoint"
        if whole
        else "models/loras (LoraLoader)"
    )
    listed = "\n".join(f"- `{file}`" for file in files)
    return f"## Files\n\n{listed}\n\nIn ComfyUI they belong into {node}."


def _settings(config: Mapping[str, Any], losses: Sequence[float]) -> str:
    rows = [
        f"| {table}.{option} | {value} |"
        for table, options in SHOWN.items()
        for option in options
        if (value := (config.get(table) or {}).get(option)) not in (None, "", False)
    ]
    if losses:
        rows.append(f"| validation loss | {losses[0]:.4f} at first, {losses[-1]:.4f} at the end |")
    return "\n".join(["## Settings", "", "| | |", "|---|---|", *rows])


def shown_samples(paths: Sequence[Path], folder: Path) -> list[tuple[str, str]]:
    """Returns [(path within `folder`, prompt)] of the samples of the last step, as the PNGs say it; a few of them."""
    from PIL import Image

    last = max((path.name.split("-")[1] for path in paths if path.name.startswith("step-")), default="")
    found = []
    for path in sorted(path for path in paths if path.name.startswith(f"step-{last}-"))[:MOST_SAMPLES]:
        with Image.open(path) as image:
            prompt = str(image.info.get("prompt", ""))
        found.append((path.relative_to(folder).as_posix(), prompt))
    return found
