"""What a loaded model predicts, for each of ComfyUI's parameterisations: the target is what makes the host denoise exactly."""

import pytest
import torch

from lora_loom.trainer.diffusion.objectives import FlowMatching

from . import samplings
from .samplings import FLOW_LEVELS, LEVELS

SIGMAS = torch.tensor([0.05, 0.4, 0.93])
KINDS = {
    "flow": samplings.CONST(),
    "flow, noise twice as loud": samplings.CONST(shift=3.0, noise_scale=2.0),
    "eps": samplings.EPS(),
    "v": samplings.V_PREDICTION(),
    "v of other data": samplings.V_PREDICTION(sigma_data=0.5),
    "EDM": samplings.EDM(),
    "EDM of other data": samplings.EDM(sigma_data=0.5),
    "X0": samplings.X0(),
    "IMG_TO_IMG": samplings.IMG_TO_IMG(),
    "IMG_TO_IMG_FLOW": samplings.IMG_TO_IMG_FLOW(),
    "V_PREDICTION_DDPM": samplings.V_PREDICTION_DDPM(),
}


@pytest.fixture
def objective(host):
    return host("backend.objective").HostObjective


def drawn(*shape):
    source = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=source), torch.randn(shape, generator=source)


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 2, 5, 6)], ids=["image", "video"])
@pytest.mark.parametrize("sampling", KINDS.values(), ids=KINDS)
def test_the_target_is_what_makes_the_host_denoise_exactly(objective, sampling, shape):
    """to_denoised(add_noise(x0, n, s), target(x0, n, s), s) == x0, one noise level for each sample."""
    model, (latents, noise) = objective(sampling), drawn(*shape)
    kept = latents.clone(), noise.clone()
    noisy = model.add_noise(latents, noise, SIGMAS)
    denoised = model.to_denoised(noisy, model.target(latents, noise, SIGMAS), SIGMAS)
    assert torch.allclose(denoised, latents, atol=2e-5)
    assert torch.equal(latents, kept[0]), "the batch's own tensors are not written to"
    assert torch.equal(noise, kept[1])


@pytest.mark.parametrize(
    ("sampling", "name"),
    [(samplings.CONST(), "flow"), (samplings.V_PREDICTION(), "v"), (samplings.EPS(), "epsilon"),
     (samplings.EDM(), "v"), (samplings.X0(), "epsilon"), (samplings.IMG_TO_IMG_FLOW(), "flow")],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_kinds_are_recognised_by_the_class(objective, sampling, name):
    assert objective(sampling).name == name


def test_a_kind_without_a_name_is_called_as_the_host_calls_it(objective):
    class Other(torch.nn.Module):
        sigmas = LEVELS

    assert objective(Other()).name == "Other"


def test_noise_levels_of_a_table_by_share(objective):
    model = objective(samplings.EPS())
    assert torch.equal(model.sigma_at(torch.tensor([0.0, 0.5, 0.9999, 1.0])), LEVELS[[0, 500, 999, 999]])
    assert torch.equal(model.sigmas, LEVELS)
    assert model.timestep(LEVELS[[3, 700]]).tolist() == [3, 700]
    assert torch.equal(model.sigma_of(torch.tensor([3, 700])), LEVELS[[3, 700]])


def test_noise_levels_of_a_flow_are_the_share(objective):
    model = objective(samplings.CONST(shift=3.0))
    share = torch.tensor([0.0, 0.123, 1.0])
    assert torch.equal(model.sigma_at(share), share)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_the_shift_is_read_off_the_schedule(objective, shift):
    assert objective(samplings.CONST(shift=shift)).sampling_shift() == pytest.approx(shift, rel=1e-5)


def test_sampling_starts_as_the_host_starts_it(objective):
    noise, _ = drawn(2, 4, 3, 3)
    kept = noise.clone()
    assert torch.allclose(objective(samplings.EPS()).start(noise, 3.0), kept * 10**0.5)
    assert torch.allclose(objective(samplings.CONST(noise_scale=2.0)).start(noise, 0.75), kept * 1.5)
    assert torch.equal(noise, kept)


def test_the_network_gets_its_input_scaled(objective):
    noisy, _ = drawn(2, 4, 3, 3)
    made = objective(samplings.EPS()).network_input(noisy, torch.tensor([0.0, 3.0]))
    assert torch.allclose(made, noisy / torch.tensor([1.0, 10**0.5]).reshape(2, 1, 1, 1))
    assert torch.equal(objective(samplings.CONST()).network_input(noisy, SIGMAS[:2]), noisy)


def test_signal_to_noise(objective):
    sigma = torch.tensor([0.25, 0.5, 0.8])
    assert torch.allclose(objective(samplings.CONST()).snr(sigma), FlowMatching().snr(sigma))
    assert torch.allclose(objective(samplings.EPS()).snr(sigma), torch.tensor([16.0, 4.0, 1.5625]))
    assert objective(samplings.EPS()).snr(torch.zeros(1)).isfinite().all()


def test_what_the_host_does_to_its_model_later_does_not_reach_the_training_thread(objective):
    sampling = samplings.CONST(shift=3.0)
    model = objective(sampling)
    sampling.sigmas.zero_()
    sampling.shift, sampling.noise_scale = 1.0, 5.0
    assert torch.equal(model.sigmas, 3 * FLOW_LEVELS / (1 + 2 * FLOW_LEVELS))
    assert model.sampling_shift() == pytest.approx(3.0, rel=1e-5)
    latents, noise = drawn(3, 4, 2, 2)
    assert torch.equal(model.target(latents, noise, SIGMAS), noise - latents)
    assert torch.allclose(model.add_noise(latents, noise, SIGMAS[:1]), 0.95 * latents + 0.05 * noise)


def test_pure_noise_is_asked_of_the_model(host):
    from lora_loom.nodes.host.backend.objective import check_pure_noise
    from lora_loom.trainer.config.run import ObjectiveConfig
    from lora_loom.trainer.diffusion.objectives import VPrediction
    from lora_loom.trainer.errors import ConfigError

    asked = ObjectiveConfig(zero_terminal_snr=True)
    with pytest.raises(ConfigError, match="put ModelSamplingDiscrete with zsnr on"):
        check_pure_noise(asked, VPrediction())
    check_pure_noise(asked, VPrediction(zero_terminal_snr=True))
    check_pure_noise(ObjectiveConfig(), VPrediction())
