"""Encoded captions for training: read from the cache, or encoded on demand where every draw has a new text."""

from torch import Tensor

from ...types import EncoderIdentity
from .fill import encode_prompt
from .keys import View, prompt_key, prompt_of
from .online import Items, Recent, SharedEncoders


class EncodedCaptions:
    """The outputs of the text encoders for captions, as the conditioning of a batch needs them."""

    def __init__(self, cache: Items, identity: EncoderIdentity, encoders: SharedEncoders) -> None:
        """The encoders are loaded when a text is requested that is not in the cache."""
        self._cache, self._identity, self._encoders = cache, identity, encoders
        self._recent = Recent()

    def of(self, view: View, caption: str) -> dict[str, Tensor]:
        """The tensors of one caption for one view, on the CPU. Texts are encoded one at a time, so that the result does not depend
        on the rest of the batch."""
        key = prompt_key(view, caption, self._identity)
        if not self._cache.missing([key]):
            return self._cache.get(key)
        return self._recent.get(key, lambda: self._encoded(view, caption))

    def _encoded(self, view: View, caption: str) -> dict[str, Tensor]:
        with self._encoders.use() as encoders:
            encoded = encode_prompt(prompt_of(view, caption, self._identity), encoders, self._identity.text_pixels)
        return {name: tensor.cpu() for name, tensor in encoded.items()}
