"""Names for drop-down lists. They are apart from `sampling.py`, because ComfyUI asks for inputs before torch is needed."""

from ....trainer.choices import SAMPLERS, SCHEDULERS


def sampler_names() -> tuple[list[str], list[str]]:
    """Returns (samplers, schedulers) as KSampler lists them; outside ComfyUI, those of the trainer."""
    try:
        from comfy.samplers import KSampler
    except ImportError:
        return list(SAMPLERS), list(SCHEDULERS)
    return list(KSampler.SAMPLERS), list(KSampler.SCHEDULERS)


def lora_names() -> list[str]:
    """LoRA files as LoraLoader lists them; an empty list outside ComfyUI."""
    try:
        import folder_paths
    except ImportError:
        return []
    return list(folder_paths.get_filename_list("loras"))


BASE_FOLDERS = ("checkpoints", "diffusion_models")
"""ComfyUI's folders that hold base models."""


def base_names() -> list[str]:
    """Base models as ComfyUI lists them, behind the name of their folder: checkpoints/a.safetensors; an empty list outside ComfyUI."""
    try:
        import folder_paths
    except ImportError:
        return []
    return [f"{folder}/{name}" for folder in BASE_FOLDERS for name in folder_paths.get_filename_list(folder)]
