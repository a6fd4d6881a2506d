"""The keys of Flux's blocks, which its relatives have too: double blocks with a stream for images and one for texts, single blocks."""

from ....types import Shapes
from ..keymap import WEIGHT_AND_BIAS, KeyMap, Part, rename, split_rows

HEAD = 128
"""Width of an attention head where a network has no query norm to tell."""


def head_width(shapes: Shapes) -> int:
    """Width of an attention head, read off the first query norm; ComfyUI calls its weight `weight`, original files `scale`."""
    norm = "double_blocks.0.img_attn.norm.query_norm"
    return next((shapes[key][0] for key in (f"{norm}.scale", f"{norm}.weight") if key in shapes), HEAD)


def double_keys(
    native: str,
    block: str,
    hidden: int,
    *,
    modulated: bool = True,
    feed_forward: tuple[str, str] = ("net.0.proj", "net.2"),
    suffixes: tuple[str, ...] = WEIGHT_AND_BIAS,
) -> KeyMap:
    """Returns {diffusers key: original key} of a double block of width `hidden`; `modulated` blocks have their own modulation.
    `feed_forward` names the two Linears of one in diffusers, `suffixes` the tensors of a Linear."""
    keys: KeyMap = {}
    for stream, norm, out, feed, projections, query, key in (
        ("img", "norm1", "to_out.0", "ff", [f"to_{x}" for x in "qkv"], "norm_q", "norm_k"),
        (
            "txt",
            "norm1_context",
            "to_add_out",
            "ff_context",
            [f"add_{x}_proj" for x in "qkv"],
            "norm_added_q",
            "norm_added_k",
        ),
    ):
        pairs = [
            (f"{native}.{stream}_attn.proj", f"{block}.attn.{out}"),
            (f"{native}.{stream}_mlp.0", f"{block}.{feed}.{feed_forward[0]}"),
            (f"{native}.{stream}_mlp.2", f"{block}.{feed}.{feed_forward[1]}"),
        ]
        if modulated:
            pairs.append((f"{native}.{stream}_mod.lin", f"{block}.{norm}.linear"))
        keys |= rename(pairs, suffixes)
        parts = [f"{block}.attn.{name}" for name in projections]
        keys |= split_rows(f"{native}.{stream}_attn.qkv", parts, (hidden,) * 3, suffixes)
        keys |= norm_keys(f"{native}.{stream}_attn.norm", f"{block}.attn", query, key)
    return keys


def norm_keys(native: str, attention: str, query: str, key: str) -> KeyMap:
    """Returns {diffusers key: original key} of the norms of query and key."""
    pairs = [
        (f"{native}.query_norm.scale", f"{attention}.{query}.weight"),
        (f"{native}.key_norm.scale", f"{attention}.{key}.weight"),
    ]
    return rename(pairs, ("",))


def single_keys(native: str, block: str, hidden: int, mlp: int, *, modulated: bool = True) -> KeyMap:
    """Returns {diffusers key: original key} of a single block of width `hidden` and feed-forward width `mlp`."""
    parts = [f"{block}.attn.to_{x}" for x in "qkv"] + [f"{block}.proj_mlp"]
    pairs = [(f"{native}.linear2", f"{block}.proj_out")]
    keys = rename([(f"{native}.modulation.lin", f"{block}.norm.linear"), *pairs] if modulated else pairs)
    keys |= split_rows(f"{native}.linear1", parts, (hidden, hidden, hidden, mlp))
    return keys | norm_keys(f"{native}.norm", f"{block}.attn", "norm_q", "norm_k")


NAMES_OF_FLUX2 = r"transformer_blocks\.\d+\.ff(_context)?\.linear_(in|out)|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
"""Regular expression of the paths that `names_of_flux2` returns."""


def names_of_flux2(keymap: KeyMap) -> KeyMap:
    """FLUX.2's names of modules, which ComfyUI takes for FLUX.1 and Chroma too."""
    aliases: KeyMap = {}
    for key, part in keymap.items():
        aliases[key.replace(".net.0.proj.", ".linear_in.").replace(".net.2.", ".linear_out.")] = part
        if key.startswith("single_") and key.endswith((".proj_mlp.weight", ".proj_out.weight")):
            block, name = key.removesuffix(".weight").rsplit(".", 1)
            alias = "to_qkv_mlp_proj" if name == "proj_mlp" else "to_out"
            aliases[f"{block}.attn.{alias}.weight"] = Part(part.native)
    return {alias: part for alias, part in aliases.items() if alias not in keymap}


def names_of_flux1(keymap: KeyMap) -> KeyMap:
    """FLUX.1's names of modules, which ComfyUI takes for FLUX.2 too. Its rows of an MLP are four times the width there as here."""
    aliases: KeyMap = {}
    hidden = next((part.rows[1] for key, part in keymap.items() if key.endswith("attn.to_q.weight") and part.rows), 0)
    for key, part in keymap.items():
        path = key.replace(".linear_in.", ".net.0.proj.").replace(".linear_out.", ".net.2.")
        aliases[path.replace("time_guidance_embed.", "time_text_embed.")] = part
        if key.endswith("to_qkv_mlp_proj.weight") and hidden:
            block = key.removesuffix(".attn.to_qkv_mlp_proj.weight")
            names = [*(f"{block}.attn.to_{x}" for x in "qkv"), f"{block}.proj_mlp"]
            aliases |= split_rows(
                part.native.removesuffix(".weight"), names, (hidden,) * 3 + (4 * hidden,), (".weight",)
            )
        if key.startswith("single_") and key.endswith(".attn.to_out.weight"):
            aliases[key.replace(".attn.to_out.", ".proj_out.")] = part
    return {alias: part for alias, part in aliases.items() if alias not in keymap}
