"""The families' benchmark: its networks are those they are named after, and what it measures is what was asked for."""

import pytest
import torch

from bench.families import OneBatch, Setting, load, measure, table
from bench.network_sizes import SIZES
from lora_loom.trainer import families
from lora_loom.trainer.weights.quantize import is_quantized, stored_bytes

TOYS = {size.name: size for size in SIZES if size.toy}
REAL = {size.name: size for size in SIZES if not size.toy}
SMALL = Setting(device=torch.device("cpu"), dtype=torch.float32, pixels=64)


def test_every_family_is_measured_and_all_large_ones_at_their_size():
    assert {size.family for size in TOYS.values()} == families.all_families().keys()
    assert len(REAL) == 7


def test_a_toy_is_measured():
    found = measure(TOYS["Flux toy"], SMALL, "checkpointing")
    assert found["s/step"] > 0
    assert found["peak MiB"] >= found["loaded MiB"] > 0
    assert 0 < found["share of matmul peak"] < 1
    assert "| Flux toy | " in table({"Flux toy": found})
    plain = measure(TOYS["Flux toy"], SMALL, "plain")
    assert 1.2 < found["TFLOP/step"] / plain["TFLOP/step"] < 1.6, "what is recomputed is counted: a third more"


def test_int8_is_packed():
    plain, packed = (load(TOYS["SD3 toy"], SMALL, way).module for way in ("plain", "int8 + checkpointing"))
    assert not is_quantized(plain)
    assert is_quantized(packed)
    assert stored_bytes(packed) < 0.5 * stored_bytes(plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_sizes_are_what_their_names_say(name):
    """On the meta device, through the loading that files go through; and one prediction at 1024 px fits together."""
    size, setting = REAL[name], Setting(device=torch.device("meta"), dtype=torch.bfloat16, pixels=1024)
    denoiser = load(size, setting, "plain")
    count = sum(parameter.numel() for parameter in denoiser.module.parameters())
    assert count / 1e9 == pytest.approx(size.billions, rel=0.01)
    if size.family == "lumina2":
        return  # its network reads the lengths of texts, which have no values there
    batch = OneBatch(size, setting).batch
    with torch.no_grad():
        predicted = denoiser.predict(batch.latents_BCHW, torch.full((1,), 0.5, device="meta"), batch.conditioning)
    assert predicted.shape == batch.latents_BCHW.shape == (1, batch.latents_BCHW.shape[1], 128, 128)
