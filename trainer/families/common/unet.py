"""What SD1, SD2 and SDXL share: the UNet's original key names, its configuration from shapes, its LoRA targets."""

import re
from dataclasses import dataclass

from torch import Tensor

from ...diffusion.denoiser import Targets
from ...types import Shapes
from .family import DiffusersDenoiser
from .keymap import KeyMap, count_blocks, rename
from .lora_names import LoraNames

_ATTENTION = r"attn[12]\.(to_[qkv]|to_out\.0)"
_TRANSFORMER = rf"attentions\.\d+\.(transformer_blocks\.\d+\.({_ATTENTION}|ff\.net\.(0\.proj|2))|proj_in|proj_out)$"
_RESIDUAL = r"resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)$"
_TIMES = r"^time_embedding\.linear_[12]$"
_WITH_CONVOLUTIONS = rf"{_TRANSFORMER}|resnets\.\d+\.(conv1|conv2|conv_shortcut)$|samplers\.0\.conv$"
UNET_TARGETS = {
    "default": Targets(
        _WITH_CONVOLUTIONS, "attention, feed-forward, the projections round them and the convolutions (LoCon)"
    ),
    "attention": Targets(rf"transformer_blocks\.\d+\.{_ATTENTION}$", "all projections of attention"),
    "attention+mlp": Targets(
        rf"transformer_blocks\.\d+\.({_ATTENTION}|ff\.net\.(0\.proj|2))$", "attention and feed-forward"
    ),
    "transformer": Targets(
        _TRANSFORMER, "attention, feed-forward and the projections round them, as kohya's LoRA"
    ),  # `default` until convolutions came to it
    "conv": Targets(_WITH_CONVOLUTIONS, "transformer and the convolutions (LoCon)"),
    "all": Targets(
        r"(^conv_in|^conv_out|linear_[12]|attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2)|proj_in|proj_out|time_emb_proj|conv1|conv2|conv_shortcut|samplers\.0\.conv)$",
        "every Linear and convolution",
    ),
    "locon": Targets(
        rf"{_TRANSFORMER}|{_RESIDUAL}|samplers\.0\.conv$",
        "conv and the residual blocks' time projections: sd-scripts with conv_dim",
    ),
    # LyCORIS' presets that no other stands for
    "full": Targets(
        rf"{_TRANSFORMER}|{_RESIDUAL}|samplers\.0\.conv$|^conv_(in|out)$|{_TIMES}",
        "LyCORIS' full: locon, first and last convolution, time embedding",
    ),
    "full-lin": Targets(
        rf"{_TRANSFORMER}|resnets\.\d+\.(conv_shortcut|time_emb_proj)$|{_TIMES}",
        "LyCORIS' full-lin: full without convolutions larger than 1 x 1",
    ),
    "unet-convblock-only": Targets(
        rf"{_RESIDUAL}|samplers\.0\.conv$|^conv_(in|out)$",
        "LyCORIS' preset of this name: residual blocks, no attention",
    ),
}

_INNER = rf"transformer_blocks\.\d+\.({_ATTENTION}|ff\.net\.(0\.proj|2))|proj_in|proj_out"
UNET_LORA_PREFIXES = ("lora_unet_", "lycoris_")
UNET_LORA_DIFFUSERS = (
    rf"((down|up)_blocks\.\d+|mid_block)\.(attentions\.\d+\.({_INNER})"
    r"|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|(down|up)samplers\.0\.conv)"
    r"|conv_in|conv_out|(time|add|class)_embedding\.linear_[12]"
)
UNET_LORA_NATIVE = (
    rf"((input|output)_blocks\.\d+|middle_block)\.\d+\.({_INNER}|in_layers\.2|out_layers\.3|emb_layers\.1|skip_connection|op|conv)"
    r"|input_blocks\.0\.0|out\.2|time_embed\.[02]|label_emb\.0\.[02]"
)
CROSS_ATTENTION = r"attn2[._]to_[kv]$"
"""Modules whose input is the text: its width distinguishes the UNet families."""

_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
)


def _resnet(native: str, diffusers: str, shapes: Shapes) -> KeyMap:
    pairs = [(f"{native}.{old}", f"{diffusers}.{new}") for old, new in _RESNET]
    if f"{native}.skip_connection.weight" in shapes:
        pairs.append((f"{native}.skip_connection", f"{diffusers}.conv_shortcut"))
    return rename(pairs)


def _attention(native: str, diffusers: str, shapes: Shapes) -> KeyMap:
    """A transformer keeps its inner names."""
    inner = {key.removeprefix(f"{native}.") for key in shapes if key.startswith(f"{native}.")}
    return rename([(f"{native}.{name}", f"{diffusers}.{name}") for name in inner], ("",))


def _stage(native: str, diffusers: str, index: int, shapes: Shapes) -> KeyMap:
    """One input_blocks.N or output_blocks.N: a resnet and, where there is one, its transformer."""
    keys = _resnet(f"{native}.0", f"{diffusers}.resnets.{index}", shapes)
    if f"{native}.1.norm.weight" in shapes:
        keys |= _attention(f"{native}.1", f"{diffusers}.attentions.{index}", shapes)
    return keys


