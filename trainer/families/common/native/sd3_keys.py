"""SD3's names: joint blocks with q, k and v as one matrix."""

from collections.abc import Sequence

from ..keymap import KeyMap, rename, split_rows


def native_keys(
    depth: int, hidden: int, *, dual: Sequence[int] = (), qk_norm: bool = True, last: int | None = None
) -> KeyMap:
    """Returns {diffusers key: original key} for a network of `depth` joint blocks and width `hidden`; `dual` blocks have attn2.

    `last` is the block whose text ends in it, by default that at the end.
    """
    last = depth - 1 if last is None else last
    keys = rename(
        [
            ("x_embedder.proj", "pos_embed.proj"),
            ("context_embedder", "context_embedder"),
            ("final_layer.linear", "proj_out"),
        ]
    )
    keys |= rename([("pos_embed", "pos_embed.pos_embed")], ("",))
    for native, diffusers in (
        ("t_embedder.mlp", "time_text_embed.timestep_embedder"),
        ("y_embedder.mlp", "time_text_embed.text_embedder"),
    ):
        keys |= rename([(f"{native}.0", f"{diffusers}.linear_1"), (f"{native}.2", f"{diffusers}.linear_2")])
    keys |= rename([("final_layer.adaLN_modulation.1", "norm_out.linear")], swap_halves=True)
    for i in range(depth):
        keys |= _block_keys(i, hidden, last=i == last, dual=i in dual, qk_norm=qk_norm)
    return keys


def _block_keys(index: int, hidden: int, *, last: bool, dual: bool, qk_norm: bool) -> KeyMap:
    image, context, block = (
        f"joint_blocks.{index}.x_block",
        f"joint_blocks.{index}.context_block",
        f"transformer_blocks.{index}",
    )
    attention = f"{block}.attn"
    keys = rename(
        [
            (f"{image}.adaLN_modulation.1", f"{block}.norm1.linear"),
            (f"{image}.attn.proj", f"{attention}.to_out.0"),
            (f"{image}.mlp.fc1", f"{block}.ff.net.0.proj"),
            (f"{image}.mlp.fc2", f"{block}.ff.net.2"),
        ]
    )
    keys |= rename([(f"{context}.adaLN_modulation.1", f"{block}.norm1_context.linear")], swap_halves=last)
    if not last:
        keys |= rename(
            [
                (f"{context}.attn.proj", f"{attention}.to_add_out"),
                (f"{context}.mlp.fc1", f"{block}.ff_context.net.0.proj"),
                (f"{context}.mlp.fc2", f"{block}.ff_context.net.2"),
            ]
        )
    thirds = (hidden,) * 3
    keys |= split_rows(f"{image}.attn.qkv", [f"{attention}.to_{x}" for x in "qkv"], thirds)
    keys |= split_rows(f"{context}.attn.qkv", [f"{attention}.add_{x}_proj" for x in "qkv"], thirds)
    norms = [(f"{image}.attn.ln_{x}", f"{attention}.norm_{x}") for x in "qk"]
    norms += [(f"{context}.attn.ln_{x}", f"{attention}.norm_added_{x}") for x in "qk"]
    if dual:
        keys |= split_rows(f"{image}.attn2.qkv", [f"{block}.attn2.to_{x}" for x in "qkv"], thirds)
        keys |= rename([(f"{image}.attn2.proj", f"{block}.attn2.to_out.0")])
        norms += [(f"{image}.attn2.ln_{x}", f"{block}.attn2.norm_{x}") for x in "qk"]
    return keys | (rename(norms, (".weight",)) if qk_norm else {})
