"""What a LoRA file may hold that is not read here, and what a file without any adapter is: the true reason, with a remedy."""

from collections.abc import Iterable

from ...errors import ModelFileError

MAGNITUDE = "DoRA as PEFT saves it (lora_magnitude_vector)"
CONTROL = "a control LoRA of Black Forest Labs for Flux"
USO = "a LoRA of USO in its own names"
FOREIGN = {
    ".oft_diag": "oft_diag",
    ".lokr_t2": "lokr_t2",
    ".reshape_weight": "reshape_weight",
    ".key_norm.scale": CONTROL,
    ".query_norm.scale": CONTROL,
    ".lora_B.bias": "lora_B.bias",
    ".processor.qkv_lora1.up.weight": USO,
    ".processor.qkv_lora2.up.weight": USO,
    ".lora_magnitude_vector": MAGNITUDE,
    ".lora_magnitude_vector.weight": MAGNITUDE,
    ".on_input": "(IA)3 of LyCORIS",
    ".vera_lambda_b": "VeRA",
}
"""{end of a key: kind of adapter that is known and not read here}. ComfyUI ignores the first, fails on the second (it logs an error and
leaves the weight), and the third changes a weight's shape. ComfyUI renames the files of Black Forest Labs and of USO as they are loaded
(its `lora_convert`); the former widen the input of the network and set norms, the latter are told by names that no other file has."""
ELSEWHERE = (
    "ComfyUI does not apply it either: merge it with the program that made it, and extract a LoRA from the two models"
)
REMEDIES = {
    **dict.fromkeys(("oft_diag", "lokr_t2", MAGNITUDE, "(IA)3 of LyCORIS", "VeRA"), ELSEWHERE),
    CONTROL: "It widens the input of the network for a control image, which no plain LoRA does: use it in ComfyUI with a control image",
    USO: "It works together with USO's reference images: use it in ComfyUI, which renames it as it loads it",
}
MOST_LOOSE = 8
"""Weights without an adapter that a LoRA file may hold; a file with more is a model."""
EMBEDDING_KEYS = {"emb_params", "string_to_param", "clip_l", "clip_g", "clip_h", "t5xxl", "qwen", "gemma", "<concept>"}
"""Names of the tensors of embeddings, by the text encoder."""


def foreign_kinds(keys: Iterable[str]) -> list[str]:
    """The kinds of tensors among these keys that belong to adapters which are known and not read here, sorted."""
    keys = list(keys)
    found = {kind for key in keys for end, kind in FOREIGN.items() if key.endswith(end)}
    found -= {CONTROL} if is_model(keys) else set()  # whose norms every Flux has
    return sorted(found - {"lora_B.bias"} if CONTROL in found else found)


def is_model(keys: Iterable[str]) -> bool:
    """Whether keys that belong to no adapter are those of a whole model, or a part of one."""
    return sum(key.endswith(".weight") and "lora" not in key for key in keys) > MOST_LOOSE


def no_adapter(keys: Iterable[str]) -> str:
    """What a file without any adapter holds, with the remedy, to follow its name."""
    found = sorted(keys)
    if is_model(found):
        return "is a whole model or a part of one, not a LoRA: give it as the base model, or extract a LoRA from it"
    if found and set(found) <= EMBEDDING_KEYS:
        return "is an embedding (textual inversion), not a LoRA: put it into models/embeddings, and name it in prompts"
    return f"holds no LoRA tensors; it begins with {', '.join(found[:3])}" if found else "holds no LoRA tensors"


def refuse_foreign(keys: Iterable[str], name: str) -> None:
    """Raise ModelFileError if a file holds a kind of adapter that is not read here: half of it would be another change."""
    if kinds := foreign_kinds(keys):
        usual = "Load it in ComfyUI, save the checkpoint there, and extract a LoRA from it"
        remedy = next((REMEDIES[kind] for kind in kinds if kind in REMEDIES), usual)
        raise ModelFileError(f"{name} holds a kind of adapter that is not read here ({', '.join(kinds)}). {remedy}")
