"""The shadow of every toy family inside ComfyUI: predictions, gradients, and that not a byte of the base is copied."""

import pytest

from .programs import run_inside

pytestmark = pytest.mark.comfyui
NAMES = ("sd1", "sd2", "sdxl", "sd3", "flux-dev", "flux-schnell", "lumina2", "qwen", "aura", "wan")


@pytest.fixture(scope="module")
def found():
    return run_inside("gradients")


@pytest.mark.parametrize("name", NAMES)
def test_the_shadow_predicts_what_the_host_does(found, name):
    assert found[name]["predicts"] < 1e-5


@pytest.mark.parametrize("how", ["plain", "checkpointed"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_an_out_of_place_reference(found, name, how):
    assert found[name]["size"] > 0
    assert found[name]["blocks"] > 0
    assert found[name]["gradient"][how] < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_recomputed_blocks_have_the_gradients_of_plain_ones_bit_for_bit(found, name):
    assert found[name]["same bits"]


@pytest.fixture(scope="module")
def lives():
    return run_inside("step_bytes")


@pytest.mark.parametrize("stored", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("sd2", "flux-schnell")])
def test_at_a_step_boundary_nothing_lives_but_what_is_trained(lives, name, stored):
    """Adapter and optimizer state, the tables of noise levels, norms and biases in the format of the arithmetic, 1 %.

    This is also where a run holds while the queue is busy: activations and gradients are gone.
    """
    case = lives[f"{name} {stored}"]
    assert case["matrices cast"] == []
    assert case["cast once"] == 0 or stored == "bf16"
    known = case["trained"] + case["tables"] + case["cast once"]
    assert known <= case["extra"] <= known + 0.01 * case["base"]


@pytest.mark.parametrize("name", NAMES)
def test_all_base_weights_are_shared_and_nothing_is_extra(found, name):
    assert found[name]["shared"] == found[name]["base"] > 0
    assert found[name]["extra"] == 0


@pytest.mark.parametrize(
    "name",
    ["apply_rope1", "apply_rope", "rms_rope1", "rms_rope", "apply_rope_split_half1", "apply_rope_split_half", "rms_rope_split_half1",
     "rms_rope_split_half", "rms_rope_split_half partly", "adaln", "rms_adaln"],
)  # fmt: skip
def test_fused_operators_have_the_gradient_of_their_plain_form(rotations, name):
    assert rotations[name] < 1e-5


@pytest.fixture(scope="module")
def rotations():
    return run_inside("rotations")
