"""musubi-tuner: sd-scripts' grammar with one script per architecture, and flat dataset tables."""

import re
from collections.abc import Mapping
from typing import Any

from ...config.toml import read_toml
from ...data.sets.checks import Surroundings
from ...errors import ConfigError
from ..models import put_base
from ..translation import Translation
from . import shell
from .datasets import add_sets, datasets
from .flow import flow
from .network import network
from .run import LISTS, base_loras, flat, rates, training, whole

FAMILIES = {
    "qwen_image": "qwen_image",
    "flux_kontext": "flux",
    "flux": "flux",
    "sd3": "sd3",
    "lumina": "lumina2",
    "zimage": "z_image",
    "flux_2": "flux2",
    "krea2": "krea2",
}
"""{beginning of the name of a script or network module: our family}."""
OTHERS = (
    "wan",
    "hv",
    "fpack",
    "hidream_o1",
    "kandinsky5",
    "hunyuan_video_1_5",
    "ideogram4",
)
"""Its architectures whose family is read from the base model's file here."""
VARIANTS = {"edit": "qwen-image-edit", "edit-2509": "qwen-image-edit-plus", "edit-2511": "qwen-image-edit-plus"}
PACKED = ("fp8_vl", "fp8_llm", "fp8_t5", "fp8_text_encoder")
"""Switches for text encoders in fp8."""
ENCODERS = ("vae", "text_encoder", "text_encoder1", "text_encoder2", "t5", "clip")


WHOLE_SCRIPT = re.compile(r"(?!.*_train_network)\w+_train\.py")
"""Scripts that train the whole model."""


def is_command(script: str, options: Mapping[str, Any]) -> bool:
    """Whether a command is one of musubi-tuner's."""
    return "dit" in options or architecture(script, options)[0] in (
        *OTHERS,
        "qwen_image",
        "zimage",
        "flux_kontext",
        "flux_2",
        "krea2",
    )


def architecture(script: str, options: Mapping[str, Any]) -> tuple[str, str]:
    """Returns (the architecture's word or "", our family or "")."""
    module = str(options.get("network_module", "")).rpartition(".")[2].removeprefix("lora_")
    for word in sorted((*OTHERS, *FAMILIES), key=len, reverse=True):
        if script.startswith(f"{word}_") or module == word:
            return word, FAMILIES.get(word, "")
    return "", ""


def translate_command(text: str, around: Surroundings) -> Translation:
    """A command line, or a script with one."""
    script, options = shell.options(shell.command(text), LISTS)
    config = str(options.get("config_file", ""))
    if config:
        path = around.find(config) or around.find(f"{config}.toml")
        if path is None:
            raise ConfigError(f"config_file = {config!r} is not there: import it from the folder that it is named from")
        options = {**flat(read_toml(path)), **options}
    return translate(options, around, script)


def translate_run(data: Mapping[str, Any], around: Surroundings) -> Translation:
    """The TOML of a run."""
    return translate(flat(data), around, "")


def translate_datasets(data: Mapping[str, Any], around: Surroundings) -> Translation:
    """A dataset TOML alone, of musubi-tuner or of sd-scripts."""
    made = Translation("sd_scripts", ("args",), {})
    add_sets(made, data, around)
    return made


def translate(options: Mapping[str, Any], around: Surroundings, script: str) -> Translation:
    """Options of musubi-tuner. Raises ConfigError for a value that cannot be read."""
    made = Translation("musubi_tuner", ("args",), options)
    family = _model(made, script)
    _encoders(made, family)
    if WHOLE_SCRIPT.fullmatch(script):
        whole(made, script)
    else:
        network(made, family, "attention+mlp" if family in ("qwen_image", "flux") else "")
        base_loras(made)
    rates(made, text_encoders=0)
    flow(made, "musubi")
    if made.has("guidance_scale") and family == "flux":
        made.put("objective.guidance_scale", made.number("guidance_scale"), "guidance_scale")
    made.say("needless", "guidance_scale", note="the model takes no guidance value")
    datasets(made, around)
    training(made, around)
    return made


def _model(made: Translation, script: str) -> str:
    """Set family, variant and base model. Returns our family, "" for one that is not here."""
    word, family = architecture(script, made.options)
    if family:
        made.put("model.family", family, why=f"by {script or 'network_module'}")
    elif word:
        made.notes.append(
            f"model.family: lora-loom trains no {word} from the command line; in ComfyUI's graph these settings train whatever model it loads"
        )
    if word == "flux_kontext":
        made.put("model.variant", "kontext", why=f"by {script or 'network_module'}")
    version = made.text("model_version", "original")
    if made.on("edit") or made.on("edit_plus"):
        version = "edit-2509" if made.on("edit_plus") else "edit"
    if version in VARIANTS:
        made.put("model.variant", VARIANTS[version], "model_version", "edit", "edit_plus")
    elif version == "original":
        made.say("exact", "model_version", ours="model.variant")
    if made.has("dit"):
        put_base(made, "model.base", made.text("dit"), "dit")
    return family


def _encoders(made: Translation, family: str) -> None:
    """VAE and text encoders, and the model that makes the samples."""
    if family == "flux" and made.has("vae"):
        put_base(made, "model.vae", made.text("vae"), "vae")
    packed = [name for name in PACKED if made.on(name)]
    if packed:
        nearly = "" if packed == ["fp8_text_encoder"] else "all text encoders but CLIP's"
        made.put("text.quantize", "float8", *packed, nearly=nearly)
    if made.has("turbo_dit"):
        put_base(made, "validation.model", made.text("turbo_dit"), "turbo_dit")
    for name in ENCODERS:
        if made.has(name):
            made.say("none", name, note="name a diffusers folder with text encoders and VAE in model.encoders")
    if not made.settings.get("model.encoders"):
        made.notes.append(
            "model.encoders: name a diffusers folder with the text encoders and the VAE of the base model"
        )
