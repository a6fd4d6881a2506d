"""Names for drop-down lists; apart from `sampling.py`, because forms are made before anything heavy is needed."""

from ....trainer.choices import SAMPLERS, SCHEDULERS


def sampler_names() -> tuple[list[str], list[str]]:
    """(samplers, schedulers) as KSampler lists them; outside ComfyUI, the engine's."""
    try:
        from comfy.samplers import KSampler
    except ImportError:
        return list(SAMPLERS), list(SCHEDULERS)
    return list(KSampler.SAMPLERS), list(KSampler.SCHEDULERS)


def lora_names() -> list[str]:
    """LoRA files as LoraLoader lists them; none outside ComfyUI."""
    try:
        import folder_paths
    except ImportError:
        return []
    return list(folder_paths.get_filename_list("loras"))
