"""Skip-layer guidance in ComfyUI's own sampler, for the cells of a sweep."""

from typing import Any

from torch import Tensor

from ....trainer.config.run import GuidanceConfig
from ....trainer.diffusion.skip_layers import check_skip_layers
from ..comfy_types import ModelPatcher


def add_skip_layers(patcher: ModelPatcher, guidance: GuidanceConfig) -> ModelPatcher:
    """A clone of the MODEL that samples with skip-layer guidance, or the MODEL itself without any. Raises ConfigError for another
    model than SD3."""
    if not guidance.skip_layers:
        return patcher
    import comfy.model_patcher
    import comfy.samplers

    kind = type(patcher.model).__name__
    check_skip_layers("skip_layers", guidance.skip_layers, patcher.model.diffusion_model, kind)
    sampling = patcher.get_model_object("model_sampling")
    start, end = (sampling.percent_to_sigma(share) for share in (guidance.skip_layer_start, guidance.skip_layer_end))

    def after_cfg(arguments: dict[str, Any]) -> Tensor:
        denoised: Tensor = arguments["denoised"]
        if not end <= float(arguments["sigma"][0]) <= start:
            return denoised
        options = arguments["model_options"].copy()
        for layer in guidance.skip_layers:
            options = comfy.model_patcher.set_model_options_patch_replace(
                options, lambda given, extra: given, "dit", "double_block", layer
            )
        [skipped] = comfy.samplers.calc_cond_batch(
            arguments["model"], [arguments["cond"]], arguments["input"], arguments["sigma"], options
        )
        return denoised + (arguments["cond_denoised"] - skipped) * guidance.skip_layer_scale

    clone = patcher.clone()
    clone.set_model_sampler_post_cfg_function(after_cfg)
    return clone
