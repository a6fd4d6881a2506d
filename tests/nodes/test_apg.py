"""APG as a function before ComfyUI's CFG, called with the plain dicts that ComfyUI gives it."""

import pytest
import torch

from lora_loom.trainer.diffusion.guidance import APG, Rescaled

OPTIONS = {"eta": 0.3, "norm_threshold": 4.0, "momentum": -0.5}


@pytest.fixture
def before_cfg(host):
    return host("sweep.apg").before_cfg


def predictions(seed, shape=(2, 4, 6, 5), dtype=torch.float32):
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source).to(dtype) for _ in range(2)]


def arguments(conds_out, scale, sigma, sigmas=None, negative="negative"):
    """As comfy.samplers.cfg_function makes them."""
    return {
        "conds": ["positive", negative],
        "conds_out": conds_out,
        "cond_scale": scale,
        "sigma": torch.full((len(conds_out[0]),), sigma),
        "model_options": {"transformer_options": {"sample_sigmas": sigmas}},
    }


def cfg(conds_out, scale):
    """What ComfyUI makes of the function's answer."""
    conditional, unconditional = conds_out[:2]
    return unconditional + (conditional - unconditional) * scale


@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0, 12.0])
@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (2, 4, 3, 6, 5)], ids=["image", "video"])
def test_cfg_of_its_answer_is_the_papers_guidance_over_a_whole_run(before_cfg, shape, scale):
    function, paper, sigmas = before_cfg(**OPTIONS), APG(scale=scale, **OPTIONS).begin(), torch.tensor([9.0, 4.0, 1.0])
    for step, sigma in enumerate(sigmas.tolist()):
        given = predictions(step, shape)
        made = function(arguments(given, scale, sigma, sigmas))
        assert torch.allclose(cfg(made, scale), paper(*given, sigma), atol=1e-5 * scale)
        assert made[1] is given[1]


@pytest.mark.parametrize("phi", [0.4, 1.0])
def test_rescaled(before_cfg, phi):
    function, paper = before_cfg(**OPTIONS, phi=phi), Rescaled(guidance=APG(scale=5.0, **OPTIONS), phi=phi).begin()
    for step, sigma in enumerate((9.0, 4.0)):
        given = predictions(step)
        made = function(arguments(given, 5.0, sigma))
        assert torch.allclose(cfg(made, 5.0), paper(*given, sigma), atol=2e-5)
        assert not torch.allclose(cfg(made, 5.0), APG(scale=5.0, **OPTIONS).begin()(*given, sigma), atol=1e-2)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_nothing_is_changed_where_cfg_takes_one_prediction_alone(before_cfg, scale):
    given = predictions(0)
    assert before_cfg(**OPTIONS, phi=0.5)(arguments(given, scale, 1.0)) is given


def test_nothing_is_changed_without_a_negative_prompt(before_cfg):
    given = predictions(0)
    assert before_cfg(**OPTIONS)(arguments(given, 4.0, 1.0, negative=None)) is given
    assert before_cfg(**OPTIONS)(arguments(given[:1], 4.0, 1.0)) == given[:1]


def test_further_predictions_pass_through(before_cfg):
    given = [*predictions(0), torch.ones(2), torch.zeros(2)]
    made = before_cfg(**OPTIONS)(arguments(given, 4.0, 1.0))
    assert made[2] is given[2]
    assert made[3] is given[3]
    assert len(made) == 4


def test_a_new_run_begins_without_the_average_of_the_last_one(before_cfg):
    """Also if it begins at a lower noise level, as image to image does. A run is known by its own sigmas tensor."""
    function = before_cfg(**OPTIONS)
    first, second = torch.tensor([9.0, 4.0]), torch.tensor([3.0, 1.0])
    for step, sigma in enumerate(first.tolist()):
        function(arguments(predictions(step), 4.0, sigma, first))
    given = predictions(7)
    made = function(arguments(given, 4.0, 3.0, second))
    assert torch.allclose(cfg(made, 4.0), APG(scale=4.0, **OPTIONS).begin()(*given, 3.0), atol=1e-4)
    other = predictions(8)
    following = cfg(function(arguments(other, 4.0, 1.0, second)), 4.0)
    alone = APG(scale=4.0, **OPTIONS).begin()(*other, 1.0)
    assert not torch.allclose(following, alone, atol=0.1), "within a run the average is kept"


def test_a_host_that_names_no_run(before_cfg):
    """Without the sigmas a run is known by its noise level, which rises when one begins."""
    options = {**OPTIONS, "norm_threshold": 0.0}
    function, given = before_cfg(**options), predictions(3)
    plain = {**arguments(given, 4.0, 2.0), "model_options": {}}
    once, twice = function(plain), function(plain)
    assert torch.equal(once[0], twice[0])
    lower = function({**plain, "sigma": plain["sigma"] / 2})
    assert not torch.allclose(lower[0], once[0], atol=0.1), "a lower level goes on with the average"


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_the_answer_has_the_predictions_dtype(before_cfg, phi):
    given = predictions(0, dtype=torch.float16)
    made = before_cfg(**OPTIONS, phi=phi)(arguments(given, 4.0, 1.0))
    assert [part.dtype for part in made] == [torch.float16] * 2
    wide = before_cfg(**OPTIONS, phi=phi)(arguments([part.float() for part in given], 4.0, 1.0))
    assert torch.allclose(made[0].float(), wide[0], atol=5e-3)


def test_the_model_that_came_in_is_left_alone(host):
    class Patcher:
        def __init__(self):
            self.function = None

        def clone(self):
            return Patcher()

        def set_model_sampler_pre_cfg_function(self, function):
            self.function = function

    given, patcher = predictions(0), Patcher()
    made = host("sweep.apg").add_guidance(patcher, phi=0.4, **OPTIONS)
    assert patcher.function is None
    expected = Rescaled(guidance=APG(scale=3.0, **OPTIONS), phi=0.4).begin()(*given, 1.0)
    assert torch.allclose(cfg(made.function(arguments(given, 3.0, 1.0)), 3.0), expected, atol=2e-5)


def test_any_method_of_the_engine_keeps_its_state_within_a_run_only(host):
    function, sigmas = host("sweep.apg").before_cfg_of(APG(scale=4.0, **OPTIONS)), torch.tensor([9.0, 4.0])
    for run in (sigmas, torch.tensor([3.0, 1.0])):
        paper = APG(scale=4.0, **OPTIONS).begin()
        for step, sigma in enumerate(run.tolist()):
            given = predictions(step)
            made = function(arguments(given, 4.0, sigma, run))
            assert torch.allclose(cfg(made, 4.0), paper(*given, sigma), atol=1e-4)
    given = predictions(0)
    assert function(arguments(given, 1.0, 1.0)) is given
    assert function(arguments(given, 4.0, 1.0, negative=None)) is given
