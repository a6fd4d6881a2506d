"""The contract every family keeps; a new family file is tested by being there."""

import json

import pytest
import torch
from torch import nn

from lora_loom.trainer import families
from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.diffusion.samplers import schedule
from lora_loom.trainer.families.common.family import Loading
from lora_loom.trainer.families.common.lora_names import owners, unmatched
from lora_loom.trainer.families.common.modules import checkpoint_blocks
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.roles import roles
from lora_loom.trainer.lora.state_dict import to_file, to_training
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.types import Geometry
from tests.conftest import HOST_FIXTURES, tiny_folder

ALL = families.all_families()
HOST = HOST_FIXTURES
CPU = Loading(dtype=None, device=torch.device("cpu"))


@pytest.fixture(scope="module", params=list(ALL))
def family(request):
    return ALL[request.param]


@pytest.fixture(scope="module")
def tiny(family):
    return family.tiny()


def geometry(width, height, **changes):
    values = {
        "original": (width, height),
        "resized": (width, height),
        "crop_left": 0,
        "crop_top": 0,
        "target": (width, height),
    }
    return Geometry(**{**values, **changes})


def conditioning(family, tiny, prompts, width=64, height=64):
    return family.condition(tiny.encoders.text.encode(prompts), [geometry(width, height)] * len(prompts), 1.0)


def latents(family, batch, height, width, seed=0):
    shape = (batch, family.latent_space.channels, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sigmas(denoiser, *shares):
    return denoiser.objective.sigma_at(torch.tensor(shares))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 64), (64, 192)])
def test_encode_predict_decode_shapes(family, tiny, width, height):
    pixels = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    raw = tiny.encoders.image.encode(pixels)
    factor = tiny.encoders.image.factor
    assert raw.shape == (2, family.latent_space.channels, height // factor, width // factor)
    clean = family.latent_space.to_model(raw)
    assert torch.allclose(family.latent_space.to_raw(clean), raw, atol=1e-5)
    predicted = tiny.denoiser.predict(
        clean, sigmas(tiny.denoiser, 0.2, 0.7), conditioning(family, tiny, ["a", "b"], width, height)
    )
    assert predicted.shape == clean.shape
    assert predicted.dtype == torch.float32
    assert torch.isfinite(predicted).all()
    assert tiny.encoders.image.decode(raw).shape == pixels.shape


def test_bucket_step_fits_the_network(family, tiny):
    """The smallest steps a bucket can take still go through the network."""
    side = family.bucket_step // tiny.encoders.image.factor
    for height, width in ((side * 2, side * 2), (side * 2, side * 3)):
        shape = latents(family, 1, height, width)
        assert (
            tiny.denoiser.predict(shape, sigmas(tiny.denoiser, 0.5), conditioning(family, tiny, ["a"])).shape
            == shape.shape
        )


def test_the_objective_agrees_with_itself(tiny, family):
    objective, clean, noise = tiny.denoiser.objective, latents(family, 2, 4, 4, 1), latents(family, 2, 4, 4, 2)
    sigma = sigmas(tiny.denoiser, 0.1, 0.6)
    restored = objective.to_denoised(
        objective.add_noise(clean, noise, sigma), objective.target(clean, noise, sigma), sigma
    )
    assert torch.allclose(restored, clean, atol=1e-4)
    assert schedule(objective, "normal", 4)[-1] == 0


def test_a_batch_of_two_is_two_batches_of_one(family, tiny):
    noisy, sigma = latents(family, 2, 8, 8), sigmas(tiny.denoiser, 0.2, 0.8)
    together = tiny.denoiser.predict(noisy, sigma, conditioning(family, tiny, ["cat", "dog"]))
    for i, prompt in enumerate(["cat", "dog"]):
        alone = tiny.denoiser.predict(noisy[i : i + 1], sigma[i : i + 1], conditioning(family, tiny, [prompt]))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)


