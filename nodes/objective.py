"""LoomObjective: what a training step minimises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .node import InputTypes, LoomNode, Widget
from .settings import SETTINGS
from .sockets.names import OBJECTIVE
from .widgets import folded, text, widget

if TYPE_CHECKING:
    from .sockets.values import ObjectiveValue

BETA: Widget = (
    "FLOAT",
    {
        "default": 2.0,
        "min": 0.01,
        "max": 100.0,
        "step": 0.1,
        "tooltip": "One of the two parameters of beta sampling; equal ones are symmetric, 1 and 1 is uniform (objective.beta).",
    },
)


class LoomObjective(LoomNode):
    """Timestep sampling and loss."""

    TITLE = "Loom Objective"
    SEARCH_ALIASES = ("loss", "timestep sampling", "min snr", "noise offset", "huber")
    CATEGORY = SETTINGS
    DESCRIPTION = (
        "Timestep sampling and loss. The defaults suit the base model: its prediction type and shift are detected."
    )
    RETURN_TYPES = (OBJECTIVE,)
    RETURN_NAMES = ("objective",)
    OUTPUT_TOOLTIPS = ("Connect to Loom Train LoRA.",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return folded(
            {
                "required": {
                    "timesteps": widget("ObjectiveConfig", "timesteps"),
                    "shift": text(
                        "auto",
                        "Shifts the noise levels of flow models: above 1 trains high noise more. A number, auto (the family's own) or resolution (grows with the image).",
                    ),
                },
                "optional": {
                    "mean": widget("ObjectiveConfig", "mean", min=-10.0, max=10.0, step=0.05),
                    "std": widget("ObjectiveConfig", "std", min=0.01, max=10.0, step=0.05),
                    "mode_scale": widget("ObjectiveConfig", "mode_scale", min=-1.0, max=1.75, step=0.01),
                    "min_timestep": widget("ObjectiveConfig", "min_timestep", max=1.0, step=0.01),
                    "max_timestep": widget("ObjectiveConfig", "max_timestep", max=1.0, step=0.01),
                    "loss": widget("ObjectiveConfig", "loss"),
                    "huber_delta": widget("ObjectiveConfig", "huber_delta", min=0.001, max=10.0, step=0.01),
                    "min_snr_gamma": widget("ObjectiveConfig", "min_snr_gamma", max=100.0, step=0.5),
                    "noise_offset": widget("ObjectiveConfig", "noise_offset", max=1.0, step=0.01),
                    "masked_loss": widget("ObjectiveConfig", "masked_loss"),
                    "guidance": widget("ObjectiveConfig", "guidance", max=100.0, step=0.1),
                    "timestep_spread": widget("ObjectiveConfig", "timestep_spread"),
                    "guided_loss": widget("ObjectiveConfig", "guided_loss"),
                    "guided_scale": (
                        "FLOAT",
                        {
                            "default": 0.0,
                            "min": 0.0,
                            "max": 100.0,
                            "step": 0.1,
                            "tooltip": "Scale s of the guided loss: the guidance that the model was distilled at, 3 to 5. 0 is the usual one of the model.",
                        },
                    ),
                    "beta_a": BETA,
                    "beta_b": BETA,
                    "multires_noise_iterations": widget("ObjectiveConfig", "multires_noise_iterations", max=100),
                    "multires_noise_discount": widget("ObjectiveConfig", "multires_noise_discount", max=1.0, step=0.05),
                    "ip_noise_gamma": widget("ObjectiveConfig", "ip_noise_gamma", max=1.0, step=0.01),
                    "soft_min_snr": widget("ObjectiveConfig", "soft_min_snr"),
                    "debiased_loss": widget("ObjectiveConfig", "debiased_loss"),
                    "scale_v_loss": widget("ObjectiveConfig", "scale_v_loss"),
                    "huber_schedule": widget("ObjectiveConfig", "huber_schedule"),
                    "unmasked_probability": widget("ObjectiveConfig", "unmasked_probability", max=1.0, step=0.05),
                    "unmasked_weight": widget("ObjectiveConfig", "unmasked_weight", max=1.0, step=0.05),
                    "zero_terminal_snr": widget("ObjectiveConfig", "zero_terminal_snr"),
                    "scheduled_sampling_max_step_offset": widget(
                        "ObjectiveConfig", "scheduled_sampling_max_step_offset", max=999
                    ),
                    "scheduled_sampling_probability": widget(
                        "ObjectiveConfig", "scheduled_sampling_probability", max=1.0, step=0.05
                    ),
                    "scheduled_sampling_ramp_steps": widget(
                        "ObjectiveConfig", "scheduled_sampling_ramp_steps", max=1_000_000
                    ),
                    "scheduled_sampling_strategy": widget("ObjectiveConfig", "scheduled_sampling_strategy"),
                    "tread_routes": widget("ObjectiveConfig", "tread_routes"),
                    "timestep_list": text(
                        "",
                        "Noise levels of the timestep sampling list, as shares of the schedule (1 = pure noise), such as 1, 0.75, 0.5, 0.25 for Flux schnell; one that stands there twice is drawn twice as often.",
                    ),
                },
            },
            shown=("timesteps", "shift", "loss", "min_snr_gamma"),
        )

    def run(
        self, shift: str, guided_scale: float = 0.0, beta_a: float = 2.0, beta_b: float = 2.0, **options: Any
    ) -> tuple[ObjectiveValue]:
        from ..trainer.config.aliases import current_options
        from ..trainer.config.run import ObjectiveConfig
        from .sockets.values import ObjectiveValue

        listed = parse_list(options.pop("timestep_list", ""))
        options = current_options("objective", {**options, "guided_scale": guided_scale or "auto"})
        options["timestep_list"] = listed
        return (ObjectiveValue(objective=ObjectiveConfig(shift=parse_shift(shift), beta=(beta_a, beta_b), **options)),)


def parse_list(written: str) -> tuple[float, ...]:
    """The numbers of "1, 0.75". Raises ConfigError."""
    from ..trainer.errors import ConfigError

    try:
        return tuple(float(part) for part in written.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"timestep_list = {written!r}: write numbers from 0 to 1 with commas between them") from error


def parse_shift(written: str) -> Any:
    """The text of the input as a number where it is one, else as it is: the configuration knows its words."""
    try:
        return float(written)
    except ValueError:
        return written.strip()
