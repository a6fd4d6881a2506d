"""diffusers' AutoencoderKL over the tensors of a file: the VAE in a whole checkpoint, or one by itself, in either layout."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ....errors import ModelFileError
from ....storage.mapped_files import load_tensors
from ....types import Shapes
from ..family import Loading
from ..keymap import count_blocks
from ..modules import build
from ..source import read_shapes

PREFIXES = ("first_stage_model.", "vae.")
"""Where whole checkpoints have their VAE."""
_NEWER = "encoder.down_blocks.0.resnets.0.conv1.weight"
"""A tensor of the layout that diffusers writes."""


def vae_prefix(shapes: Shapes) -> str | None:
    """Returns the prefix of the VAE's tensors; "" in a file that is nothing else, None where there is no VAE."""
    if "decoder.conv_in.weight" in shapes:
        return ""
    return next((prefix for prefix in PREFIXES if f"{prefix}decoder.conv_in.weight" in shapes), None)


def load_vae(path: Path, loading: Loading) -> nn.Module:
    """Raises ModelFileError for a file without a VAE, or with one of another kind."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    shapes = read_shapes(path)
    prefix = vae_prefix(shapes)
    if prefix is None:
        raise ModelFileError(f"{path} holds no VAE: give a VAE's file, or a diffusers folder with one")
    inner = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    config = read_config(path, inner)
    tensors = {key.removeprefix(prefix): t for key, t in load_tensors(path).items() if key.startswith(prefix)}
    if _NEWER not in inner:
        tensors = convert_ldm_vae_checkpoint(_wanted(tensors), config)
    return build(AutoencoderKL, config, _wanted(tensors), loading)


def _wanted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out what training scripts add: the loss's own network and moving averages."""
    kept = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    return {key: tensor for key, tensor in tensors.items() if key.startswith(kept)}


def read_config(path: Path, shapes: Shapes) -> dict[str, object]:
    """AutoencoderKL's configuration, read off the shapes of either layout. Raises ModelFileError."""
    try:
        newer = _NEWER in shapes
        stem, blocks = ("encoder.down_blocks", "resnets") if newer else ("encoder.down", "block")
        depth = count_blocks(shapes, stem)
        channels = [shapes[f"{stem}.{i}.{blocks}.0.conv1.weight"][0] for i in range(depth)]
        return {
            "in_channels": shapes["encoder.conv_in.weight"][1],
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "latent_channels": shapes["decoder.conv_in.weight"][1],
            "block_out_channels": tuple(channels),
            "layers_per_block": count_blocks(shapes, f"{stem}.0.{blocks}"),
            "down_block_types": ("DownEncoderBlock2D",) * depth,
            "up_block_types": ("UpDecoderBlock2D",) * depth,
            "norm_num_groups": 32,
            "use_quant_conv": "quant_conv.weight" in shapes,
            "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        }
    except (KeyError, IndexError) as error:
        raise ModelFileError(
            f"{path} holds a VAE of a kind that is not read from files (no {error}): give a diffusers folder in model.encoders"
        ) from error
