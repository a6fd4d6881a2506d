"""Where a base model comes from: a diffusers folder or one safetensors file. Only headers are read until asked.

Keys come without the `model.diffusion_model.` prefix of full checkpoints; the rest of such a file (VAE, encoders) stays
reachable under its own names.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import ModelFileError
from ...storage.mapped_files import load_tensors
from ...storage.tensor_file import TensorFile, other_kind
from ...types import Json, Shapes

DENOISER_PREFIX = "model.diffusion_model."
QUANTO_MAP = "quanto_qmap.json"
SAFE = (".safetensors", ".sft")
NAMED_BY = ("modelspec.title", "modelspec.architecture")
"""Metadata that say what a file is."""
PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
MARKS = {"v_pred", "ztsnr"}
"""Keys without weights that tell how a checkpoint predicts."""
SCALES = (".scale_weight", ".weight_scale")
"""What a weight is multiplied with that is stored as fp8 (ComfyUI's older and newer files)."""
BESIDE = (".scale_input", ".input_scale", ".comfy_quant")
"""What else such files hold per module: for arithmetic in fp8, which is not used here."""
SCALED = "scaled_fp8"
"""An empty tensor that older files are marked with."""
LORA_MARKS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".hada_w1_a", ".lokr_w1", ".dora_scale")


@dataclass
class Source:
    """A base on disk. `denoiser` lists the denoiser's tensors whatever the layout."""

    path: Path
    denoiser_files: tuple[Path, ...]
    prefix: str = ""
    config: Mapping[str, Any] | None = None
    """The diffusers configuration of the denoiser; None for a file in the original layout."""
    encoders: Path | None = None
    """A diffusers folder with text encoders, tokenizers and VAE."""
    vae: Path | None = None
    """Another VAE: a safetensors file or a diffusers folder."""
    tokenizers: str = ""
    """A ComfyUI folder, or another one, with CLIP's tokenizer, for a checkpoint that holds its own text encoders."""
    headers: dict[Path, Shapes] = field(default_factory=dict)

    @property
    def is_diffusers(self) -> bool:
        return self.config is not None

    @cached_property
    def shapes(self) -> Shapes:
        """Names and shapes of the denoiser's tensors, prefix removed."""
        merged = {key: shape for file in self.denoiser_files for key, shape in self.headers[file].items()}
        return {
            key.removeprefix(self.prefix): shape
            for key, shape in merged.items()
            if (key.startswith(self.prefix) or key in MARKS) and not _is_scale(key)
        }

    @cached_property
    def scheduler(self) -> Json:
        """The diffusers folder's scheduler settings; empty for a file."""
        file = self.path / "scheduler" / "scheduler_config.json"
        return read_json(file) if file.is_file() else {}

    @cached_property
    def index(self) -> Json:
        """What the diffusers folder says of itself, in its model_index.json; empty for a file, or a folder without one."""
        file = self.path / "model_index.json"
        return read_json(file) if file.is_file() else {}

    @cached_property
    def names(self) -> list[str]:
        """What it is called: its file's or folder's name, and what a file's metadata call it."""
        return names_of_file(self.path)

    @property
    def pipeline(self) -> str:
        """Name of the diffusers folder's pipeline; "" for a file, or a folder that does not say."""
        return str(self.index.get("_class_name", ""))

    @cached_property
    def quanto_map(self) -> Json | None:
        """optimum-quanto's map of quantized modules, if the denoiser's folder has one."""
        file = self.denoiser_files[0].parent / QUANTO_MAP
        return read_json(file) if self.is_diffusers and file.is_file() else None

    def tensors(self) -> dict[str, Tensor]:
        """The denoiser's tensors, mapped from the file unless that lies on a network drive, prefix removed. Raises ModelFileError for weights quantized to integers."""
        tensors = {key: tensor for key, tensor in self._stored().items() if not _is_scale(key)}
        packed = [key for key, t in tensors.items() if key.endswith(".weight") and not t.is_floating_point()]
        if packed and self.quanto_map is None:
            raise ModelFileError(
                f"{self.path}: {packed[0]} is quantized to {str(tensors[packed[0]].dtype).removeprefix('torch.')}, which cannot be trained on here: give the bf16, fp16 or fp8 file, with model.quantize where memory is short"
            )
        return tensors

    def scales(self) -> dict[str, Tensor]:
        """Returns {weight: factor on it} of a scaled fp8 file, fp32. Raises ModelFileError for factors per row or block."""
        found = {}
        for key, tensor in self._stored().items():
            if key.endswith(SCALES):
                if tensor.numel() != 1:
                    raise ModelFileError(
                        f"{self.path}: {key} holds {tensor.numel()} factors; files with one per weight can be trained on, or give the bf16 file"
                    )
                found[f"{key.rpartition('.')[0]}.weight"] = tensor.reshape(()).float()
        return found

    def _stored(self) -> dict[str, Tensor]:
        return {
            key.removeprefix(self.prefix): tensor
            for file in self.denoiser_files
            for key, tensor in load_tensors(file).items()
            if key.startswith(self.prefix) and key not in MARKS
        }

    def encoder_folder(self) -> Path:
        """The folder that encoders are loaded from. Raises ModelFileError if there is none."""
        if self.encoders is None:
            raise ModelFileError(
                f"{self.path} holds no text encoders that are read from a file: set model.encoders to a diffusers folder that has them"
            )
        return self.encoders


