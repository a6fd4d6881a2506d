"""Text encoders and VAEs that several families share, through transformers and diffusers. L tokens, D width."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError, ModelFileError
from ...weights.quantize import quantize
from .family import Loading
from .newer_classes import newer_class
from .source import read_json
from .text.prompt_weights import Specials, emphasise, lay_out, segments

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

CLIP_OPTIONS = ("clip_tokens", "clip_skip", "prompt_weights")
"""What may be chosen where CLIP alone is read."""


def require_parts(folder: Path, *names: str) -> None:
    """Raise ModelFileError unless the diffusers folder has these sub-folders."""
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise ModelFileError(
            f"{folder} lacks {', '.join(missing)}: it needs {', '.join(names)} (set model.encoders to a folder that has them)"
        )


def load_tokenizer(folder: Path, name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer in a sub-folder of a diffusers folder; code that the folder brings is not run. Raises ModelFileError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder / name, trust_remote_code=False)
    except Exception as error:  # the parser of tokenizer.json raises plain Exception
        raise ModelFileError(
            f"cannot load the tokenizer in {folder / name}: {error or type(error).__name__}"
        ) from error


def load_network(cls: type, folder: Path, name: str, loading: Loading) -> nn.Module:
    """A transformers or diffusers network of a diffusers folder, frozen; on the meta device its structure alone, no file of
    weights is opened. Raises ModelFileError, also for missing tensors."""
    if loading.device.type == "meta":
        return _structure(cls, folder / name, loading)
    try:
        module, found = cls.from_pretrained(  # type: ignore[attr-defined]
            folder / name, torch_dtype=loading.dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelFileError(f"cannot load {folder / name}: {error}") from error
    odd = {*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])}
    if odd:  # the library leaves these random, or on no device at all
        names = ", ".join(sorted(odd)[:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
        raise ModelFileError(f"{folder / name} lacks tensors, or has them in another shape: {names}; copy it again")
    if loading.quantize != "none" and not stays_whole(cls):
        quantize(module, loading.quantize, loading.dtype, loading.device)
    return module.to(loading.device).requires_grad_(False).eval()


def stays_whole(cls: type) -> bool:
    """Whether a text encoder is not quantized: CLIP's are small, and the smaller they are the more it costs."""
    return cls.__name__.startswith("CLIP")


