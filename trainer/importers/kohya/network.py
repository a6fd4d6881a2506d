"""Networks of sd-scripts and musubi-tuner: network_module with its arguments."""

import re

from ...choices import ADAPTERS
from ...config.network import WITHOUT_ALPHA
from .. import values
from ..models import UNETS
from ..translation import Translation

TARGETS = {
    "sd": "transformer",
    "sdxl": "transformer",
    "flux": r"regex:^(single_)?transformer_blocks\.",
    "sd3": r"regex:^transformer_blocks\.",
    "lumina2": r"regex:^(layers|noise_refiner|context_refiner)\.",
}
"""What networks.lora and networks.lora_* train: of a UNet its transformer blocks, elsewhere every Linear of the blocks."""


LYCORIS_PRESETS = (
    "full", "full-lin", "attn-mlp", "attn-only", "unet-only", "unet-transformer-only", "unet-convblock-only",
)  # fmt: skip
"""Presets of LyCORIS that are words for target modules here."""
WITH_CONVOLUTIONS = ("full", "unet-only", "unet-convblock-only")
"""Those that train convolutions larger than 1 x 1, at conv_dim."""


def network(made: Translation, family: str, targets: str = "") -> None:
    """Set the network by network_module, network_args and their like."""
    module = made.text("network_module", "networks.lora")
    arguments = values.pairs("network_args", made.get("network_args"))
    inner = Translation(made.trainer, ("network_args",), arguments)
    algo = inner.text(
        "algo", module.rpartition(".")[2].removeprefix("lora_") if module.endswith(("loha", "lokr")) else "lora"
    ).lower()
    kind = "dora" if inner.on("dora_wd") or inner.on("weight_decompose") else values.LYCORIS_KINDS.get(algo, algo)
    nearly = ""
    if kind not in ADAPTERS:
        nearly, kind = f"there is no {algo} here; lora takes its place", "lora"
    elif module.endswith("lora_fa"):
        nearly = "A is frozen there"
    elif not re.match(r"networks\.(lora|loha|lokr|dylora)|lycoris\.kohya|locon", module):
        nearly = f"there is no {module} here; lora takes its place"
    made.put("network.kind", kind, "network_module", nearly=nearly)
    inner.put("network.kind", kind, "algo", "dora_wd", "weight_decompose", nearly=nearly if "algo" in arguments else "")
    if made.on("dim_from_weights"):
        made.say("nearly", "dim_from_weights", note="write the rank of that file into network.rank")
    made.put("network.rank", made.whole("network_dim", 4), "network_dim")
    if kind in WITHOUT_ALPHA:
        made.say("needless", "network_alpha", note=f"{kind} has none")
    else:
        made.put("network.alpha", made.number("network_alpha", 1), "network_alpha")
    if algo == "dylora" or module.endswith("dylora"):
        inner.put("network.dylora_unit", inner.whole("unit", 1), "unit", "block_size")
    dropout = made.number("network_dropout") or inner.number("dropout")
    if dropout:
        difference = "it acts behind the first matrix there, on its input here"
        made.put("network.dropout", dropout, "network_dropout", nearly=difference)
        inner.say("nearly", "dropout", note=difference, ours="network.dropout")
    _targets(made, inner, family, targets)
    _of_kind(inner, kind, family)
    made.say("exact", "network_args", note="see its entries")
    made.adopt(inner, "network_args")


def _of_kind(inner: Translation, kind: str, family: str) -> None:
    """Set what single kinds and networks have, and patterns of modules."""
    for name, option in (("full_matrix", "lokr_full_matrix"), ("decompose_both", "lokr_decompose_both")):
        if kind == "lokr" and inner.on(name):
            inner.put(f"network.{option}", True, name)
    if inner.on("train_norm") and family in UNETS:
        inner.put("network.train_norm", True, "train_norm")
    inner.say("needless", "train_norm", note="it is off, or this network has no such norms")
    for name, pattern in (
        ("exclude_patterns", "network.exclude_modules"),
        ("include_patterns", "network.target_modules"),
    ):
        if inner.has(name):
            given = inner.get(name)
            joined = "|".join(str(one) for one in given) if isinstance(given, list) else str(given)
            inner.put(pattern, f"regex:{joined}" if name == "include_patterns" else joined, name)


def _targets(made: Translation, inner: Translation, family: str, targets: str) -> None:
    module = made.text("network_module", "networks.lora")
    if module.startswith(("lycoris", "locon")):
        _lycoris_targets(made, inner, family)
        return
    convolutions = inner.number("conv_dim")
    if convolutions and family in UNETS:
        inner.put("network.target_modules", "locon", why="conv_dim")
        inner.put("network.conv_rank", int(convolutions), "conv_dim")
        inner.put("network.conv_alpha", inner.number("conv_alpha", 1), "conv_alpha")
    elif targets or (family in TARGETS and (family not in UNETS or module == "networks.lora")):
        made.put("network.target_modules", targets or TARGETS[family], why=f"what {made.title} trains")
    inner.say("needless", "preset", note=f"{module} has no presets")
    _blocks(inner, family)


def _lycoris_targets(made: Translation, inner: Translation, family: str) -> None:
    """LyCORIS' preset, full where none is named, with rank and alpha of convolutions, which are those of the rest there by default."""
    preset = inner.text("preset", "full")
    known = preset in LYCORIS_PRESETS
    ours = preset if known else "transformer" if family in UNETS else "default"
    nearly = "" if known else f"{preset} is no preset here: write network.target_modules by that file"
    inner.put("network.target_modules", ours, "preset", nearly=nearly)
    if preset in WITH_CONVOLUTIONS and family in UNETS:
        for name, option, usual in (("conv_dim", "network.conv_rank", 0.0), ("conv_alpha", "network.conv_alpha", 0.0)):
            given = inner.number(name, usual)
            if given:
                inner.put(option, int(given) if name == "conv_dim" else given, name)
    note = f"{preset} trains no convolutions" if family in UNETS else "this network has no convolutions"
    inner.say("needless", "conv_dim", "conv_alpha", note=note)


def _blocks(inner: Translation, family: str) -> None:
    blocks = [inner.text(name, "all") for name in ("train_double_block_indices", "train_single_block_indices")]
    if family == "flux" and blocks != ["all", "all"]:
        pattern = "|".join(
            f"{prefix}\\.{_indices(given)}\\." for prefix, given in zip(("transformer_blocks", "single_transformer_blocks"), blocks, strict=True)
            if given != "none"
        )  # fmt: skip
        inner.put(
            "network.target_modules", f"regex:^({pattern})", "train_double_block_indices", "train_single_block_indices"
        )


def _indices(given: str) -> str:
    """A pattern of block numbers, of "0-3,7" or "all"."""
    if given == "all":
        return r"\d+"
    numbers: list[int] = []
    for word in given.split(","):
        first, _, last = word.partition("-")
        low = values.whole("block indices", first)
        numbers += range(low, values.whole("block indices", last or first) + 1)
    return f"({'|'.join(map(str, numbers))})"
