"""Encoded captions for training: from the cache, or made when they are needed, where every visit has a new text."""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from ..families.base import Encoders
from .cache import Cache
from .encode import EncoderIdentity, View, prompt_key, prompt_of
from .fill import encode_prompt

REMEMBERED = 64
"""Encodings of texts that are not in the cache, kept in memory."""


class Texts:
    """What the text encoders give for a caption."""

    def __init__(self, cache: Cache, identity: EncoderIdentity, load: Callable[[], Encoders]) -> None:
        """`load` is called when the first text is not in the cache."""
        self._cache, self._identity, self._load = cache, identity, load
        self._encoders: Encoders | None = None
        self._recent: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def of(self, view: View, caption: str) -> dict[str, Tensor]:
        """Encoded one by one, so that the result does not depend on what else is in a batch."""
        key = prompt_key(view, caption, self._identity)
        if not self._cache.missing([key]):
            return self._cache.get(key)
        if key not in self._recent:
            self._encoders = self._encoders or self._load()
            made = encode_prompt(prompt_of(view, caption, self._identity), self._encoders, self._identity.text_pixels)
            self._recent[key] = {name: tensor.cpu() for name, tensor in made.items()}
        self._recent.move_to_end(key)
        while len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        return self._recent[key]