def native_keys(shapes: Shapes, levels: int, layers: int) -> KeyMap:
    """Returns {diffusers key: original key} of a UNet with `levels` resolutions and `layers` resnets on the way down."""
    keys = rename([("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out")])
    keys |= rename([(f"time_embed.{i}", f"time_embedding.linear_{n}") for i, n in ((0, 1), (2, 2))])
    if "label_emb.0.0.weight" in shapes:
        keys |= rename([(f"label_emb.0.{i}", f"add_embedding.linear_{n}") for i, n in ((0, 1), (2, 2))])
    for level in range(levels):
        start = 1 + level * (layers + 1)
        for index in range(layers):
            keys |= _stage(f"input_blocks.{start + index}", f"down_blocks.{level}", index, shapes)
        if level < levels - 1:
            keys |= rename([(f"input_blocks.{start + layers}.0.op", f"down_blocks.{level}.downsamplers.0.conv")])
    keys |= _resnet("middle_block.0", "mid_block.resnets.0", shapes) | _resnet(
        "middle_block.2", "mid_block.resnets.1", shapes
    )
    keys |= _attention("middle_block.1", "mid_block.attentions.0", shapes)
    for level in range(levels):
        for index in range(layers + 1):
            native = f"output_blocks.{level * (layers + 1) + index}"
            keys |= _stage(native, f"up_blocks.{level}", index, shapes)
            for position in (1, 2):
                if f"{native}.{position}.conv.weight" in shapes:
                    keys |= rename([(f"{native}.{position}.conv", f"up_blocks.{level}.upsamplers.0.conv")])
    return keys


def unet_lora_names(context: tuple[int, ...]) -> LoraNames:
    """Returns the names of LoRA files of a UNet whose text has one of these widths."""
    return LoraNames(
        prefixes=UNET_LORA_PREFIXES,
        diffusers=UNET_LORA_DIFFUSERS,
        native=UNET_LORA_NATIVE,
        sizes={CROSS_ATTENTION: context},
        aliases=_with_processors,
        alias_names=UNET_LORA_DIFFUSERS.replace("to_[qkv]", r"processor\.to_[qkv]").replace(
            r"to_out\.0", r"processor\.to_out"
        ),
        alias_prefixes=("unet.", ""),
        twins=(("add_embedding", "class_embedding"),),
    )


def _with_processors(keymap: KeyMap) -> KeyMap:
    """The names of LoRAs that diffusers saved as attention processors, which ComfyUI takes without a prefix or behind unet."""
    aliases: KeyMap = {}
    for key, part in keymap.items():
        path = re.sub(r"\.to_([qkv])\.weight$", r".processor.to_\1.weight", key)
        aliases[re.sub(r"\.to_out\.0\.weight$", ".processor.to_out.weight", path)] = part
    return aliases


def read_native(shapes: Shapes) -> tuple[dict[str, object], KeyMap]:
    """UNet2DConditionModel's configuration, read off the original file's shapes, and its key map."""
    blocks = count_blocks(shapes, "input_blocks")
    downs = [n for n in range(1, blocks) if f"input_blocks.{n}.0.op.weight" in shapes]
    layers = (downs[0] if downs else blocks) - 1
    levels = len(downs) + 1
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    channels = [shapes[f"input_blocks.{n}.0.in_layers.2.weight"][0] for n in firsts]
    depths = [count_blocks(shapes, f"input_blocks.{n}.1.transformer_blocks") for n in firsts]
    middle = count_blocks(shapes, "middle_block.1.transformer_blocks")
    context = shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1]
    linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    config: dict[str, object] = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": tuple(channels),
        "layers_per_block": layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        "transformer_layers_per_block": (*[depth or 1 for depth in depths[:-1]], middle),
        "cross_attention_dim": context,
        "use_linear_projection": linear,
        # Named head "dim" in diffusers for history's sake: it is the number of heads.
        "attention_head_dim": tuple(width // 64 for width in channels) if linear else 8,
    }
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return config, native_keys(shapes, levels, layers)


@dataclass(kw_only=True)
class UNetDenoiser(DiffusersDenoiser):
    """A UNet of diffusers; a family adds `predict`."""

    def run(
        self, noisy_BCHW: Tensor, sigma_B: Tensor, text_BLD: Tensor, added: dict[str, Tensor] | None = None
    ) -> Tensor:
        """The UNet's own prediction, fp32."""
        output = self.module(
            self.objective.network_input(noisy_BCHW, sigma_B).to(self.dtype),
            self.objective.timestep(sigma_B),
            encoder_hidden_states=text_BLD.to(self.dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )
        return output[0].float()

    def file_key(self, module_path: str) -> str:
        return "lora_unet_" + module_path.replace(".", "_")
