"""Text encoders, tokenizers and VAE of a base, whatever holds them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from ....errors import ModelFileError
from ....storage.fingerprint import files_identity, folder_identity
from ....storage.mapped_files import load_tensors
from ..encoders import Codec, KlCodec, encoder_parts, load_codec, load_network, load_tokenizer, require_parts
from ..family import Loading
from ..source import Source, read_json, read_shapes
from . import tokenizers
from .clip import load_clip, place_of, structure
from .vae import load_vae, read_config, vae_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
Options = Mapping[str, object]
"""What else decides the encodings, as JSON values."""


class EncoderParts(Protocol):
    """What a family builds its encoders of. Parts have the names of a diffusers folder's sub-folders."""

    def check(self, needed: Sequence[str]) -> None:
        """Raise ModelFileError unless everything in `needed` is there. Reads no weights."""

    def clip(self, name: str, kind: type, loading: Loading) -> nn.Module:
        """A CLIP text model, frozen; `kind` is transformers' class of it. Raises ModelFileError."""

    def tokenizer(self, encoder: str) -> "PreTrainedTokenizerBase":
        """The tokenizer of a text encoder. Raises ModelFileError."""

    def skeleton(self, name: str) -> nn.Module:
        """The structure of a text encoder on the device that is set. Raises ModelFileError."""

    def text_identity(self, options: Options) -> str:
        """Digest of all that decides what texts are encoded to."""

    def vae_identity(self, options: Options) -> str:
        """Digest of all that decides what images are encoded to."""


def parts_of(source: Source) -> EncoderParts:
    """What `source` takes its encoders from. Raises ModelFileError where it has none."""
    if source.encoders is None and _holds_clip(source):
        return CheckpointParts(source)
    return FolderParts(source.encoder_folder(), source)


def _holds_clip(source: Source) -> bool:
    return source.path.is_file() and place_of("text_encoder", source.headers[source.path]) is not None


@dataclass(frozen=True)
class FolderParts:
    """A diffusers folder; the VAE may be another one's."""

    folder: Path
    source: Source

    def check(self, needed: Sequence[str]) -> None:
        require_parts(self.folder, *[name for name in needed if name != "vae" or self.source.vae is None])

    def clip(self, name: str, kind: type, loading: Loading) -> nn.Module:
        return load_network(kind, self.folder, name, loading)

    def tokenizer(self, encoder: str) -> "PreTrainedTokenizerBase":
        return load_tokenizer(self.folder, TOKENIZERS[encoder])

    def skeleton(self, name: str) -> nn.Module:
        import transformers

        config = transformers.AutoConfig.from_pretrained(self.folder / name, trust_remote_code=False)
        config = getattr(config, "text_config", config)
        network: nn.Module = getattr(transformers, config.architectures[0])(config)
        return network

    def text_identity(self, options: Options) -> str:
        return folder_identity(self.folder, encoder_parts(self.folder), options)

    def vae_identity(self, options: Options) -> str:
        return _vae_identity(self.source.vae, options) or folder_identity(self.folder, ["vae"], options)


@dataclass(frozen=True)
class CheckpointParts:
    """A whole checkpoint: CLIP and VAE lie in the file, the tokenizers elsewhere."""

    source: Source

    def check(self, needed: Sequence[str]) -> None:
        file, shapes = self.source.path, self._shapes
        for name in needed:
            if name in TOKENIZERS and (place := place_of(name, shapes)) is None:
                raise ModelFileError(f"{file} lacks {name}: set model.encoders to a diffusers folder that has it")
            if name in TOKENIZERS:
                structure(name, place, shapes)  # type: ignore[arg-type]
        if self.source.vae is None and vae_prefix(shapes) is None:
            raise ModelFileError(f"{file} holds no VAE: set model.vae to one, or model.encoders to a diffusers folder")
        tokenizers.find(self.source.tokenizers)

    def clip(self, name: str, kind: type, loading: Loading) -> nn.Module:
        place = place_of(name, self._shapes)
        assert place is not None, "checked before"
        return load_clip(name, place, load_tensors(self.source.path), loading)

    def tokenizer(self, encoder: str) -> "PreTrainedTokenizerBase":
        place = place_of(encoder, self._shapes)
        open_clip = place is not None and place.open_clip
        return tokenizers.clip_tokenizer(self.source.tokenizers, pad="!" if open_clip else tokenizers.END)

    def skeleton(self, name: str) -> nn.Module:
        place = place_of(name, self._shapes)
        assert place is not None, "checked before"
        kind, config = structure(name, place, self._shapes)
        return kind(config)

    def text_identity(self, options: Options) -> str:
        """The tokenizers do not count: CLIP has one vocabulary, wherever it is read."""
        places = [place for name in TOKENIZERS if (place := place_of(name, self._shapes)) is not None]
        return _digest(options, *(files_identity([self.source.path], place.prefix) for place in places))

    def vae_identity(self, options: Options) -> str:
        own = vae_prefix(self._shapes)
        found = _vae_identity(self.source.vae, options)
        return found or _digest(options, files_identity([self.source.path], own or ""))

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self.source.headers[self.source.path])


def _digest(options: Options, *digests: str) -> str:
    return hashlib.sha256(" ".join([json.dumps(dict(options), sort_keys=True), *digests]).encode()).hexdigest()


def _vae_identity(vae: Path | None, options: Options) -> str:
    """Digest of a VAE by itself; "" where there is none."""
    if vae is None:
        return ""
    if vae.is_dir():
        return folder_identity(vae, [_vae_folder(vae)], options)
    return _digest(options, files_identity([vae], vae_prefix(read_shapes(vae)) or ""))


def _vae_folder(vae: Path) -> str:
    """Returns the sub-folder of a diffusers model with the VAE; "." where the folder is one."""
    return "vae" if (vae / "vae").is_dir() else "."


def codec_of(source: Source, loading: Loading) -> Codec:
    """The VAE of a base: the one in model.vae, the folder's, or the checkpoint's own; in fp32. Raises ModelFileError."""
    single = Loading(dtype=torch.float32, device=loading.device)
    if source.vae is not None and source.vae.is_dir():
        return load_codec(source.vae, loading, _vae_folder(source.vae))
    if source.vae is not None:
        return KlCodec(load_vae(source.vae, single))
    if source.encoders is None and _holds_clip(source):
        return KlCodec(load_vae(source.path, single))
    return load_codec(source.encoder_folder(), loading)


def check_vae(source: Source, channels: int) -> None:
    """Raise ModelFileError where model.vae is no VAE, or one of another number of latent channels. Reads headers only."""
    vae = source.vae
    if vae is None:
        return
    if vae.is_dir():
        require_parts(vae, _vae_folder(vae))
        config = read_json(vae / _vae_folder(vae) / "config.json")
        found = config.get("latent_channels", config.get("z_dim", channels))
        if config.get("_class_name") == "AutoencoderKLFlux2":
            channels //= 4  # patches of 2 x 2
    else:
        shapes = read_shapes(vae)
        prefix = vae_prefix(shapes)
        if prefix is None:
            raise ModelFileError(f"model.vae: {vae} holds no VAE that is read from a file: give a diffusers folder")
        inner = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        found = read_config(vae, inner)["latent_channels"]
    if found != channels:
        raise ModelFileError(
            f"model.vae: {vae} makes latents of {found} channels, this model has {channels}: give its own VAE"
        )
