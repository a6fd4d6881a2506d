"""Token routing: what passes by comes back as it was, the others compute as a smaller image at the same positions, and recomputation is exact."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from lora_loom.trainer import families
from lora_loom.trainer.config.run import MemoryConfig, NetworkConfig, ObjectiveConfig
from lora_loom.trainer.diffusion.token_routing import call_of, check_routes, routed_blocks, routing
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.checkpointing import checkpoint
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.seeding import StepKey
from lora_loom.trainer.types import Geometry, Route
from tests.conftest import FAMILIES

PLACE = StepKey(seed=0, step=3, micro_batch=1)
ROUTED = ["flux", "sd3", "chroma", "qwen_image", "flux2"]
SIDE = {"flux2": 6}
"""Rows and columns of the latents, which flux2 has one token each of."""


def toy(family):
    """(denoiser, conditioning of two captions of one length, latents)."""
    tiny = families.all_families()[family].tiny()
    texts = tiny.encoders.text.encode(["a cat", "a dog"])
    given = families.all_families()[family].condition(texts, [Geometry.whole((64, 64))] * 2, 1.0)
    side, channels = SIDE.get(family, 8), families.all_families()[family].latent_space.channels
    latents = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    return tiny.denoiser, given, latents


def predicted(denoiser, given, latents, routes, place=PLACE):
    with routing(denoiser.module, routes, place):
        return denoiser.predict(latents, torch.full((2,), 0.6), given)


def through(first, last, ratio=0.5):
    return (Route(first=first, last=last, ratio=ratio),)


@pytest.mark.parametrize("family", ROUTED)
def test_without_a_share_and_without_a_gradient_nothing_changes(family):
    denoiser, given, latents = toy(family)
    plain = predicted(denoiser, given, latents, ())
    for ratio in (0.0, 0.001):  # less than half a token
        assert torch.equal(predicted(denoiser, given, latents, through(0, -1, ratio)), plain)
    routed = predicted(denoiser, given, latents, through(0, -1))
    assert not torch.allclose(routed, plain, atol=1e-4)
    assert torch.equal(predicted(denoiser, given, latents, through(0, -1)), routed), "a function of its place"
    assert not torch.equal(predicted(denoiser, given, latents, through(0, -1), replace(PLACE, step=4)), routed)
    with torch.no_grad():
        assert torch.equal(predicted(denoiser, given, latents, through(0, -1)), plain), "samples and teachers"
    assert torch.equal(predicted(denoiser, given, latents, ()), plain), "nothing is left behind"


def images_of(blocks, run):
    """The image's tokens before and behind each block in a run, in its order; those of text and image where they are one."""
    seen = []

    def watch(block, args, named, result):
        call = call_of(block)
        image = named.get(call.image, args[0] if args else None)
        seen.append((image.detach(), (result if call.returned is None else result[call.returned]).detach()))

    hooks = [block.register_forward_hook(watch, with_kwargs=True) for block in blocks]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", ROUTED)
