"""SimpleTuner's networks: its LoRAs with their targets, and LyCORIS' configuration."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ...choices import ADAPTERS
from ...config.network import WITHOUT_ALPHA
from ...data.sets.checks import Surroundings
from ...errors import ConfigError
from ...types import Record
from .. import values
from ..models import put_adapter
from ..translation import Translation

FEW_TARGETS = r"regex:(^|\.)(to_k|to_q|to_v|to_out\.0)$"
"""What it trains where no target is given, except for Flux."""


FLUX_TARGETS = {"all": "attention", "all+ffs": "attention+mlp"}


FLUX_PATTERNS = {
    "mmdit": FEW_TARGETS,
    "context": r"regex:(^|\.)(add_k_proj|add_q_proj|add_v_proj|to_add_out)$",
    "context+ffs": r"regex:(^|\.)(add_k_proj|add_q_proj|add_v_proj|to_add_out|ff_context\.net\.0\.proj|ff_context\.net\.2)$",
    "tiny": r"regex:^single_transformer_blocks\.(7|20)\.proj_out$",
    "nano": r"regex:^single_transformer_blocks\.7\.proj_out$",
}
"""{flux_lora_target: target modules} that no preset here stands for."""


def translate_lycoris(data: Mapping[str, Any], around: Surroundings) -> Translation:
    """A LyCORIS configuration alone."""
    made = Translation("simpletuner", ("lycoris",), flat(data))
    lycoris_network(made)
    return made


def network(made: Translation, family: str, around: Surroundings) -> None:
    """Set the network and its target modules."""
    if _is_whole(made):
        made.put("network.kind", "full", "model_type")
        made.put("model.dtype", "bfloat16", why="its weights are kept in bf16")
        return
    if made.text("lora_type", "standard") == "lycoris":
        _lycoris(made, around)
        return
    made.say("exact", "lora_type", ours="network.kind")
    made.put("network.kind", "dora" if made.on("use_dora") else "lora", "model_type", "use_dora")
    made.put("network.rank", made.whole("lora_rank", 16), "lora_rank")
    if made.has("lora_alpha"):
        made.put("network.alpha", made.number("lora_alpha"), "lora_alpha")
    made.put("network.dropout", made.number("lora_dropout", 0.1), "lora_dropout")
    start = made.text("lora_init_type", "default")
    if start in ("gaussian", "pissa", "olora") and not made.on("use_dora"):
        made.put("network.init", start, "lora_init_type")
    elif start == "loftq" and made.settings.get("model.quantize", "none") != "none" and not made.on("use_dora"):
        made.put("network.init", start, "lora_init_type", nearly="one iteration; the file is for the base as it is")
    elif start == "default":
        made.say("exact", "lora_init_type", note="A is drawn at random, B is zero")
    _targets(made, family)
    if made.has("lora_format"):
        layout = {"diffusers": "diffusers", "comfyui": "native"}.get(made.text("lora_format"), "native")
        made.put("output.format", layout, "lora_format")


def _is_whole(made: Translation) -> bool:
    """Whether the whole model is trained. That is its default, too, where a file is a whole configuration without a word on LoRAs."""
    is_complete = made.has("data_backend_config") and not any(name.startswith("lora_") for name in made.options)
    return made.text("model_type", "full" if is_complete else "lora") == "full"


def _targets(made: Translation, family: str) -> None:
    if made.has("peft_lora_target_modules"):
        given = made.get("peft_lora_target_modules")
        words = (
            given if isinstance(given, list) else str(given).strip("[]").replace('"', "").replace("'", "").split(",")
        )
        pattern = "|".join(re.escape(str(word).strip()) for word in words)
        made.put("network.target_modules", rf"regex:(^|\.)({pattern})$", "peft_lora_target_modules")
    elif family == "flux":
        word = made.text("flux_lora_target", "all")
        ours = FLUX_TARGETS.get(word) or FLUX_PATTERNS.get(word)
        if ours is None:
            made.put(
                "network.target_modules", "attention+mlp", "flux_lora_target", nearly=f"{word} is attention+mlp here"
            )
        else:
            made.put("network.target_modules", ours, "flux_lora_target")
    else:
        fused = "|to_qkv_mlp_proj" if family == "flux2" else ""
        pattern = FEW_TARGETS.replace(")$", f"{fused})$")
        made.put("network.target_modules", pattern, "flux_lora_target", why="SimpleTuner's default")


def _lycoris(made: Translation, around: Surroundings) -> None:
    place = made.text("lycoris_config", "config/lycoris_config.json")
    path = around.find(place)
    if path is None:
        made.put(
            "network.kind",
            "lokr",
            "lora_type",
            "model_type",
            nearly="lycoris_config was not found; LoKr is its usual algo",
        )
        made.say("none", "lycoris_config", note=f"{place} is not there: set [network] by it")
        made.notes.append(
            f"lycoris_config: {place} is not there; set kind, rank, alpha and lokr_factor of [network] by it"
        )
        return
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"lycoris_config = {place!r} cannot be read: {error}") from error
    made.say("exact", "lora_type", "lycoris_config", "model_type", note=f"read from {path}", ours="network")
    inner = Translation("simpletuner", ("lycoris",), flat(data))
    lycoris_network(inner)
    made.adopt(inner, "lycoris_config")


def flat(data: Mapping[str, Any]) -> Record:
    """LyCORIS' configuration with the entries of apply_preset under dotted names."""
    preset = data.get("apply_preset")
    inner = {f"apply_preset.{name}": value for name, value in preset.items()} if isinstance(preset, Mapping) else {}
    return {**{name: value for name, value in data.items() if name != "apply_preset"}, **inner}


