"""Inside a real ComfyUI: weight kinds, refusals, the check of saved files, reference latents, what is under a patch."""

import pytest

from .programs import run_inside

pytestmark = pytest.mark.comfyui
REFUSED = {
    "merged weights": "merged weights", "attention patch": "attention or block patches", "block replacement": "attention or block patches",
    "attention override": "an attention override", "unet wrapper": "model wrappers", "wrapper": "model wrappers",
    "object patch": "replaced model parts", "hook": "hooks", "injection": "injections",
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return run_inside("weights")


@pytest.mark.parametrize("label", ["bf16", "fp16", "fp8", "packed"])
def test_cast_weights_have_exact_gradients_and_no_copy_is_kept(found, label):
    if label not in found["formats"]:
        pytest.skip("this version has no packed tensors, or makes them in another way")
    case = found["formats"][label]
    assert case["error"] < 1e-5
    assert case["copies"] == 0
    assert case["shared"] > 0.999  # of packed weights, the host hands out a new scale of 4 bytes


@pytest.mark.parametrize("label", REFUSED)
def test_a_patched_model_is_refused_by_name_and_with_the_remedy(found, label):
    text = found["refusals"][label]
    assert REFUSED[label] in text
    assert "Connect the loader's MODEL directly" in text


@pytest.mark.parametrize("label", ["nothing", "model sampling"])
def test_a_plain_model_and_sampling_nodes_are_taken(found, label):
    assert found["refusals"][label] == ""


def test_the_file_check_passes_a_right_file(found):
    assert found["file_check"]["right"] < 1e-4
    assert found["file_check"]["bf16"] < 5e-3


def test_the_file_check_fails_for_wrong_ones(found):
    check = found["file_check"]
    assert check["alpha"] > 0.1
    for label in ("dropped", "half dropped", "empty"):
        assert isinstance(check[label], str), label
        assert "lacks" in check[label] or "ignore" in check[label]
    assert "no.such" in check["strange"]


def test_the_file_does_in_the_host_what_was_trained(found):
    assert found["file_check"]["effect"] < 1e-3


def test_attention_within_a_fused_linear_is_trained_and_saved_by_itself(found):
    parts = found["row_parts"]
    assert parts["parts"] == [f"single_blocks.0.linear1.to_{x}" for x in "kqv"]
    assert {f"transformer.single_transformer_blocks.0.attn.to_{x}" for x in "kqv"} <= set(parts["keys"])
    assert parts["silent"] == []
    assert parts["file"] < 1e-4
    assert parts["effect"] < 1e-3
    assert parts.get("packed", 0) < 1e-4  # not every version packs


@pytest.mark.parametrize("name", ["flux-dev", "qwen"])
def test_reference_latents_reach_the_network(found, name):
    assert min(found["references"][name]) > 1e-3


def test_the_shadow_is_the_base_whatever_is_patched_in(found):
    assert found["originals"] == {"patched in": True, "shadow is the base": True}


@pytest.fixture(scope="module")
def loadings():
    return run_inside("loadings")


@pytest.mark.parametrize(
    ("state", "patched_in", "pending"),
    [
        ("not loaded", 0, 0), ("whole", 0, 0), ("whole with a LoRA", 4, 0), ("in part with a LoRA", 2, 2),
        ("a LoRA in place", 4, 0), ("a LoRA taken out again", 0, 0),
    ],
)  # fmt: skip
def test_a_run_follows_a_second_copy_in_whatever_way_it_is_loaded(loadings, state, patched_in, pending):
    """The base, bit for bit, and one copy: beside it only what ComfyUI itself keeps of the weights it has patched."""
    case = loadings[state]
    assert case["followed"]
    assert case["bits"]
    assert (case["patched in"], case["pending"]) == (patched_in, pending)
    assert case["shared"] == case["weights"] - patched_in
    assert case["bytes"] <= (1.05 if not patched_in else 1.3)
