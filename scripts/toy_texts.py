"""Toy text encoders that ComfyUI's own classes and transformers both build: sizes, letters as tokens, what is read."""

import math
from dataclasses import dataclass
from typing import Any

PROMPTS = {"short": "a cat", "long": "the quick brown fox jumps over the lazy dog " * 2, "longer": "abcdefghij " * 15}
"""With letters as tokens: less than one chunk of 75, two chunks, three."""
WEIGHTED = {
    "words": "a (red:1.4) cat ((big)) and (a (small:0.5) one:1.2), \\(really\\)",
    "cut": f"{'x' * 72}(tiny:1.5)(a segment that is long:0.8) {'y' * 60}",
    "odd": "a) lone (bracket, (here:x) and (:1.3) (there:2",
}
"""Weights that nest, segments at the end of a chunk, and parentheses that mean nothing."""

CLIP = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
    "max_position_embeddings": 77, "projection_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3,
    "layer_norm_eps": 1e-5,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClipCase:
    """How one of the host's CLIPs is read."""

    layer: int | None
    """Counted from the end; None is the host's "last"."""
    normalise: bool
    pad: int
    """Token behind the prompt's end."""
    activation: str


CLIPS = {
    "sd1": ClipCase(layer=None, normalise=True, pad=3, activation="quick_gelu"),
    "sd1-skip2": ClipCase(layer=-2, normalise=True, pad=3, activation="quick_gelu"),
    "sd2": ClipCase(layer=-2, normalise=True, pad=0, activation="gelu"),
    "sdxl-l": ClipCase(layer=-2, normalise=False, pad=3, activation="quick_gelu"),
    "sdxl-g": ClipCase(layer=-2, normalise=False, pad=0, activation="gelu"),
    "sdxl-g-skip3": ClipCase(layer=-3, normalise=False, pad=0, activation="gelu"),
}


T5 = (6, 40)
"""What SD3's T5 is taken to say, tokens and width."""


class Letters:
    """A tokenizer whose words are letters, with what ComfyUI and the engine ask of CLIP's."""

    bos_token_id, eos_token_id = 1, 3

    def __init__(self, pad: int = 3) -> None:
        self.pad_token_id = pad

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> "Letters":
        return cls()

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1, *(4 + (ord(letter) % 44) for letter in text), 3]}

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(48)}


VISION = {
    "depth": 8, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
    "fullatt_block_indexes": [7], "window_size": 112,
}  # fmt: skip
LANGUAGE = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
}  # fmt: skip
QWEN3 = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
}  # fmt: skip
QWEN3_READS = {"penultimate": ((-2,), 0), "three": ((1, 2, 3), 4)}
"""Layers of Qwen3 that models read, and tokens of padding behind the text: Z-Image the last but one, FLUX.2 Klein three."""
MROPE = [2, 3, 3]
PICTURE, SECOND = (140, 196), (112, 84)
"""Rows and columns of pictures in pixels: 10 x 14 patches, 5 x 7 tokens, more than one window; and a smaller one."""
BEFORE, BETWEEN, AFTER = list(range(5, 15)), [20, 31, 32, 33, 14], list(range(20, 29))
"""Tokens round the pictures: 14 begins one, 20 ends it."""


def picture(size: tuple[int, int] = PICTURE) -> Any:
    """(3, H, W) in [-1, 1]: slow waves, another one per colour."""
    import torch

    rows, columns = (torch.arange(n, dtype=torch.float32) for n in size)
    waves = [torch.sin(rows[:, None] * (c + 1) / 20 + columns[None, :] * math.pi / (30 + 10 * c)) for c in range(3)]
    return torch.stack(waves)


def toy_clip(kind: str, toy_tensor: Any) -> Any:
    """ComfyUI's CLIP of "sd1", "sd2" or "sdxl" with its own tokenizer, as wide as the text of the toys. Needs ComfyUI."""
    import comfy.sd
    import torch
    from comfy import sd1_clip, sdxl_clip
    from comfy.text_encoders import sd2_clip

    def sizes(width: int) -> dict[str, int]:
        return {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_hidden_layers": 3}

    class Target:
        params: dict[str, Any] = {}  # noqa: RUF012
        clip, tokenizer = {
            "sd1": (sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer),
            "sd2": (sd2_clip.SD2ClipModel, sd2_clip.SD2Tokenizer),
            "sdxl": (sdxl_clip.SDXLClipModel, sdxl_clip.SDXLTokenizer),
        }[kind]

    configs = {"clip_l": sizes(16 if kind == "sdxl" else 32), "clip_h": sizes(32), "clip_g": sizes(32)}
    options = {f"{name}_model_config": config for name, config in configs.items()}
    made = comfy.sd.CLIP(Target, model_options={"dtype": torch.float32, **options})
    with torch.no_grad():
        for key, tensor in made.cond_stage_model.state_dict().items():
            tensor.copy_(toy_tensor(key, tuple(tensor.shape)))
    return made
