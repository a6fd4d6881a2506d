"""Options of what a step minimises: the [objective] table."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..choices import GUIDED_LOSSES, LOSSES, TIMESTEP_SAMPLING, Choice
from ..types import Route
from .checks import OneOf
from .section import Section, require

AUTO_TIMESTEPS = Choice(
    help="logit_normal for flow models, uniform for the others", options=("logit_mean", "logit_std")
)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Section, table="objective"):
    """What a step minimises: at which noise levels, and by which loss."""

    timestep_sampling: Annotated[str, OneOf(TIMESTEP_SAMPLING, {"auto": AUTO_TIMESTEPS})] = "auto"
    """Timestep sampling: the distribution that the noise level of each image in a step is drawn from."""
    logit_mean: float = 0.0
    """Mean of logit_normal: above 0 trains composition more, below 0 detail."""
    logit_std: float = 1.0
    """Standard deviation of logit_normal; smaller concentrates training on fewer noise levels."""
    mode_scale: float = 1.29
    """Strength s of mode sampling (SD3 paper, 3.1): above 0 trains the middle noise levels more, below 0 the ends."""
    beta: tuple[float, float] = (2.0, 2.0)
    """The two parameters of beta sampling; equal ones are symmetric, [1, 1] is uniform."""
    timestep_list: tuple[float, ...] = ()
    """Noise levels of list, as shares of the schedule (1 = pure noise); one that stands there twice is drawn twice as often. [1, 0.75, 0.5, 0.25] are the four steps of Flux schnell. shift applies to them: 1 leaves them as they are."""
    shift: float | Literal["auto", "resolution"] = "auto"
    """Shifts the noise levels of flow models: above 1 trains high noise more. auto is the family's own; resolution grows with the image."""
    min_timestep: float = 0.0
    """Lowest noise level that is trained, as a share of the schedule (0 = clean)."""
    max_timestep: float = 1.0
    """Highest noise level that is trained, as a share of the schedule (1 = pure noise)."""
    timestep_spread: Literal["auto", "even", "independent"] = "auto"
    """How the noise levels of an image are drawn. even: from visit to visit they walk evenly through the distribution, so that none is missed for long. independent: each for itself, as version 0.1 did. auto: even; an earlier run goes on as it began."""
    loss: Annotated[str, OneOf(LOSSES)] = "mse"
    """Loss between the prediction and its target."""
    huber_delta: float = 0.1
    """Error at which huber and smooth_l1 turn from square to linear."""
    min_snr_gamma: float = 0.0
    """Clamps the loss weight of low noise levels (Min-SNR, arXiv 2303.09556); 5 is usual, 0 switches it off. Epsilon and v models only."""
    noise_offset: float = 0.0
    """Adds a constant per channel to the noise, which allows darker and brighter images; 0.05 to 0.1 is usual, 0 switches it off. Epsilon and v models only."""
    masked_loss: Literal["normalised", "plain"] = "normalised"
    """What a masked loss is divided by: normalised by the mask's own sum, plain by the size of the image (small masks then train weakly)."""
    multires_noise_iterations: int = 0
    """Adds noise at this many lower resolutions, which allows darker and brighter images and larger shapes (pyramid noise); 6 to 10 is usual, 0 switches it off. Epsilon and v models only."""
    multires_noise_discount: float = 0.3
    """Factor on the strength from one resolution of multires_noise_iterations to the next; 0.1 to 0.3 with few images, up to 0.8."""
    ip_noise_gamma: float = 0.0
    """Input perturbation: the noisy latents get this much more noise than the target knows of (arXiv 2301.11706); 0.1 is usual, 0 switches it off."""
    soft_min_snr: bool = False
    """min_snr_gamma without its corner: the harmonic mean SNR * gamma / (SNR + gamma) takes the place of the minimum."""
    debiased_loss: bool = False
    """Weighs the loss by 1 / sqrt(SNR), for v models by 1 / (SNR + 1), so that all noise levels count alike (arXiv 2310.08442). Epsilon and v models only."""
    scale_v_loss: bool = False
    """Weighs the loss of a v model by SNR / (SNR + 1), as that of an epsilon model is (sd-scripts' scale_v_pred_loss_like_noise_pred)."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "constant"
    """How huber_delta depends on the noise level. exponential: from 1 at none to huber_delta at the highest. snr: the same by the noise level itself, epsilon and v models only."""
    unmasked_probability: float = 0.0
    """Probability that a training step ignores the mask of an image, so that its surroundings are learnt a little."""
    unmasked_weight: float = 0.0
    """Lowest weight of a masked loss, where the mask is black."""
    zero_terminal_snr: bool = False
    """Rescales the noise levels so that the highest is pure noise (arXiv 2305.08891), in training and in samples: for v models that make very dark and bright images. In the graph the MODEL says it (ModelSamplingDiscrete, zsnr)."""
    guidance_scale: float = 1.0
    """Guidance value that guidance-distilled models (Flux dev) receive while training. 1.0 keeps the distillation; FluxBooru was trained at 3.5."""
    guided_loss: Annotated[str, OneOf(GUIDED_LOSSES)] = "off"
    """Keeps the guidance that is distilled into a model which samples at CFG 1 without a guidance input, where the plain loss undoes it (docs/distilled-models.md). It takes one more forward pass without gradient. Images with a dropped caption keep the plain loss. Models distilled to few steps need a training adapter instead."""
    guided_scale: float | Literal["auto"] = "auto"
    """Scale s of the guided loss: the guidance that the model was distilled at, 3 to 5. auto is the family's own, 4 where none is known."""

    tread_routes: str = ""
    """Token routing (TREAD, arXiv 2501.04765), for speed: "first:last:ratio", separated by commas. In training, and not in samples, this share of the image's tokens passes by the blocks from first to last, which compute on the others; numbers from 0, below 0 from the end. "2:-2:0.5" is usual. Flux, Flux.2, Chroma, SD3 and Qwen-Image."""
    scheduled_sampling_max_step_offset: int = 0
    """Scheduled sampling: the noisy latents of a training step are made by the network itself, from latents noised up to this many of 1000 timesteps earlier, as they are in sampling (SimpleTuner's name). Each timestep is a forward pass without gradient; 0 switches it off. Sliders of prompts have none."""
    scheduled_sampling_probability: float = 1.0
    """Probability that an image of a training step has a rollout."""
    scheduled_sampling_ramp_steps: int = 0
    """Steps over which that probability rises from 0; 0: it is what it is from the first step."""
    scheduled_sampling_strategy: Literal["uniform", "biased_early", "biased_late"] = "uniform"
    """How far a rollout goes back: uniform: as often by any number of timesteps from 0 on. biased_early: mostly by few. biased_late: mostly by many."""

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes of `tread_routes`. Raises ValueError for another text."""
        parts = [one.split(":") for one in self.tread_routes.split(",") if one.strip()]
        return tuple(Route(first=int(first), last=int(last), ratio=float(ratio)) for first, last, ratio in parts)

    def _check_routes(self) -> None:
        remedy = 'write first:last:ratio with a ratio from 0 to below 1, such as "2:-2:0.5"'
        try:
            is_fine = all(0 <= one.ratio < 1 for one in self.routes)
        except ValueError:
            is_fine = False
        require(is_fine, "objective.tread_routes", self.tread_routes, remedy)

    def check(self) -> None:
        self._check_routes()
        require(self.logit_std > 0, "objective.logit_std", self.logit_std, "use a number above 0")
        require(
            0 <= self.min_timestep < self.max_timestep <= 1,
            "objective.min_timestep",
            self.min_timestep,
            f"use 0 <= min_timestep < max_timestep = {self.max_timestep} <= 1",
        )
        listed, remedy = self.timestep_list, "use shares of the schedule from 0 to 1, such as [1, 0.75, 0.5, 0.25]"
        is_listed = bool(listed) or self.timestep_sampling != "list"
        require(is_listed and all(0 <= one <= 1 for one in listed), "objective.timestep_list", list(listed), remedy)
        require(min(self.beta) > 0, "objective.beta", self.beta, "use two numbers above 0")
        require(
            isinstance(self.shift, str) or self.shift > 0,
            "objective.shift",
            self.shift,
            "use a number above 0, auto or resolution",
        )
        remedy = "use a number above 1 (4 is usual), or auto"
        is_scale = self.guided_scale == "auto" or self.guided_scale > 1
        require(is_scale, "objective.guided_scale", self.guided_scale, remedy)
        require(self.huber_delta > 0, "objective.huber_delta", self.huber_delta, "use a number above 0")
        require(
            self.min_snr_gamma >= 0, "objective.min_snr_gamma", self.min_snr_gamma, "use 0 (off) or more (5 is usual)"
        )
        require(self.noise_offset >= 0, "objective.noise_offset", self.noise_offset, "use 0 (off) or more")
        most = self.scheduled_sampling_max_step_offset
        remedy = "use 0 (off) to 999 (10 is usual)"
        require(0 <= most <= 999, "objective.scheduled_sampling_max_step_offset", most, remedy)
        require(
            self.scheduled_sampling_ramp_steps >= 0,
            "objective.scheduled_sampling_ramp_steps",
            self.scheduled_sampling_ramp_steps,
            "use 0 (off) or more",
        )
        shares = (
            "scheduled_sampling_probability",
            "multires_noise_discount",
            "unmasked_probability",
            "unmasked_weight",
        )
        for name in ("multires_noise_iterations", "ip_noise_gamma", *shares):
            require(getattr(self, name) >= 0, f"objective.{name}", getattr(self, name), "use 0 (off) or more")
        for name in shares:
            require(getattr(self, name) <= 1, f"objective.{name}", getattr(self, name), "use 0 to 1")
