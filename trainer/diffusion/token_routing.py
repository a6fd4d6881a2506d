"""TREAD (arXiv 2501.04765): in a training step some tokens of the image pass by a range of blocks, which then compute on the others.

Before block a a share of the image's tokens is left out, together with their rows of positions; behind block b they are put back as they
were. Blocks are found by their classes, of diffusers and of ComfyUI, and called through the routing from outside of what recomputes or
compiles them. B batch, S tokens of the image, T of the text, D width.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..seeding import StepKey, generator
from ..types import Route


@dataclass(frozen=True, kw_only=True)
class Call:
    """How a class of blocks is called."""

    image: str
    """Parameter with the image's tokens (B, S, D), or with those of text and image (B, T + S, D) where there is none of the text."""
    text: str = ""
    """Parameter with the text's tokens (B, T, D)."""
    rows: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    """{parameter: dimension of the tokens in its tensor, or in each of its tensors; of several, which versions differ in, the one with as many}."""
    first_only: bool = False
    """Of several tensors with positions the first is the image's, the others the text's."""
    returned: int | None = None
    """Which of the returned tensors has the image's tokens; None for one that is returned alone."""
    without: tuple[str, ...] = ()
    """Parameters that say something of each token, and are not supported."""
    positional: tuple[str, ...] = ()
    """Names of the positional arguments, where the signature has none."""


JOINT = Call(image="hidden_states", text="encoder_hidden_states")
DOUBLE = Call(image="img", text="txt", rows={"pe": 2})
CALLS: dict[tuple[str, str], Call] = {
    ("diffusers", "FluxTransformerBlock"): replace(JOINT, rows={"image_rotary_emb": 0}, returned=1),
    ("diffusers", "FluxSingleTransformerBlock"): replace(JOINT, rows={"image_rotary_emb": 0}, returned=1),
    ("diffusers", "ChromaTransformerBlock"): replace(
        JOINT, rows={"image_rotary_emb": 0, "attention_mask": 1}, returned=1
    ),
    ("diffusers", "ChromaSingleTransformerBlock"): Call(
        image="hidden_states", rows={"image_rotary_emb": 0, "attention_mask": 1}
    ),
    ("diffusers", "Flux2TransformerBlock"): replace(JOINT, rows={"image_rotary_emb": 0}, returned=1),
    ("diffusers", "Flux2SingleTransformerBlock"): replace(JOINT, rows={"image_rotary_emb": 0}),
    ("diffusers", "JointTransformerBlock"): replace(JOINT, returned=1),
    ("diffusers", "QwenImageTransformerBlock"): replace(
        JOINT, rows={"image_rotary_emb": 0}, first_only=True, returned=1, without=("modulate_index",)
    ),
    ("comfy", "DoubleStreamBlock"): replace(
        DOUBLE, returned=0, without=("attn_mask", "modulation_dims_img", "modulation_dims_txt")
    ),
    ("comfy", "SingleStreamBlock"): Call(image="x", rows={"pe": 2}, without=("attn_mask", "modulation_dims")),
    ("comfy", "JointBlock"): Call(image="x", text="context", returned=1, positional=("context", "x")),
    ("comfy", "QwenImageTransformerBlock"): replace(
        JOINT, rows={"image_rotary_emb": (2, 1)}, returned=1, without=("timestep_zero_index",)
    ),
}
"""{(library, class of blocks): how it is called}."""
KNOWN = "Flux, Flux.2, Chroma, SD3 and Qwen-Image"


def call_of(block: nn.Module) -> Call | None:
    """How a block is called; None for one of a class that has no routing. A sharded block has a class of its own over the block's."""
    found = (CALLS.get((one.__module__.partition(".")[0], one.__name__)) for one in type(block).__mro__)
    return next((call for call in found if call is not None), None)


def routed_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that can be routed, in the order in which they run."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return [block for part in lists for block in part if call_of(block) is not None]


def check_routes(routes: Sequence[Route], module: nn.Module, family: str) -> None:
    """Raise ConfigError for a network without such blocks, or with fewer of them than the routes say."""
    if not routes:
        return
    blocks = routed_blocks(module)
    if not blocks:
        raise ConfigError(
            f"objective.tread_routes: there is token routing for {KNOWN}, and not for {family}; leave it out"
        )
    count, before = len(blocks), -1
    for one in sorted(resolved(routes, count), key=lambda route: route.first):
        if not before < one.first <= one.last < count:
            raise ConfigError(
                f"objective.tread_routes: this {family} has blocks 0 to {count - 1}, and routes follow each other; {one.first} to {one.last} does not fit"
            )
        before = one.last


def resolved(routes: Sequence[Route], count: int) -> list[Route]:
    """The routes with blocks counted from the start."""
    return [
        Route(first=_from_start(one.first, count), last=_from_start(one.last, count), ratio=one.ratio) for one in routes
    ]


def _from_start(number: int, count: int) -> int:
    return number + count if number < 0 else number