def lycoris_network(made: Translation) -> None:
    """Set the network by the options of a LyCORIS configuration."""
    algo = made.text("algo", "lokr").lower()
    kind = values.LYCORIS_KINDS.get(algo, algo)
    if kind in ADAPTERS:
        made.put("network.kind", kind, "algo")
    else:
        made.put("network.kind", "lora", "algo", nearly=f"there is no {algo} here; lora takes its place")
    rank, alpha = made.whole("linear_dim", 16), made.number("linear_alpha", 1)
    if rank >= 1000 and kind == "lokr":
        made.put("network.lokr_full_matrix", True, "linear_dim", "full_matrix")
        made.say("exact", "linear_alpha", note="whole matrices have none")
    else:
        made.put("network.rank", rank, "linear_dim")
        if kind in WITHOUT_ALPHA:
            made.say("needless", "linear_alpha", note=f"{kind} has none")
        else:
            made.put("network.alpha", alpha, "linear_alpha")
    if kind == "lokr":
        made.put("network.lokr_factor", made.whole("factor", 12), "factor")
    modules = made.get("apply_preset.target_module")
    if isinstance(modules, list):
        ours = "attention+mlp" if any(str(one).endswith("FeedForward") for one in modules) else "attention"
        made.put("network.target_modules", ours, "apply_preset.target_module")
    if made.has("apply_preset.module_algo_map"):
        _by_class(made, made.get("apply_preset.module_algo_map"), kind)


CLASSES = (("Attention", "attn|attention"), ("FeedForward", "ff|mlp|feed_forward"))
"""(end of the name of a class, what the paths of its modules have)."""


def _paths_of(name: str) -> str:
    """What the paths of a class of modules have; "" for a class that is not known."""
    return next((pattern for end, pattern in CLASSES if name.endswith(end)), "")


def _by_class(made: Translation, classes: Any, kind: str) -> None:
    """Factors of LoKr by class as factors by path; other options of single classes have no counterpart."""
    known = isinstance(classes, Mapping) and all(
        _paths_of(name) and isinstance(options, Mapping) and options.keys() <= {"factor"}
        for name, options in classes.items()
    )
    if not known or kind != "lokr":
        made.say("none", "apply_preset.module_algo_map", note="factors of LoKr for Attention and FeedForward are taken")
        return
    factors = {_paths_of(name): int(options["factor"]) for name, options in classes.items() if "factor" in options}
    made.put("network.lokr_factors", factors, "apply_preset.module_algo_map")


USUAL_ADAPTERS = {
    "schnell": "ostris/FLUX.1-schnell-training-adapter",
    "turbo": "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v1.safetensors",
    "turbo-ostris-v2": "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors",
}
"""{model_flavour: the training adapter that it is trained with unless that is switched off}."""


def adapter(made: Translation, family: str, flavour: str) -> None:
    """Set the training adapter of a distilled model."""
    of_lora = ("assistant_lora_path", "assistant_lora_strength", "assistant_lora_inference_strength")
    usual = USUAL_ADAPTERS.get(flavour, "") if family in ("flux", "z_image") else ""
    name = made.text("assistant_lora_path") or usual
    if not name or made.on("disable_assistant_lora"):
        made.say("needless", *of_lora, "assistant_lora_weight_name", note="there is no training adapter")
        return
    if made.has("assistant_lora_weight_name") and not name.endswith(".safetensors"):
        name = f"{name}/{made.text('assistant_lora_weight_name')}"
        made.say("exact", "assistant_lora_weight_name", ours="model.base_lora")
    use = "always" if made.number("assistant_lora_inference_strength") != 0 else "training"
    given = [one for one in of_lora if made.has(one)]
    put_adapter(
        made,
        name,
        made.number("assistant_lora_strength", 1.0),
        use,
        *given,
        why=f"SimpleTuner trains {flavour} with it",
    )