def _structure(cls: Any, folder: Path, loading: Loading) -> nn.Module:
    """The network without weights. Raises ModelFileError."""
    try:
        with torch.device("meta"):
            if hasattr(cls, "load_config"):  # diffusers
                module: nn.Module = cls.from_config(cls.load_config(folder))
            else:
                module = cls(cls.config_class.from_pretrained(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"cannot read the configuration in {folder}: {error}") from error
    return module.to(loading.dtype).requires_grad_(False).eval()


class ClipText:
    """One CLIP text model: the hidden states of one layer, and the pooled vector."""

    def __init__(
        self,
        module: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_tokens: int,
        skip: int = 1,
        normalise: bool = True,
        chunks: int = 1,
        weighted: bool = False,
    ) -> None:
        """`skip` layers from the end (1 = the last); `normalise` applies the final layer norm to it; a prompt may take as
        many `chunks` of `max_tokens`; `weighted` reads (word:1.2) as ComfyUI does."""
        self.module, self.tokenizer, self.max_tokens = module, tokenizer, max_tokens
        self.skip, self.normalise, self.chunks, self.weighted = skip, normalise, chunks, weighted
        if not 1 <= skip <= (depth := clip_depth(module)):
            raise ConfigError(
                f"text.clip_skip: this CLIP has {depth} layers; use 1 to {depth}, or 0 for the family's own"
            )

    def tokens(self, prompt: str) -> Tensor:
        """Returns (chunks, L) ids. Every chunk has its own start and end; a prompt that is too long is cut after the last."""
        return self._tokens_and_weights(prompt)[0]

    def _tokens_and_weights(self, prompt: str) -> tuple[Tensor, Tensor]:
        parts = segments(prompt) if self.weighted else [(prompt, 1.0)]
        groups = [[(word, weight) for word in self._words(text)] for text, weight in parts]
        tokenizer = self.tokenizer
        specials = Specials(start=tokenizer.bos_token_id, end=tokenizer.eos_token_id, pad=tokenizer.pad_token_id)
        pairs = torch.tensor(lay_out(groups, self.max_tokens - 2, specials)[: self.chunks], dtype=torch.float64)
        return pairs[..., 0].long(), pairs[..., 1]

    def _words(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return ids[1:-1]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> tuple[list[Tensor], Tensor]:
        """Per prompt the hidden states (L, D) of its chunks side by side, and (B, P) pooled vectors of the first chunk
        (projected where the model projects), fp32 on the CPU."""
        return self._side_by_side(prompts, self.of_tokens)

    def with_gradient(self, prompts: Sequence[str]) -> tuple[list[Tensor], Tensor]:
        """The same on the network's device, with a gradient."""
        return self._side_by_side(prompts, self.read)

    def _side_by_side(
        self, prompts: Sequence[str], read: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[list[Tensor], Tensor]:
        made = [self._tokens_and_weights(prompt) for prompt in prompts]
        counts, weights_NL = [len(ids) for ids, _ in made], torch.cat([weights for _, weights in made])
        hidden_NLD, pooled_NP = read(torch.cat([ids for ids, _ in made]))
        if (weights_NL != 1).any():
            hidden_NLD = emphasise(hidden_NLD, read(self.tokens(""))[0], weights_NL)
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        return [part.flatten(0, 1) for part in torch.split(hidden_NLD, counts)], pooled_NP[firsts]

    @torch.no_grad()
    def of_tokens(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the hidden states (B, L, D) and the pooled vectors (B, P) of token ids, fp32 on the CPU."""
        hidden_BLD, pooled_BP = self.read(ids_BL)
        return hidden_BLD.cpu(), pooled_BP.cpu()

    def read(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The same on the network's device, with a gradient."""
        output = self.module(ids_BL.to(device_of(self.module)), output_hidden_states=True)
        hidden = output.hidden_states[-self.skip]
        if self.normalise:
            inner = getattr(self.module, "text_model", self.module)
            hidden = cast(nn.LayerNorm, inner.final_layer_norm)(hidden)
        pooled = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
        return hidden.float(), pooled.float()


def penultimate(
    module: nn.Module, tokenizer: "PreTrainedTokenizerBase", *, skip: int = 2, chunks: int = 1, weighted: bool = False
) -> ClipText:
    """CLIP as SDXL and SD3 read it: the layer before the last, without the final norm."""
    most = clip_tokens(module)
    return ClipText(module, tokenizer, max_tokens=most, skip=skip, normalise=False, chunks=chunks, weighted=weighted)


def side_by_side(firsts: Sequence[Tensor], seconds: Sequence[Tensor]) -> list[Tensor]:
    """The states (L, D) of two CLIPs on features; of unequal numbers of chunks the fewer, as in ComfyUI."""
    pairs = zip(firsts, seconds, strict=True)
    return [torch.cat([part[: min(map(len, pair))] for part in pair], dim=-1) for pair in pairs]


def clip_depth(module: nn.Module) -> int:
    """How many layers this CLIP has."""
    return int(module.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]


def clip_tokens(module: nn.Module) -> int:
    """How many tokens this CLIP reads at once."""
    return min(77, int(module.config.max_position_embeddings))  # type: ignore[union-attr, arg-type]


class T5Text:
    """A T5 encoder: its last hidden states, padded to a fixed length and unmasked, as Flux and SD3 were trained, or masked.

    A token that is masked for all others may as well not be there: neither T5 nor the networks give text tokens behind it a position
    that depends on it. So masked texts have their own length.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_tokens: int,
        usual: int = 0,
        masked: bool = False,
    ) -> None:
        """Prompts are padded to `usual` tokens where they fit, else to `max_tokens`; 0 = always to that. `masked` ones are only cut."""
        self.module, self.tokenizer = module, tokenizer
        self.max_tokens = min(max_tokens, tokenizer.model_max_length)
        self.usual, self.masked = min(usual or max_tokens, self.max_tokens), masked

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> list[Tensor]:
        """Returns the hidden states of each text, (L, D), fp32 on the CPU."""
        lengths = [self._length(prompt) for prompt in prompts]
        texts: dict[int, Tensor] = {}
        for length in sorted(set(lengths)):
            rows = [row for row, mine in enumerate(lengths) if mine == length]
            ids = tokenize(self.tokenizer, [prompts[row] for row in rows], length)["input_ids"]
            hidden_BLD = self.module(ids.to(device_of(self.module))).last_hidden_state.float().cpu()
            texts |= dict(zip(rows, hidden_BLD, strict=True))
        return [texts[row] for row in range(len(prompts))]

    def _length(self, prompt: str) -> int:
        if self.usual == self.max_tokens and not self.masked:
            return self.max_tokens
        words = self.tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
        if self.masked:
            return min(max(len(words), 1), self.max_tokens)
        return self.usual if len(words) <= self.usual else self.max_tokens


def tokenize(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], max_tokens: int) -> "BatchEncoding":
    """Token ids and mask (B, max_tokens): every prompt is padded or cut to that length."""
    return tokenizer(list(prompts), padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt")


def device_of(module: nn.Module) -> torch.device:
    """The device of a network's parameters."""
    return next(module.parameters()).device


class _Codec:
    """What diffusers' VAEs have in common."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def use_tiles(self) -> None:
        self.module.enable_tiling()  # type: ignore[operator]


class KlCodec(_Codec):
    """This codec is diffusers' AutoencoderKL."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.factor = 2 ** (len(module.config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        return self.module.encode(_like(pixels_BCHW, self.module)).latent_dist.mode().float()  # type: ignore[operator]

    @torch.no_grad()
    def decode(self, raw_BCHW: Tensor) -> Tensor:
        return self.module.decode(_like(raw_BCHW, self.module)).sample.float()  # type: ignore[operator]


class TinyCodec(_Codec):
    """This codec is diffusers' AutoencoderTiny (the TAESD architecture)."""

    factor = 8

    def use_tiles(self) -> None:
        """Raise ConfigError: diffusers' tiles of this VAE have four channels whatever the latents have."""
        if self.module.config.latent_channels != 4:  # type: ignore[union-attr]
            raise ConfigError(
                "memory.vae_tiling = true: the VAE of this base (AutoencoderTiny) has no tiles, and needs little memory without them; leave it out"
            )
        super().use_tiles()

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        return self.module.encode(_like(pixels_BCHW, self.module)).latents.float()  # type: ignore[operator]

    @torch.no_grad()
    def decode(self, raw_BCHW: Tensor) -> Tensor:
        return self.module.decode(_like(raw_BCHW, self.module)).sample.float()  # type: ignore[operator]


class FrameCodec(_Codec):
    """This codec is diffusers' AutoencoderKLQwenImage, a video VAE: an image is a film of one frame."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.factor = 2 ** len(module.config.temperal_downsample)  # type: ignore[union-attr, arg-type]

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        film_BCTHW = _like(pixels_BCHW, self.module).unsqueeze(2)
        return self.module.encode(film_BCTHW).latent_dist.mode().squeeze(2).float()  # type: ignore[operator]

    @torch.no_grad()
    def decode(self, raw_BCHW: Tensor) -> Tensor:
        film_BCTHW = _like(raw_BCHW, self.module).unsqueeze(2)
        return self.module.decode(film_BCTHW).sample.squeeze(2).float()  # type: ignore[operator]


class AlphaCodec(FrameCodec):
    """This codec is diffusers' AutoencoderKLQwenImage21: a FrameCodec of images with an opacity, which is full here."""

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        return super().encode(torch.cat([pixels_BCHW, torch.ones_like(pixels_BCHW[:, :1])], dim=1))

    def decode(self, raw_BCHW: Tensor) -> Tensor:
        return super().decode(raw_BCHW)[:, :3]


class PatchedCodec(_Codec):
    """This codec is diffusers' AutoencoderKLFlux2: latents in patches of 2 x 2, normalised by the statistics in the file."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.factor = 2 ** len(module.config.block_out_channels)  # type: ignore[union-attr, arg-type]

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (1, C, 1, 1) each."""
        norm = cast(nn.BatchNorm2d, self.module.bn)
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        return mean.view(1, -1, 1, 1), (variance.view(1, -1, 1, 1) + norm.eps).sqrt()

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        latents_BCHW = self.module.encode(_like(pixels_BCHW, self.module)).latent_dist.mode()  # type: ignore[operator]
        mean, deviation = self._statistics()
        return ((F.pixel_unshuffle(latents_BCHW, 2) - mean) / deviation).float()

    @torch.no_grad()
    def decode(self, raw_BCHW: Tensor) -> Tensor:
        mean, deviation = self._statistics()
        latents_BCHW = F.pixel_shuffle(_like(raw_BCHW, self.module) * deviation + mean, 2)
        return self.module.decode(latents_BCHW).sample.float()  # type: ignore[operator]


def _like(tensor: Tensor, module: nn.Module) -> Tensor:
    parameter = next(module.parameters())
    return tensor.to(device=parameter.device, dtype=parameter.dtype)


Codec = KlCodec | TinyCodec | FrameCodec | PatchedCodec


def load_codec(folder: Path, loading: Loading, name: str = "vae") -> Codec:
    """The VAE in a sub-folder of a diffusers folder, in fp32: SDXL's overflows in fp16, and latents are cached once."""
    import diffusers

    require_parts(folder, name)
    single = Loading(dtype=torch.float32, device=loading.device)
    kind = read_json(folder / name / "config.json").get("_class_name")
    if kind == "AutoencoderTiny":
        return TinyCodec(load_network(diffusers.AutoencoderTiny, folder, name, single))
    if kind == "AutoencoderKLFlux2":
        return PatchedCodec(load_network(diffusers.AutoencoderKLFlux2, folder, name, single))
    if kind == "AutoencoderKLQwenImage":
        return FrameCodec(load_network(diffusers.AutoencoderKLQwenImage, folder, name, single))
    if kind == "AutoencoderKLQwenImage21":
        return AlphaCodec(load_network(newer_class("diffusers", kind), folder, name, single))
    return KlCodec(load_network(diffusers.AutoencoderKL, folder, name, single))


def encoder_parts(source_folder: Path) -> list[str]:
    """Sub-folders of a diffusers model that decide what texts are encoded to."""
    return [path.name for path in source_folder.glob("*") if path.name.startswith(("text_encoder", "tokenizer"))]
