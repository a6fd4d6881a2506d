"""Guidance laws: APG with eta 1 is CFG, scale 1 is the identity, the update is orthogonal and bounded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_loom.trainer.diffusion.guidance import APG, CFG, Momentum, Rescaled, limit_norm, rescale, split_parallel

SHAPES = [(2, 4, 6, 6), (2, 16, 1, 4, 6)]


def predictions(shape, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source), torch.randn(shape, generator=source)


@pytest.mark.parametrize("shape", SHAPES)
@given(scale=st.floats(1, 15), seed=st.integers(0, 5))
@settings(max_examples=25)
def test_apg_without_its_parts_is_cfg(shape, scale, seed):
    conditional, unconditional = predictions(shape, seed)
    apg = APG(scale=scale, eta=1.0).begin()(conditional, unconditional, 1.0)
    cfg = CFG(scale).begin()(conditional, unconditional, 1.0)
    assert torch.allclose(apg, cfg, atol=2e-5 * scale)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("guidance", [CFG(1.0), APG(scale=1.0, eta=0.3, norm_threshold=2.0, momentum=-0.5)])
def test_scale_one_is_the_identity(shape, guidance):
    conditional, unconditional = predictions(shape)
    assert torch.equal(guidance.begin()(conditional, unconditional, 1.0), conditional)


@pytest.mark.parametrize("shape", SHAPES)
@given(eta=st.floats(0, 1), threshold=st.floats(0.1, 50), seed=st.integers(0, 5))
@settings(max_examples=25)
def test_update_is_orthogonal_up_to_eta_and_bounded(shape, eta, threshold, seed):
    conditional, unconditional = predictions(shape, seed)
    update = APG(scale=4.0, eta=eta, norm_threshold=threshold).update(conditional, conditional - unconditional)
    for sample, direction, difference in zip(update, conditional, conditional - unconditional, strict=True):
        limited = difference * min(1.0, threshold / difference.norm().item())
        along = (limited * direction).sum() / direction.norm()
        assert ((sample * direction).sum() / direction.norm()).item() == pytest.approx(eta * along.item(), abs=1e-3)
        assert sample.norm().item() <= threshold * (1 + 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_norms_are_per_sample(shape):
    """Scaling one sample of a batch does not change what happens to the other; 5-D latents are one vector per sample."""
    tensor, _ = predictions(shape)
    loud = tensor.clone()
    loud[1] *= 100
    assert torch.equal(limit_norm(tensor, 3.0)[0], limit_norm(loud, 3.0)[0])
    assert torch.linalg.vector_norm(limit_norm(loud, 3.0)[1]).item() == pytest.approx(3.0, rel=1e-5)


def test_split_adds_up():
    tensor, direction = predictions((3, 4, 5, 5))
    parallel, orthogonal = split_parallel(tensor, direction)
    assert torch.allclose(parallel + orthogonal, tensor, atol=1e-6)


def test_momentum_accumulates_with_the_papers_sign_and_restarts():
    """m <- g + beta m (algorithm 1 with a negative beta); a new run, or a rising sigma, starts from g."""
    state = Momentum(-0.5)
    ones = torch.ones(1, 1, 2, 2)
    assert state.accumulate(ones, 3.0).unique().item() == 1.0
    assert state.accumulate(ones, 2.0).unique().item() == 0.5
    assert state.accumulate(ones, 1.0).unique().item() == 0.75
    assert state.accumulate(ones, 3.0).unique().item() == 1.0


def papers_apg(conditional, unconditional, average, scale, eta, threshold, momentum):
    """Algorithm 1 of arXiv 2410.02416 as its authors print it, in float64."""
    average = (conditional - unconditional) + momentum * average
    update = average
    if threshold > 0:
        norm = update.norm(p=2, dim=[-1, -2, -3], keepdim=True)
        update = update * torch.minimum(torch.ones_like(update), threshold / norm)
    unit = torch.nn.functional.normalize(conditional, dim=[-1, -2, -3])
    parallel = (update * unit).sum(dim=[-1, -2, -3], keepdim=True) * unit
    return conditional + (scale - 1) * ((update - parallel) + eta * parallel), average


@pytest.mark.parametrize(("eta", "threshold", "momentum"), [(0.0, 0.0, 0.0), (0.3, 5.0, -0.5), (0.0, 15.0, -0.75)])
def test_a_whole_run_equals_the_papers_algorithm(eta, threshold, momentum):
    combine = APG(scale=6.0, eta=eta, norm_threshold=threshold, momentum=momentum).begin()
    average = 0.0
    for step, sigma in enumerate((1.0, 0.7, 0.4, 0.1)):
        conditional, unconditional = predictions((2, 4, 6, 6), seed=step)
        expected, average = papers_apg(
            conditional.double(), unconditional.double(), average, 6.0, eta, threshold, momentum
        )
        assert torch.allclose(combine(conditional, unconditional, sigma).double(), expected, rtol=1e-4, atol=1e-4)


def test_two_runs_share_no_state():
    guidance = APG(scale=4.0, momentum=0.9)
    conditional, unconditional = predictions((1, 4, 4, 4))
    first = guidance.begin()
    once = first(conditional, unconditional, 1.0)
    first(conditional, unconditional, 0.5)
    assert torch.equal(guidance.begin()(conditional, unconditional, 1.0), once)


def test_apg_computes_in_fp32():
    conditional, unconditional = (t.half() for t in predictions((1, 4, 8, 8)))
    combined = APG(scale=8.0, norm_threshold=5.0, momentum=-0.3).begin()(conditional, unconditional, 1.0)
    reference = APG(scale=8.0, norm_threshold=5.0, momentum=-0.3).begin()(
        conditional.float(), unconditional.float(), 1.0
    )
    assert combined.dtype == torch.float16
    assert (combined.float() - reference).norm() / reference.norm() < 2e-3


def spread(tensor):
    return tensor.flatten(1).std(dim=1)


@pytest.mark.parametrize("shape", SHAPES)
@given(scale=st.floats(1, 15), phi=st.floats(0, 1), seed=st.integers(0, 5))
@settings(max_examples=25)
def test_rescaling_moves_the_spread_and_nothing_else(shape, scale, phi, seed):
    """The spread goes the share phi of the way back to the conditional one's; each sample keeps its direction."""
    conditional, unconditional = predictions(shape, seed)
    guided = CFG(scale).begin()(conditional, unconditional, 1.0)
    made = Rescaled(guidance=CFG(scale), phi=phi).begin()(conditional, unconditional, 1.0)
    assert torch.allclose(spread(made), phi * spread(conditional) + (1 - phi) * spread(guided), rtol=1e-4)
    directions = torch.nn.functional.cosine_similarity(made.flatten(1), guided.flatten(1))
    assert torch.allclose(directions, torch.ones(2), atol=1e-5)


