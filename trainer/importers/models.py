"""Base models: whose names are hub ids, and what the family of a trainer's word is."""

from pathlib import Path

from .translation import Translation

FAMILIES: dict[str, tuple[str, str]] = {
    "sd1x": ("sd", ""), "sd2x": ("sd", ""), "sd1": ("sd", ""), "sd2": ("sd", ""), "sd15": ("sd", "sd1"),
    "stable_diffusion_15": ("sd", "sd1"), "stable_diffusion_20_base": ("sd", "sd2"), "stable_diffusion_20": ("sd", "sd2-v"),
    "stable_diffusion_21": ("sd", "sd2-v"), "stable_diffusion_21_base": ("sd", "sd2"),
    "sdxl": ("sdxl", ""), "stable_diffusion_xl_10_base": ("sdxl", ""), "sd3": ("sd3", ""), "stable_diffusion_3": ("sd3", ""),
    "stable_diffusion_35": ("sd3", ""), "flux": ("flux", ""), "flux_dev_1": ("flux", "dev"), "flux_kontext": ("flux", "kontext"),
    "lumina2": ("lumina2", ""), "lumina_2": ("lumina2", ""), "lumina": ("lumina2", ""), "qwen_image": ("qwen_image", ""),
    "qwen": ("qwen_image", ""), "qwen_image_edit": ("qwen_image", "qwen-image-edit"),
    "qwen_image_edit_plus": ("qwen_image", "qwen-image-edit-plus"), "z_image": ("z_image", ""), "zimage": ("z_image", ""),
    "zimage_turbo": ("z_image", "z-image-turbo"), "zimage:turbo": ("z_image", "z-image-turbo"), "flux_dev": ("flux", "dev"),
    "flex1": ("flux", ""), "sd35": ("sd3", ""), "sd3_5": ("sd3", ""), "qwen_image:2512": ("qwen_image", "qwen-image"),
    "qwen_image_edit_2509": ("qwen_image", "qwen-image-edit-plus"), "qwen_image_edit_2511": ("qwen_image", "qwen-image-edit-plus"),
    "qwen_image21": ("qwen_image21", ""), "chroma": ("chroma", ""), "chroma1": ("chroma", ""), "chroma_1": ("chroma", ""),
    "flux2": ("flux2", ""), "flux_2": ("flux2", ""), "flux2_klein_4b": ("flux2", ""), "flux2_klein_9b": ("flux2", ""),
    "krea2": ("krea2", ""), "krea_2": ("krea2", ""), "krea2_turbo": ("krea2", "turbo"),
}  # fmt: skip
"""{word of a trainer in lower case: (our family, our variant or "" where the file decides)}."""
UNETS = ("sd", "sdxl")
"""Families whose `default` also has convolutions, which other trainers' defaults have not."""
FLOW = ("sd3", "flux", "lumina2", "qwen_image", "z_image", "qwen_image21", "chroma", "flux2", "krea2")
"""Families of flow models."""
EPSILON = ("pixart", "kolors", "deepfloyd", "stable_cascade", "wuerstchen", "stable_diffusion", "hunyuandit")
"""Beginnings of other trainers' words for models that no family here is, and that are no flow models."""
HUB = {
    "sd": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3.5-large",
    "flux": "black-forest-labs/FLUX.1-dev",
    "lumina2": "Alpha-VLLM/Lumina-Image-2.0",
    "qwen_image": "Qwen/Qwen-Image",
    "z_image": "Tongyi-MAI/Z-Image",
    "qwen_image21": "Qwen/Qwen-Image-2.1",
    "chroma": "lodestones/Chroma1-HD",
    "flux2": "black-forest-labs/FLUX.2-dev",
    "krea2": "krea/Krea-2-Raw",
}
"""{family: the repository that is usual for it}. Written where a file leaves the base model to the trainer."""


def put_family(translation: Translation, option: str, word: str) -> str:
    """Set the family and, where the word says it, the variant. Returns our family, "" for one that is not known."""
    family, variant = FAMILIES.get(word.lower().replace("-", "_"), ("", ""))
    if not family:
        note = f"lora-loom trains no {word} from the command line; in ComfyUI's graph these settings train whatever model it loads"
        translation.say("nearly", option, note=note)
        translation.notes.append(f"model.family: {note}")
        return ""
    translation.put("model.family", family, option)
    if variant:
        translation.put("model.variant", variant, option)
    return family


def is_flow(family: str, word: str) -> bool:
    """Whether a model is a flow model, by its family, or where there is none by the other trainer's word."""
    return family in FLOW or not (family or word.lower().replace("-", "_").startswith(EPSILON))


def put_base(translation: Translation, ours: str, name: str, *options: str, nearly: str = "") -> None:
    """Set a base model. A hub id becomes a folder, with the command that downloads it."""
    if not _is_hub_id(name):
        translation.put(ours, name, *options, nearly=nearly)
        return
    folder = f"models/{name.rpartition('/')[2]}"
    command = f"hf download {name} --local-dir {folder}"
    difference = f"nothing is downloaded while training; get it first: {command}"
    if options:
        translation.put(ours, folder, *options, nearly=difference)
    else:
        translation.put(ours, folder, why=f"first: {command}")
    translation.notes.append(f"{ours}: {difference}")


ADAPTERS = {
    "ostris/FLUX.1-schnell-training-adapter": "pytorch_lora_weights.safetensors",
    "ostris/zimage_turbo_training_adapter": "zimage_turbo_training_adapter_v1.safetensors",
}
"""{repository of a training adapter: its file}."""


def put_adapter(translation: Translation, name: str, strength: float, use: str, *options: str, why: str = "") -> None:
    """Set a base LoRA. One of the hub becomes a file, with the command that downloads it."""
    owner, _, rest = name.partition("/")
    parts = rest.split("/")
    repository = f"{owner}/{parts[0]}"
    file = "/".join(parts[1:]) or ADAPTERS.get(repository, "pytorch_lora_weights.safetensors")
    table = {"file": name, "strength": strength, "use": use}
    if _is_hub_id(repository) and not Path(name).expanduser().exists() and (len(parts) < 3):
        folder = f"models/{parts[0]}"
        command = f"hf download {repository} {file} --local-dir {folder}"
        table["file"] = f"{folder}/{file}"
        nearly = f"nothing is downloaded while training; get it first: {command}"
        translation.notes.append(f"model.base_lora: {nearly}")
        translation.put("model.base_lora", [table], *options, nearly=nearly if options else "", why=why)
    else:
        translation.put("model.base_lora", [table], *options, why=why)


def _is_hub_id(name: str) -> bool:
    """Whether a name is one of the hub: owner/model, and no such folder here."""
    parts = name.split("/")
    is_path = Path(name).suffix in (".safetensors", ".ckpt", ".sft", ".gguf") or Path(name).expanduser().exists()
    is_path = is_path or "\\" in name or parts[0] in ("", ".", "..", "~", "models", "checkpoints", "model", "ckpt")
    return len(parts) == 2 and all(parts) and not is_path
