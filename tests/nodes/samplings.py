"""The parameterisations of ComfyUI's `model_sampling`, written out from its formulas: what `HostObjective` asks.

Each class is called as ComfyUI calls its own, since that name is what the kind is recognised by. Noising works in place,
which a host may do with tensors it is given.
"""

import torch

LEVELS = torch.linspace(0.03, 12.0, 1000)
FLOW_LEVELS = torch.arange(1, 1001) / 1000


def _wide(sigma, like):
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


class _Discrete(torch.nn.Module):
    """A table of noise levels; the timestep is the place in it."""

    def __init__(self, sigmas=LEVELS, sigma_data=1.0):
        super().__init__()
        self.sigma_data = sigma_data
        self.register_buffer("sigmas", sigmas.clone())

    def timestep(self, sigma):
        return (sigma.reshape(-1, 1) - self.sigmas).abs().argmin(dim=1)

    def sigma(self, timestep):
        return self.sigmas[timestep.long().clamp(0, len(self.sigmas) - 1)]


class EPS(_Discrete):
    def calculate_input(self, sigma, noise):
        return noise / (_wide(sigma, noise) ** 2 + self.sigma_data**2).sqrt()

    def calculate_denoised(self, sigma, model_output, model_input):
        return model_input - model_output * _wide(sigma, model_output)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        sigma = _wide(sigma, noise)
        noise *= (1 + sigma**2).sqrt() if max_denoise else sigma
        noise += latent_image
        return noise


class V_PREDICTION(EPS):
    sign = -1

    def calculate_denoised(self, sigma, model_output, model_input):
        sigma = _wide(sigma, model_output)
        total = sigma**2 + self.sigma_data**2
        skipped = model_input * self.sigma_data**2 / total
        return skipped + self.sign * model_output * sigma * self.sigma_data / total.sqrt()


class EDM(V_PREDICTION):
    sign = 1


class X0(EPS):
    def calculate_denoised(self, sigma, model_output, model_input):
        return model_output


class IMG_TO_IMG(X0):
    def calculate_input(self, sigma, noise):
        return noise


class CONST(_Discrete):
    """Rectified flow with a shift; `noise_scale` multiplies the noise, as some models have it."""

    def __init__(self, shift=1.0, noise_scale=None):
        super().__init__(shift * FLOW_LEVELS / (1 + (shift - 1) * FLOW_LEVELS))
        self.shift = shift
        if noise_scale is not None:
            self.noise_scale = noise_scale

    def timestep(self, sigma):
        return sigma * 1000

    def sigma(self, timestep):
        share = timestep / 1000
        return self.shift * share / (1 + (self.shift - 1) * share)

    def calculate_input(self, sigma, noise):
        return noise

    def calculate_denoised(self, sigma, model_output, model_input):
        return model_input - model_output * _wide(sigma, model_output)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        sigma = _wide(sigma, noise)
        noise *= sigma * getattr(self, "noise_scale", 1.0)
        noise += (1 - sigma) * latent_image
        return noise


class IMG_TO_IMG_FLOW(CONST):
    def calculate_denoised(self, sigma, model_output, model_input):
        return model_output

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image


class V_PREDICTION_DDPM(_Discrete):
    """No kind that the engine has a name for: asked of the host alone."""

    noise_scaling = EPS.noise_scaling

    def calculate_denoised(self, sigma, model_output, model_input):
        sigma = _wide(sigma, model_output)
        return (model_input - model_output * sigma) / (sigma**2 + 1).sqrt()