def names_of_file(path: Path) -> list[str]:
    """The name of a model's file or folder, and what its metadata call it, where it can still be read."""
    if path.is_dir() or path.suffix.lower() not in SAFE:
        return [path.name if path.is_dir() else path.stem]
    try:
        metadata = TensorFile(path).metadata
    except ModelFileError:  # a host has loaded it already, and it may have been moved since
        metadata = {}
    return [path.stem, *(metadata[name] for name in NAMED_BY if name in metadata)]


def _is_scale(key: str) -> bool:
    return key.endswith((*SCALES, *BESIDE)) or key.rpartition(".")[2] == SCALED


def open_source(base: str, encoders: str = "", vae: str = "", tokenizers: str = "") -> Source:
    """Look at a base model without loading it. Raises ModelFileError with what is wrong and what to do."""
    path = Path(base).expanduser()
    folder = _encoder_folder(encoders) if encoders else None
    if not path.exists():
        is_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None  # owner/name, as the hub spells its ids
        remedy = (
            f": if it is an id of the Hugging Face hub, download it first: hf download {base} --local-dir {path.name}"
        )
        raise ModelFileError(f"model.base: {path} does not exist{remedy if is_hub else ''}")
    source = _open_folder(path, folder or path) if path.is_dir() else _open_file(path, folder)
    refuse_lora(path, source.shapes)
    source.vae, source.tokenizers = _other_vae(vae) if vae else None, tokenizers
    return source


def _other_vae(vae: str) -> Path:
    path = Path(vae).expanduser()
    if path.suffix.lower() in PICKLES:
        raise ModelFileError(
            f"model.vae: {path} is a pickle, which can run code when opened: give the .safetensors file"
        )
    if not path.exists():
        raise ModelFileError(f"model.vae: {path} does not exist")
    return path


def _encoder_folder(encoders: str) -> Path:
    folder = Path(encoders).expanduser()
    if not folder.is_dir():
        raise ModelFileError(
            f"model.encoders: {folder} is not a folder; give a diffusers folder with text_encoder, tokenizer and vae"
        )
    return folder


def _open_folder(path: Path, encoders: Path) -> Source:
    part = next((path / name for name in ("transformer", "unet") if (path / name).is_dir()), None)
    if part is None:
        raise ModelFileError(f"{path} has neither a transformer nor a unet folder: it is not a diffusers model")
    config_file = part / "config.json"
    if not config_file.is_file():
        raise ModelFileError(f"{part} has no config.json: the diffusers folder is incomplete, copy it again")
    files = tuple(sorted(part.glob("*.safetensors")))
    plain = tuple(file for file in files if ".fp16" not in file.name)
    files = plain or files
    if not files:
        raise ModelFileError(f"{part} has no .safetensors file (pickled .bin weights are not read, for safety)")
    config = read_json(config_file)
    return Source(path, files, config=config, encoders=encoders, headers={file: read_shapes(file) for file in files})


def _open_file(path: Path, encoders: Path | None) -> Source:
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise ModelFileError(
            f"{path} is a pickle, which can run code when opened: convert it to .safetensors first (ComfyUI's CheckpointSave, or safetensors.torch.save_file)"
        )
    if suffix == ".gguf":
        raise ModelFileError(
            f"{path} is a GGUF file: its quantized weights cannot be trained on here, use the .safetensors file"
        )
    if suffix != ".safetensors":
        raise ModelFileError(f"{path} is not a .safetensors file or a diffusers folder")
    shapes = read_shapes(path)
    prefix = DENOISER_PREFIX if any(key.startswith(DENOISER_PREFIX) for key in shapes) else ""
    return Source(path, (path,), prefix=prefix, encoders=encoders, headers={path: shapes})


def read_json(path: Path) -> Json:
    """A diffusers folder's settings. Raises ModelFileError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not readable JSON ({error}): copy it again") from error


def read_shapes(path: Path) -> Shapes:
    """Names and shapes in a safetensors file, read from its header. Raises ModelFileError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        said = other_kind(path) or f"is damaged or truncated ({error}): download or copy it again"
        raise ModelFileError(f"{path} {said}") from error
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror or error}") from error


def refuse_lora(path: Path, shapes: Shapes) -> None:
    """Raise ModelFileError for a file that holds a LoRA, by the names of its tensors."""
    if any(mark in key for key in shapes for mark in LORA_MARKS):
        raise ModelFileError(
            f"model.base: {path} is a LoRA, not a base model; give it as network.init_from to start from it"
        )
