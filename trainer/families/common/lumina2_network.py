"""The network is diffusers' Lumina2 with q, k and v as the one Linear that original files have. B batch, L tokens, D width.

ComfyUI cannot apply an adapter on one of the three (it takes all for equally wide, and grouped queries are not), so
they are trained and saved as one. An original file's tensor is used as it is; a diffusers folder's three are put together.
"""

from collections.abc import Mapping
from functools import cache, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import Lumina2Transformer2DModel

FUSED = "attn.to_qkv."
SPLIT = ("attn.to_q.", "attn.to_k.", "attn.to_v.")


def fuse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins q, k and v of a diffusers state dict into one tensor. A copy of those three; the rest stays shared."""
    fused = {key: tensor for key, tensor in tensors.items() if not any(part in key for part in SPLIT)}
    for key in tensors:
        if SPLIT[0] in key:
            names = [key.replace(SPLIT[0], part) for part in SPLIT]
            if all(
                name in tensors for name in names
            ):  # one that is missing is reported as such when the network is built
                fused[key.replace(SPLIT[0], FUSED)] = torch.cat([tensors[name] for name in names])
    return fused


def split(tensors: Mapping[str, Tensor], query_rows: int, key_rows: int) -> dict[str, Tensor]:
    """The inverse of `fuse`, as views."""
    apart: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if FUSED not in key:
            apart[key] = tensor
            continue
        for part, piece in zip(SPLIT, torch.split(tensor, [query_rows, key_rows, key_rows]), strict=True):
            apart[key.replace(FUSED, part)] = piece
    return apart


class Attention(Protocol):
    """What `FusedAttention` uses of diffusers' attention block."""

    inner_dim: int
    inner_kv_dim: int
    heads: int
    scale: float
    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    to_qkv: nn.Linear
    norm_q: nn.Module
    norm_k: nn.Module
    to_out: nn.ModuleList

    def set_processor(self, processor: object) -> None:
        """Use another attention processor."""


class FusedAttention:
    """Attention processor: one projection for q, k and v, then norms, rotary positions, grouped queries."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Maps (B, L, D) to (B, L, D); `attention_mask` (B, L) is true where a key may be seen."""
        from diffusers.models.embeddings import apply_rotary_emb

        rows = [attn.inner_dim, attn.inner_kv_dim, attn.inner_kv_dim]
        head = attn.inner_dim // attn.heads
        query, key, value = (part.unflatten(-1, (-1, head)) for part in attn.to_qkv(hidden_states).split(rows, dim=-1))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(part, image_rotary_emb, use_real=False) for part in (query, key))
        group = attn.heads // key.shape[2]
        key, value = (part.repeat_interleave(group, dim=2).transpose(1, 2) for part in (key.to(value), value))
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        out = F.scaled_dot_product_attention(query.to(value).transpose(1, 2), key, value, mask, scale=attn.scale)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


@cache
def network_class() -> "type[Lumina2Transformer2DModel]":
    """The class; made on first use, because diffusers is slow to import."""
    from diffusers import Lumina2Transformer2DModel as Plain
    from diffusers.models.transformers.transformer_lumina2 import Lumina2RotaryPosEmbed

    class Lumina2Transformer2DModel(Plain):  # type: ignore[misc]
        """Same configuration as diffusers' class; its folders are written in diffusers' layout."""

        def __init__(self, *args: object, **settings: object) -> None:
            super().__init__(*args, **settings)
            for part in self.modules():
                if hasattr(part, "to_q"):
                    _fuse_projections(part)
            config = self.config
            with torch.device("cpu"):  # its tables are not buffers: on the meta device nothing would ever fill them
                rope = Lumina2RotaryPosEmbed(10000, config.axes_dim_rope, config.axes_lens, config.patch_size)
            rope.freqs_cis = [table.to(torch.complex64) for table in rope.freqs_cis]
            self.add_module("rope_embedder", rope)

        def save_pretrained(self, folder: Path, **options: object) -> None:
            config = self.config
            head = config.hidden_size // config.num_attention_heads
            plain = Plain.from_config(config)
            plain.load_state_dict(split(self.state_dict(), config.hidden_size, config.num_kv_heads * head))
            plain.save_pretrained(folder, **options)

    update_wrapper(Lumina2Transformer2DModel.__init__, Plain.__init__)  # diffusers reads the settings' names off it
    return Lumina2Transformer2DModel


def _fuse_projections(attention: Attention) -> None:
    """Put one Linear in place of three, and the processor that knows it."""
    rows = attention.inner_dim + 2 * attention.inner_kv_dim
    attention.to_qkv = nn.Linear(attention.to_q.in_features, rows, bias=False)
    del attention.to_q, attention.to_k, attention.to_v
    attention.set_processor(FusedAttention())