def test_prompt_noise_level_and_place_matter(family, tiny):
    noisy, sigma = latents(family, 1, 8, 8), sigmas(tiny.denoiser, 0.5)
    plain = tiny.denoiser.predict(noisy, sigma, conditioning(family, tiny, ["cat"]))
    assert not torch.allclose(plain, tiny.denoiser.predict(noisy, sigma, conditioning(family, tiny, ["dog"])))
    assert not torch.allclose(
        plain, tiny.denoiser.predict(noisy, sigmas(tiny.denoiser, 0.9), conditioning(family, tiny, ["cat"]))
    )
    turned = tiny.denoiser.predict(noisy.flip(-1), sigma, conditioning(family, tiny, ["cat"]))
    assert not torch.allclose(plain.flip(-1), turned, atol=1e-4), "the network knows left from right"


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_a_fresh_adapter_changes_nothing_and_alone_gets_gradients(family, kind):
    tiny = family.tiny()
    noisy, sigma, cond = latents(family, 1, 8, 8), sigmas(tiny.denoiser, 0.5), conditioning(family, tiny, ["cat"])
    before = tiny.denoiser.predict(noisy, sigma, cond)
    paths = resolve_targets(tiny.denoiser.module, tiny.denoiser.target_presets, "default")
    adapter = inject(tiny.denoiser.module, paths, NetworkConfig(kind=kind, rank=2), seed=0)
    after = tiny.denoiser.predict(noisy, sigma, cond)
    assert torch.allclose(before, after, atol=1e-4)
    after.square().mean().backward()
    mine = {id(p) for p in adapter.parameters().values()}
    with_gradient = {id(p) for p in tiny.denoiser.module.parameters() if p.grad is not None}
    assert with_gradient <= mine
    silent = [name for name, p in adapter.parameters().items() if p.grad is None]
    assert not silent, "every adapter of the default preset is reached"


def test_the_default_of_a_transformer_is_attention_feed_forward_and_modulation_of_its_blocks(family, tiny):
    """Attention alone learns much less per step (docs/benchmarks.md). UNets keep kohya's choice, which has no modulation."""
    told = roles(tiny.denoiser.module)
    paths = resolve_targets(tiny.denoiser.module, tiny.denoiser.target_presets, "default")
    if family.name in ("sd", "sdxl"):
        return
    assert {told[path] for path in paths} == set(told.values()) - {"outside"}
    outside = ("chroma", "flux2", "krea2", "qwen_image21")  # one modulation for all blocks
    assert family.name in outside or "modulation" in told.values()
    larger = resolve_targets(tiny.denoiser.module, tiny.denoiser.target_presets, "all")
    assert set(paths) == {path for path in larger if told[path] != "outside"}


def test_every_preset_matches_and_its_keys_are_the_hosts(family, tiny):
    if family.name == "qwen_image21":
        pytest.skip("ComfyUI 0.33, which the fixtures are recorded from, has no class for it")
    recorded = [json.loads(p.read_text())["accepted"] for p in HOST.glob("*.json") if _family_of(p) == family.name]
    assert recorded, "no host fixture for this family: run scripts/record_host_keys.py"
    for preset in tiny.denoiser.target_presets.keys() - {
        "tiny",
        "nano",
    }:  # single blocks of Flux that it is not deep enough for
        paths = resolve_targets(tiny.denoiser.module, tiny.denoiser.target_presets, preset)
        assert paths
        patterns = {_numberless(tiny.denoiser.file_key(path)) for path in paths}
        known = {_numberless(key): target for accepted in recorded for key, target in accepted.items()}
        assert patterns <= known.keys(), preset
        assert not [key for key in patterns if known[key][-1] == "other"], (
            "rows would land in another place in the host"
        )


def _family_of(path):
    from scripts.host_toys import TOYS

    return TOYS[path.stem].family if path.stem in TOYS else None


def _numberless(key):
    import re

    return re.sub(r"\d+", "N", key)


def test_save_and_load_give_the_same_output(family):
    first, second = family.tiny(), family.tiny()
    noisy, sigma, cond = latents(family, 1, 8, 8), sigmas(first.denoiser, 0.5), conditioning(family, first, ["cat"])
    paths = resolve_targets(first.denoiser.module, first.denoiser.target_presets, "all")
    network = NetworkConfig(rank=2, alpha=1.0)
    trained = inject(first.denoiser.module, paths, network, seed=0)
    for parameter in trained.parameters().values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    loaded = inject(second.denoiser.module, paths, network, seed=1)
    file = to_file(trained, first.denoiser.file_key, torch.float32)
    loaded.load(to_training(loaded, second.denoiser.file_key, file))
    assert torch.allclose(
        first.denoiser.predict(noisy, sigma, cond), second.denoiser.predict(noisy, sigma, cond), atol=1e-6
    )


def test_detects_its_own_tensors_only(family, tiny):
    shapes = {key: tuple(tensor.shape) for key, tensor in tiny.denoiser.module.state_dict().items()}
    assert [name for name, other in ALL.items() if other.detect(shapes)] == [family.name]
    natives = [json.loads(p.read_text())["keys"] for p in HOST.glob("*.json") if _family_of(p) == family.name]
    for keys in natives:
        assert [name for name, other in ALL.items() if other.detect({k: tuple(s) for k, s in keys.items()})] == [
            family.name
        ]
    assert family.detect({"something.weight": (3, 3)}) is None


