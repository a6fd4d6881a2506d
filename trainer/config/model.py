"""Options of the base model: the [model] table, and the base LoRAs in it."""

from dataclasses import dataclass
from typing import Literal

from .section import Section, require

Quantize = Literal["none", "int8", "int4", "int2", "float8", "nf4"]
Matmul = Literal["off", "int8", "fp8"]
Attention = Literal["auto", "sdpa", "math", "efficient", "cudnn", "flash", "flash3", "xformers"]


@dataclass(frozen=True, kw_only=True)
class BaseLoraConfig(Section, table="model.base_lora"):
    """A frozen LoRA under the one that is trained, one [[model.base_lora]] table each."""

    file: str
    """The LoRA file, in any key format that sweeps read. Every key must belong to the base model."""
    strength: float = 1.0
    """Strength at which it is computed; 0 leaves it out."""
    use: Literal["training", "always"] = "always"
    """always: in training, samples and sweeps; it has to be loaded together with the LoRA that is trained on it. training: only while training, as de-distillation adapters are meant; samples, sweeps and the saved file are without it."""

    def check(self) -> None:
        require(bool(self.file.strip()), "model.base_lora.file", self.file, "give a LoRA file (.safetensors)")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section, table="model"):
    """The base model that a LoRA is trained for, and how it is kept in memory."""

    base: str
    """The base model: a diffusers folder, or one .safetensors file in the original layout."""
    family: str = "auto"
    """Name of the model family; auto detects it from the keys of the file."""
    variant: str = "auto"
    """Variant within the family, e.g. schnell, or sd1-v for a v-prediction file; auto detects it from the file. The de-distilled fluxbooru and libreflux (which masks T5's padding) look like dev and schnell: name them."""
    encoders: str = ""
    """A diffusers folder with text encoders, tokenizers and VAE. A whole checkpoint of SD1, SD2 or SDXL needs none: it holds its own."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype in which the frozen base model is kept in memory, or a full fine-tune keeps its weights; auto is the file's own on a GPU and float32 on a CPU."""
    quantize: Quantize = "none"
    """Quantizes the frozen base model: it takes less memory, steps are slower, predictions differ slightly. nf4 has 4.5 bits a weight (bitsandbytes, as QLoRA), the others are optimum-quanto's: 8, 4 or 2 bits and scales. It stays for the length of a run."""
    device: str = "auto"
    """Device that trains: cpu, cuda, cuda:1, mps; auto takes the first accelerator there is."""
    base_lora: tuple[BaseLoraConfig, ...] = ()
    """Base LoRAs: frozen ones under the LoRA that is trained, one [[model.base_lora]] table each."""

    vae: str = ""
    """Another VAE than the base model's own: a .safetensors file (AutoencoderKL) or a diffusers folder."""
    tokenizers: str = ""
    """Where CLIP's tokenizer is read for a whole checkpoint: a ComfyUI folder, a diffusers folder, or the folder of vocab.json and merges.txt. Empty: the ComfyUI that this pack lies in, or an installed open_clip_torch."""

    attention: Attention = "auto"
    """Kernel of the attention, for models whose network in diffusers leaves a choice (Flux, FLUX.2, Chroma, Krea 2, Qwen-Image, Z-Image). auto and sdpa are torch's own, which takes the fastest that it has; math, efficient and cudnn are parts of it; flash, flash3 and xformers are libraries. Kernels round differently, so it stays for the length of a run. SageAttention has no gradient."""

    matmul: Matmul = "off"
    """Multiplies by the frozen base in 8-bit numbers, forward and to the input's gradient: int8 or fp8 (float8), where the device has such products. Linears in the network's blocks are kept in 8 bits with a factor a row; a file that holds such numbers is taken as it is. Gradients are rounded: by how much is measured once, and stands in the log and run.json. It stays for the length of a run, and takes the place of quantize."""

    @property
    def packing(self) -> str:
        """What the weights of Linears are packed to, as a value of `quantize`."""
        return packing_of(self.quantize, self.matmul)

    def check(self) -> None:
        require(bool(self.base.strip()), "model.base", self.base, "give a diffusers folder or a .safetensors file")
        check_packing(self.quantize, self.matmul, "model.")


def packing_of(quantize: str, matmul: str) -> str:
    """What the weights of Linears are packed to, as a value of `model.quantize`."""
    return {"off": quantize, "int8": "int8", "fp8": "float8"}[matmul]


def check_packing(quantize: str, matmul: str, table: str = "") -> None:
    """Raise ConfigError for weights that are to be packed twice. `table` is what the options' names begin with."""
    require(
        matmul == "off" or quantize == "none",
        f"{table}matmul",
        matmul,
        f"it keeps the base in 8 bits of its own, and quantize = {quantize!r} in others; use quantize = 'none', or matmul = 'off'",
    )
