"""What is known of model families beyond what a loaded model tells by itself: targets by native name, good defaults.

A model that is not in the table trains too, with the generic preset.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from ....trainer.diffusion.denoiser import Targets
from ....trainer.diffusion.timesteps import ResolutionShift

_UNET_ATTENTION = r"attn[12]\.(to_[qkv]|to_out\.0)"
_UNET_BLOCK = rf"transformer_blocks\.\d+\.({_UNET_ATTENTION}|ff\.net\.(0\.proj|2))"
UNET = {
    "default": Targets(
        rf"\.1\.({_UNET_BLOCK}|proj_in|proj_out)$", "attention, feed-forward and the projections round them"
    ),
    "attention": Targets(rf"{_UNET_ATTENTION}$", "all projections of attention"),
    "attention+mlp": Targets(rf"{_UNET_BLOCK}$", "attention and feed-forward"),
    "conv": Targets(
        rf"\.1\.({_UNET_BLOCK}|proj_in|proj_out)$|(in_layers\.2|out_layers\.3|skip_connection|\.op|\.conv)$",
        "default and the convolutions",
    ),
    "all": Targets(r".", "every Linear and convolution"),
}
SD3 = {
    "default": Targets(r"joint_blocks\.\d+\.(x|context)_block\.attn2?\.(qkv|proj)$", "attention"),
    "attention": Targets(r"joint_blocks\.\d+\.(x|context)_block\.attn2?\.(qkv|proj)$", "all projections of attention"),
    "attention+mlp": Targets(
        r"joint_blocks\.\d+\.(x|context)_block\.(attn2?\.(qkv|proj)|mlp\.fc[12])$", "attention and feed-forward"
    ),
    "all": Targets(r".", "every Linear and convolution"),
}
FLUX = {
    "default": Targets(r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)$|single_blocks\.\d+\.linear[12]$", "attention"),
    "attention": Targets(
        r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)$|single_blocks\.\d+\.linear[12]$",
        "attention (in single blocks with the feed-forward fused to it)",
    ),
    "attention+mlp": Targets(
        r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02])$|single_blocks\.\d+\.linear[12]$",
        "attention and feed-forward",
    ),
    "all": Targets(r".", "every Linear"),
}
LUMINA2 = {
    "default": Targets(r"(layers|refiner)\.\d+\.attention\.(qkv|out)$", "attention"),
    "attention": Targets(r"(layers|refiner)\.\d+\.attention\.(qkv|out)$", "all projections of attention, q k v as one"),
    "attention+mlp": Targets(
        r"(layers|refiner)\.\d+\.(attention\.(qkv|out)|feed_forward\.w[123])$", "attention and feed-forward"
    ),
    "all": Targets(r".", "every Linear"),
}
_QWEN_ATTENTION = r"attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
QWEN = {
    "default": Targets(rf"transformer_blocks\.\d+\.{_QWEN_ATTENTION}$", "attention"),
    "attention": Targets(rf"transformer_blocks\.\d+\.{_QWEN_ATTENTION}$", "all projections of attention"),
    "attention+mlp": Targets(
        rf"transformer_blocks\.\d+\.({_QWEN_ATTENTION}|(img|txt)_mlp\.net\.(0\.proj|2))$", "attention and feed-forward"
    ),
    "all": Targets(r".", "every Linear"),
}


@dataclass(frozen=True, kw_only=True)
class KnownFamily:
    targets: Mapping[str, Targets]
    bucket_step: int = 16
    """Bucket sides are multiples of this many pixels."""
    training_shift: float | ResolutionShift | None = None
    """Shift of trained noise levels; None takes the model's own sampling shift."""
    conditions: Mapping[str, float] = field(default_factory=dict)
    """Values added to every conditioning while training, e.g. Flux's guidance."""
    blocks: tuple[str, ...] = ()
    """Class names of the blocks that gradient checkpointing recomputes."""


_DIT = 16
KNOWN: dict[str, KnownFamily] = {
    "BaseModel": KnownFamily(targets=UNET, bucket_step=64, blocks=("BasicTransformerBlock", "ResBlock")),
    "SDXL": KnownFamily(targets=UNET, bucket_step=64, blocks=("BasicTransformerBlock", "ResBlock")),
    "SD3": KnownFamily(targets=SD3, training_shift=3.0, blocks=("JointBlock",)),
    "Flux": KnownFamily(
        targets=FLUX,
        training_shift=ResolutionShift(),
        conditions={"guidance": 1.0},
        blocks=("DoubleStreamBlock", "SingleStreamBlock"),
    ),
    "Lumina2": KnownFamily(targets=LUMINA2, training_shift=ResolutionShift(), blocks=("JointTransformerBlock",)),
    "QwenImage": KnownFamily(
        targets=QWEN,
        training_shift=ResolutionShift(max_tokens=8192, max_shift=0.9),
        blocks=("QwenImageTransformerBlock",),
    ),
}


def known(class_name: str) -> KnownFamily | None:
    """By the class name of the loaded model; SD1 and SD2 are ComfyUI's plain BaseModel with a UNet."""
    return KNOWN.get(class_name)


def generic(module: nn.Module) -> KnownFamily:
    """For a model nobody described: all attention Linears found by name, else all Linears; blocks by repetition."""
    linears = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    attention = r"(attn|attention)[^.]*\..*|\.(to_[qkvo]|to_out\.\d|qkv|q_proj|k_proj|v_proj|o_proj|out_proj)$"
    found = any(re.search(attention, path) for path in linears)
    default = Targets(attention if found else r".", "all attention Linears found by name" if found else "all Linears")
    return KnownFamily(
        targets={"default": default, "all": Targets(r".", "every Linear and convolution")},
        blocks=repeated_blocks(module),
    )


def repeated_blocks(module: nn.Module) -> tuple[str, ...]:
    """Classes that stand more than once in a ModuleList: what a network is stacked of."""
    stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) > 1]
    names = [type(stack[0]).__name__ for stack in stacks if len({type(child) for child in stack}) == 1]
    return tuple(dict.fromkeys(name for name in names if name not in ("Linear", "Sequential", "FrozenLinear")))
