"""Random networks of CPU size: what tests and benchmarks run on. Same classes as the real ones, nothing downloaded."""

import math
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...seeding import generator
from .family import Tiny
from .newer_classes import newer_class

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch._ops import OpOverload
    from transformers import PretrainedConfig, PreTrainedTokenizerFast


class _NoDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Random fills of this thread leave their tensor as it is, so that torch's global generator is not touched."""

    def __torch_dispatch__(
        self,
        func: "OpOverload[..., object]",
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if draws and func.__name__.split(".")[0].endswith("_"):
            return cast(torch.Tensor, args[0]).zero_()
        assert not draws, f"{func} draws a new tensor: fill an empty one instead"
        return func(*args, **(kwargs or {}))


def random_network(
    cls: Callable[..., nn.Module], config: "Mapping[str, object] | PretrainedConfig", seed: int
) -> nn.Module:
    """A frozen network with seeded weights (also where the class starts at zero, so that gradients flow)."""
    no_draws = cast("Callable[[], AbstractContextManager[object]]", _NoDraws)  # its __init__ is untyped
    with no_draws():  # the class's own initialisation is thrown away, and must not use up another thread's numbers
        module: nn.Module = cls(**config) if isinstance(config, Mapping) else cls(config)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            _fill(name, tensor, seed)
    return module.requires_grad_(False).eval()


def _fill(name: str, tensor: torch.Tensor, seed: int) -> None:
    noise = torch.randn(tensor.shape, generator=generator(seed, "tiny", name))
    if tensor.ndim == 1:
        tensor.copy_((0 if name.endswith("bias") else 1) + 0.1 * noise)
    else:
        tensor.copy_(noise / math.sqrt(math.prod(tensor.shape[1:])))


def tiny_tokenizer(max_tokens: int) -> "PreTrainedTokenizerFast":
    """Letters as words, CLIP's <start> and <end> round every prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<start>", "<end>", "<unk>", *string.ascii_lowercase, *string.digits, " "]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>",
        model_max_length=max_tokens,
    )  # fmt: skip


def tiny_clip(
    seed: int, *, projection: bool, width: int = 32, tokens: int = 16
) -> "tuple[nn.Module, PreTrainedTokenizerFast]":
    """A random CLIP text encoder of CPU size and its tokenizer; `projection` adds the projected pooled vector."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=48, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=tokens, projection_dim=width, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return random_network(CLIPTextModelWithProjection if projection else CLIPTextModel, config, seed), tiny_tokenizer(
        tokens
    )


def tiny_t5(seed: int, *, width: int, tokens: int = 16) -> "tuple[nn.Module, PreTrainedTokenizerFast]":
    """A random T5 encoder of CPU size and its tokenizer."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=48, d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=4)
    return random_network(T5EncoderModel, config, seed), tiny_tokenizer(tokens)


def tiny_gemma(seed: int, *, width: int, tokens: int) -> "tuple[nn.Module, PreTrainedTokenizerFast]":
    """A random Gemma-2 of CPU size and its tokenizer."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=48, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=2 * tokens,
    )  # fmt: skip
    return random_network(Gemma2Model, config, seed), tiny_tokenizer(tokens)


def tiny_qwen3(seed: int, *, width: int, tokens: int, layers: int = 3) -> "tuple[nn.Module, PreTrainedTokenizerFast]":
    """A random Qwen3 of CPU size and its tokenizer."""
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(
        vocab_size=48, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=2 * tokens,
    )  # fmt: skip
    return random_network(Qwen3Model, config, seed), tiny_tokenizer(tokens)


def tiny_qwen(seed: int, *, width: int, tokens: int) -> "tuple[nn.Module, PreTrainedTokenizerFast]":
    """A random Qwen2.5-VL of CPU size and its tokenizer."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 48, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2 * tokens,
            "rope_parameters": rope, "rope_scaling": rope,  # transformers 5 reads the first, 4 the second
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
            "fullatt_block_indexes": [0],
        },
        image_token_id=45, video_token_id=46, vision_start_token_id=44, vision_end_token_id=47,
    )  # fmt: skip
    return random_network(Qwen2_5_VLForConditionalGeneration, config, seed), tiny_tokenizer(tokens)


def tiny_qwen3_vl(seed: int, *, width: int, tokens: int, layers: int) -> "tuple[nn.Module, PreTrainedTokenizerFast]":
    """A random Qwen3-VL of CPU size and its tokenizer. Raises ConfigError where transformers has no such class."""
    kind, configuration = newer_class("transformers", "Qwen3VLModel"), newer_class("transformers", "Qwen3VLConfig")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = configuration(
        text_config={
            "vocab_size": 48, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2 * tokens,
            "rope_parameters": rope, "rope_scaling": rope,  # transformers 5 reads the first, 4 the second
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
            "deepstack_visual_indexes": [],
        },
        image_token_id=45, video_token_id=46, vision_start_token_id=44, vision_end_token_id=47,
    )  # fmt: skip
    return random_network(kind, config, seed), tiny_tokenizer(tokens)


def tiny_frame_vae(seed: int) -> nn.Module:
    """AutoencoderKLQwenImage, 8 pixels per latent."""
    from diffusers import AutoencoderKLQwenImage

    return random_network(AutoencoderKLQwenImage, {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}, seed)


def tiny_alpha_vae(seed: int) -> nn.Module:
    """AutoencoderKLQwenImage21, 16 pixels per latent. Raises ConfigError where diffusers has no such class."""
    config = {"base_dim": 8, "decoder_base_dim": 8, "dim_mult": [1, 1, 1, 1, 1], "num_res_blocks": 1}
    return random_network(newer_class("diffusers", "AutoencoderKLQwenImage21"), config, seed)


def tiny_vae(seed: int, channels: int) -> nn.Module:
    """AutoencoderKL, 8 pixels per latent."""
    from diffusers import AutoencoderKL

    blocks = 4
    config = {
        "latent_channels": channels, "block_out_channels": (8,) * blocks, "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks,
    }  # fmt: skip
    return random_network(AutoencoderKL, config, seed)


def tiny_patched_vae(seed: int) -> nn.Module:
    """AutoencoderKLFlux2, 16 pixels per patch of latents."""
    from diffusers import AutoencoderKLFlux2

    blocks = 4
    config = {
        "block_out_channels": (8,) * blocks, "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks,
    }  # fmt: skip
    return random_network(AutoencoderKLFlux2, config, seed)


def save_folder(tiny: Tiny, folder: Path) -> Path:
    """Write the networks as a diffusers folder that `open_source` takes."""
    tiny.denoiser.module.save_pretrained(folder / tiny.part)  # type: ignore[operator]
    tiny.vae.save_pretrained(folder / "vae")  # type: ignore[operator]
    for name, (module, tokenizer) in tiny.text_parts.items():
        module.save_pretrained(folder / name)  # type: ignore[operator]
        tokenizer.save_pretrained(folder / name.replace("text_encoder", "tokenizer"))
    return folder