def test_tokens_that_pass_by_come_back_as_they_were(family):
    """The first block alone is routed: half of the tokens behind it are those before it, and the others are not."""
    denoiser, given, latents = toy(family)
    blocks = routed_blocks(denoiser.module)
    [(before, behind), *_] = images_of(blocks, lambda: predicted(denoiser, given, latents, through(0, 0)))
    count = before.shape[1]
    same = (behind == before).all(dim=-1)
    assert same.sum(dim=1).tolist() == [count // 2] * 2
    assert torch.equal(same[0], same[1]), "the same tokens of all images of a batch"


@pytest.mark.parametrize("family", ["flux", "chroma", "qwen_image", "flux2"])
def test_a_token_keeps_its_position(family):
    """Every position is routed but one: with the image's rows of that one, and the text's, the block computes what it does alone."""
    denoiser, given, latents = toy(family)
    block = routed_blocks(denoiser.module)[0]
    found = {}

    def watch(block, args, named):
        found.update(named)

    hook = block.register_forward_pre_hook(watch, with_kwargs=True)
    predicted(denoiser, given, latents, ())
    hook.remove()
    count, text = found["hidden_states"].shape[1], found["encoder_hidden_states"].shape[1]
    routed = images_of([block], lambda: predicted(denoiser, given, latents, through(0, 0, 1 - 1 / count)))[0]
    [place] = torch.nonzero((routed[0] != routed[1]).any(dim=-1)[0]).flatten().tolist()
    rows = found["image_rotary_emb"]
    if family == "qwen_image":
        alone = (rows[0][place : place + 1], rows[1])
    else:
        alone = tuple(one[[*range(text), text + place]] for one in rows)
    inputs = {**found, "hidden_states": found["hidden_states"][:, place : place + 1], "image_rotary_emb": alone}
    if found.get("attention_mask") is not None:
        inputs["attention_mask"] = found["attention_mask"][:, [*range(text), text + place]]
    assert torch.allclose(routed[1][:, place], block(**inputs)[1][:, 0], atol=1e-6)
    moved = dict(inputs, image_rotary_emb=tuple(one.roll(1, 0) for one in alone))
    assert not torch.allclose(routed[1][:, place], block(**moved)[1][:, 0], atol=1e-6)


def gradients(family, routes, memory=None):
    denoiser, given, latents = toy(family)
    paths = resolve_targets(denoiser.module, denoiser.target_presets, "attention")
    adapter = inject(denoiser.module, paths, NetworkConfig(rank=2), seed=0)
    for name, parameter in adapter.parameters().items():  # no zero matrix, so that each has a gradient
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    if memory is not None:
        denoiser.module.train()
        checkpoint(denoiser.module, memory)
    loss = predicted(denoiser, given, latents, routes).square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in adapter.parameters().items()}


@pytest.mark.parametrize("family", ROUTED)
@pytest.mark.parametrize("checkpointed", ["all", "every 2", "ffn"])
def test_recomputation_takes_the_same_tokens(family, checkpointed):
    loss, plain = gradients(family, through(0, -1))
    again, recomputed = gradients(
        family, through(0, -1), MemoryConfig(gradient_checkpointing=True, checkpoint=checkpointed)
    )
    assert torch.equal(loss, again)
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name
    assert not torch.allclose(loss, gradients(family, ())[0], rtol=1e-4)


def test_two_lengths_of_text_in_a_batch_are_two_passes():
    """Each pass has its own tokens in between, also where blocks are recomputed when both are over."""
    family = families.all_families()["sd3"]
    texts = [
        {"text": torch.randn(length, 72, generator=torch.Generator().manual_seed(length)), "pooled": torch.ones(64)}
        for length in (5, 9)
    ]
    results = []
    for memory in (None, MemoryConfig(gradient_checkpointing=True)):
        denoiser = family.tiny().denoiser
        if memory:
            denoiser.module.train()
            checkpoint(denoiser.module, memory)
        weight = denoiser.module.transformer_blocks[0].attn.to_q.weight.requires_grad_(True)
        made = predicted(denoiser, family.condition(texts, [], 1.0), toy("sd3")[2], through(0, -1))
        made.square().sum().backward()
        results.append((made.detach(), weight.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_it_or_says_so(family):
    module = families.all_families()[family].tiny().denoiser.module
    refused = pytest.raises(ConfigError, match=f"token routing for Flux, .* and not for {family}")
    with nullcontext() if family in ROUTED else refused:
        check_routes(through(0, -1), module, family)


@pytest.mark.parametrize("routes", [(("0", "9"),), (("-9", "-1"),), (("1", "0"),), (("0", "1"), ("1", "2"))])
def test_routes_that_do_not_fit(routes):
    module = families.all_families()["flux"].tiny().denoiser.module
    text = ",".join(f"{first}:{last}:0.5" for first, last in routes)
    with pytest.raises(ConfigError, match="this flux has blocks 0 to 2, and routes follow each other"):
        check_routes(ObjectiveConfig(tread_routes=text).routes, module, "flux")


@pytest.mark.parametrize("text", ["2:-2", "a:b:0.5", "0:1:1.0", "0:1:-0.1", "0 1 0.5"])
def test_routes_are_written_as_three_numbers(text):
    with pytest.raises(ConfigError, match="write first:last:ratio"):
        ObjectiveConfig(tread_routes=text)
    assert ObjectiveConfig(tread_routes="0:1:0.5, 2:-1:0.25").routes == (*through(0, 1), *through(2, -1, 0.25))