@pytest.mark.parametrize("inner", [CFG(6.0), APG(scale=6.0, norm_threshold=5.0, momentum=-0.5)])
def test_rescaling_at_its_ends(inner):
    conditional, unconditional = predictions((2, 4, 6, 6))
    plain = inner.begin()(conditional, unconditional, 1.0)
    assert torch.equal(Rescaled(guidance=inner, phi=0.0).begin()(conditional, unconditional, 1.0), plain)
    full = Rescaled(guidance=inner, phi=1.0).begin()(conditional, unconditional, 1.0)
    assert torch.allclose(spread(full), spread(conditional), rtol=1e-4)


def test_rescaling_is_per_sample_and_equals_the_papers_formula():
    conditional, unconditional = predictions((2, 4, 6, 6))
    guided = torch.lerp(unconditional, conditional, 7.5)
    loud = guided.clone()
    loud[1] *= 50
    assert torch.equal(rescale(guided, conditional, 0.7)[0], rescale(loud, conditional, 0.7)[0])
    x_cfg, x_pos = guided.double(), conditional.double()
    ratio = x_pos.std(dim=[1, 2, 3], keepdim=True) / x_cfg.std(dim=[1, 2, 3], keepdim=True)
    expected = 0.7 * (x_cfg * ratio) + (1 - 0.7) * x_cfg
    assert torch.allclose(rescale(guided, conditional, 0.7).double(), expected, rtol=1e-5, atol=1e-6)


def test_rescaling_at_scale_one_changes_nothing():
    conditional, unconditional = predictions((2, 4, 6, 6))
    made = Rescaled(guidance=CFG(1.0), phi=0.7).begin()(conditional, unconditional, 1.0)
    assert torch.allclose(made, conditional, rtol=1e-6)