@contextmanager
def routing(module: nn.Module, routes: Sequence[Route], place: StepKey) -> Iterator[None]:
    """A context in which forward passes under autograd are routed; others, such as those of a teacher, are not.

    Which tokens are left out depends on the place in the run, and is the same for all samples of a batch.
    """
    if not routes:
        yield
        return
    blocks = routed_blocks(module)
    router = Router({id(block): number for number, block in enumerate(blocks)}, resolved(routes, len(blocks)), place)
    owner = next((part for part in module.modules() if _recomputes(part, blocks[0])), None)
    before: list[tuple[nn.Module, str, Any]]
    if (
        owner is not None
    ):  # diffusers hands block and arguments to this function, which calls the block, again in the backward pass
        plain = cast(Callable[..., Any], owner._gradient_checkpointing_func)
        before = [(owner, "_gradient_checkpointing_func", plain)]
        vars(owner)["_gradient_checkpointing_func"] = lambda block, *args: router(
            block, partial(plain, block), args, {}
        )
    else:
        before = [(block, "forward", vars(block).get("forward")) for block in blocks]
        for block in blocks:
            vars(block)["forward"] = partial(_through, router, block, block.forward)
    try:
        yield
    finally:
        for part, name, value in before:
            vars(part).pop(name) if value is None else vars(part).__setitem__(name, value)


def _recomputes(part: nn.Module, block: nn.Module) -> bool:
    """Whether a network of diffusers has this block and recomputes its blocks."""
    return bool(getattr(part, "gradient_checkpointing", False)) and any(
        block is one for child in part.children() if isinstance(child, nn.ModuleList) for one in child
    )


def _through(router: "Router", block: nn.Module, plain: Callable[..., Any], *args: Any, **named: Any) -> Any:
    return router(block, plain, args, named)


class Router:
    """Calls the blocks of a network on some of the tokens. One pass of the network at a time."""

    def __init__(self, numbers: Mapping[int, int], routes: Sequence[Route], place: StepKey) -> None:
        self._numbers, self._place = numbers, place
        self._starts = {one.first: (number, one) for number, one in enumerate(routes) if one.ratio}
        self._texts = 0
        """Tokens of the text, by the last block that is given them apart."""
        self._kept: Tensor | None = None
        self._whole: Tensor | None = None
        self._count, self._last = 0, -1

    def __call__(
        self, block: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """What `plain` returns, as many tokens as `block` is given by the network or, at the end of a route, by the block before it."""
        number, call = self._numbers.get(id(block)), call_of(block)
        if number is None or call is None or not torch.is_grad_enabled():
            return plain(*args, **named)
        given = _bound(type(block), call.positional, args, named)
        text = given.get(call.text)
        self._texts = text.shape[1] if text is not None else self._texts
        before = 0 if text is not None else self._texts
        image = given[call.image]
        if number in self._starts:
            image = self._begin(*self._starts[number], image, before)
        elif self._kept is None:
            return plain(*args, **named)
        for name in call.without:
            if given.get(name) is not None:
                raise ConfigError(
                    f"objective.tread_routes: this model is run with {name}, which says something of each token and is not supported"
                )
        changes = {call.image: image, **{name: self._rows(given[name], call, at, image) for name, at in call.rows.items() if given.get(name) is not None}}  # fmt: skip
        result = plain(*_replaced(type(block), call.positional, args, named, changes), **{**named, **{name: value for name, value in changes.items() if name in named}})  # fmt: skip
        if number < self._last:
            return result
        return self._end(result, call.returned, before)

    def _begin(self, number: int, route: Route, image: Tensor, before: int) -> Tensor:
        """Leave tokens out; those of the text, the first `before`, stay."""
        count = image.shape[1] - before
        kept = max(1, count - round(route.ratio * count))
        key = (self._place.step, self._place.micro_batch, number)
        drawn = torch.randperm(count, generator=generator(self._place.seed, "route", *key))[:kept].sort().values
        self._kept, self._whole = drawn.to(image.device), image[:, before:]
        self._count, self._last = count, route.last
        return image.index_select(1, self._places(before))

    def _places(self, before: int) -> Tensor:
        assert self._kept is not None
        text = torch.arange(before, device=self._kept.device)
        return torch.cat([text, self._kept + before])

    def _rows(self, value: Any, call: Call, dimension: int | tuple[int, ...], image: Tensor) -> Any:
        """The rows of the tokens that are kept."""
        if isinstance(value, tuple | list):
            some = value[:1] if call.first_only else value
            return (*(self._rows(one, call, dimension, image) for one in some), *value[len(some) :])
        if isinstance(dimension, tuple):
            dimension = next(one for one in dimension if value.shape[one] == self._texts + self._count)
        places = self._places(value.shape[dimension] - self._count)
        return value.index_select(dimension, places)

    def _end(self, result: Any, returned: int | None, before: int) -> Any:
        """Put the tokens that were left out back to their places."""
        assert self._whole is not None
        assert self._kept is not None
        routed = result if returned is None else result[returned]
        whole = self._whole.to(routed.dtype).index_copy(1, self._kept, routed[:, before:])
        whole = torch.cat([routed[:, :before], whole], dim=1) if before else whole
        self._kept = self._whole = None
        self._last = -1
        if returned is None:
            return whole
        return (*result[:returned], whole, *result[returned + 1 :])


def _names(kind: type[nn.Module], positional: tuple[str, ...]) -> tuple[str, ...]:
    """The names of positional arguments of a class's forward."""
    return positional or tuple(inspect.signature(kind.forward).parameters)[1:]


def _bound(
    kind: type[nn.Module], positional: tuple[str, ...], args: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, Any]:
    return {**dict(zip(_names(kind, positional), args, strict=False)), **named}


def _replaced(
    kind: type[nn.Module],
    positional: tuple[str, ...],
    args: tuple[Any, ...],
    named: dict[str, Any],
    new: Mapping[str, Any],
) -> list[Any]:
    """The positional arguments with other values for some of them."""
    names = _names(kind, positional)
    return [new.get(name, value) for name, value in zip(names, args, strict=False)] + list(args[len(names) :])