def test_checkpointing_changes_memory_not_numbers(family):
    gradients = []
    for on in (False, True):
        tiny = family.tiny()
        if on:
            checkpoint_blocks(tiny.denoiser.module)
        paths = resolve_targets(tiny.denoiser.module, tiny.denoiser.target_presets, "default")
        adapter = inject(tiny.denoiser.module, paths, NetworkConfig(rank=2), seed=0)
        predicted = tiny.denoiser.predict(
            latents(family, 1, 8, 8), sigmas(tiny.denoiser, 0.5), conditioning(family, tiny, ["cat"])
        )
        predicted.square().mean().backward()
        gradients.append([p.grad.clone() for p in adapter.parameters().values()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*gradients, strict=True))


def test_checkpointing_leaves_the_global_generator_alone(family):
    tiny = family.tiny()
    checkpoint_blocks(tiny.denoiser.module)
    paths = resolve_targets(tiny.denoiser.module, tiny.denoiser.target_presets, "default")
    inject(tiny.denoiser.module, paths, NetworkConfig(rank=2), seed=0)
    cond = conditioning(family, tiny, ["cat"])
    state = torch.get_rng_state()
    tiny.denoiser.predict(latents(family, 1, 8, 8), sigmas(tiny.denoiser, 0.5), cond).sum().backward()
    assert torch.equal(state, torch.get_rng_state())


def test_thirty_steps_lower_the_loss(family):
    tiny = family.tiny()
    paths = resolve_targets(tiny.denoiser.module, tiny.denoiser.target_presets, "default")
    adapter = inject(tiny.denoiser.module, paths, NetworkConfig(rank=4), seed=0)
    optimizer = torch.optim.AdamW(adapter.parameters().values(), lr=1e-2)
    clean, noise, sigma = latents(family, 1, 8, 8, 1), latents(family, 1, 8, 8, 2), sigmas(tiny.denoiser, 0.5)
    objective, cond, losses = tiny.denoiser.objective, conditioning(family, tiny, ["cat"]), []
    for _ in range(30):
        predicted = tiny.denoiser.predict(objective.add_noise(clean, noise, sigma), sigma, cond)
        loss = (predicted - objective.target(clean, noise, sigma)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_saved_folder_loads_back_equal(family, tiny):
    source = open_source(str(tiny_folder(family.name)))
    found, variant = families.detect(source.shapes, source.path)
    assert (found.name, variant) == (family.name, next(iter(family.variants)))
    denoiser, encoders = family.load_denoiser(source, variant, CPU), family.load_encoders(source, variant, CPU)
    noisy, sigma = latents(family, 1, 8, 8), sigmas(tiny.denoiser, 0.5)
    mine, theirs = (
        conditioning(family, tiny, ["cat 7"]),
        family.condition(encoders.text.encode(["cat 7"]), [geometry(64, 64)], 1.0),
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)
    weights, stored = tiny.denoiser.module.state_dict(), denoiser.module.state_dict()
    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[name], stored[name]) for name in weights)
    assert not any(p.requires_grad for p in denoiser.module.parameters())
    expected = tiny.denoiser.predict(noisy, sigma, mine)
    # Tensors mapped from a file begin where the file has them, and oneDNN sums in another order for memory that is not
    # aligned to 64 bytes. So the last digits may differ here, and must not once the same weights lie in memory of ours.
    assert torch.allclose(denoiser.predict(noisy, sigma, mine), expected, rtol=0, atol=5e-6)
    for parameter in denoiser.module.parameters():
        parameter.data = parameter.data.clone()
    assert torch.equal(denoiser.predict(noisy, sigma, mine), expected)


def test_a_skeleton_reads_no_weights(family):
    source = open_source(str(tiny_folder(family.name)))
    denoiser = family.load_denoiser(
        source, next(iter(family.variants)), Loading(dtype=None, device=torch.device("meta"))
    )
    assert {p.device.type for p in denoiser.module.parameters()} == {"meta"}
    assert any(isinstance(part, nn.Linear) for part in denoiser.module.modules())


def test_variants_have_all_their_differences_as_fields(family):
    for variant in family.variants.values():
        assert variant.guidance_scale >= 1
        assert variant.max_text_tokens >= 77
    assert family.latent_space.channels in (4, 16, 64, 128)


def test_its_loras_are_recognised(family, tiny):
    """`lora_names` knows every key that training all of the family's targets would write."""
    paths = resolve_targets(tiny.denoiser.module, tiny.denoiser.target_presets, "all")
    keys = [tiny.denoiser.file_key(path) for path in paths]
    assert unmatched(family.lora_names, keys) == []
    assert family.name in owners({name: other.lora_names for name, other in ALL.items()}, dict.fromkeys(keys, 0))
