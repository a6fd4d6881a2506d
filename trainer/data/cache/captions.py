"""Encoded captions for training: from the cache, or made when they are needed, where every visit has a new text."""

from torch import Tensor

from ...types import EncoderIdentity
from .fill import encode_prompt
from .keys import View, prompt_key, prompt_of
from .online import Items, Recent, SharedEncoders


class EncodedCaptions:
    """What the text encoders give for a caption."""

    def __init__(self, cache: Items, identity: EncoderIdentity, encoders: SharedEncoders) -> None:
        """The encoders are loaded when the first text is not in the cache."""
        self._cache, self._identity, self._encoders = cache, identity, encoders
        self._recent = Recent()

    def of(self, view: View, caption: str) -> dict[str, Tensor]:
        """Encoded one by one, so that the result does not depend on what else is in a batch."""
        key = prompt_key(view, caption, self._identity)
        if not self._cache.missing([key]):
            return self._cache.get(key)
        return self._recent.get(key, lambda: self._encoded(view, caption))

    def _encoded(self, view: View, caption: str) -> dict[str, Tensor]:
        with self._encoders.use() as encoders:
            made = encode_prompt(prompt_of(view, caption, self._identity), encoders, self._identity.text_pixels)
        return {name: tensor.cpu() for name, tensor in made.items()}
