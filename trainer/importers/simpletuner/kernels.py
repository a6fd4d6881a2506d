"""SimpleTuner: what its configuration says of kernels, of the dtype of text encoders, and of the hub."""

from ..models import UNETS
from ..translation import Translation

KERNELS = {"diffusers": "", "xformers": "xformers", "flash-attn": "flash", "flash-attn-2": "flash", "flash-attn-3": "flash3", "cudnn": "cudnn",
           "native": "sdpa", "native-cudnn": "cudnn", "native-efficient": "efficient", "native-math": "math", "native-flash": "sdpa"}  # fmt: skip
"""{attention_mechanism: model.attention, "" for auto}."""
PACKED = {
    "int8": "int8",
    "int4": "int4",
    "int2": "int2",
    "fp8": "float8",
    "fp8uz": "float8",
    "fp8wo": "float8",
    "nf4": "nf4",
}
"""{beginning of text_encoder_N_precision: text.quantize}."""
CHOOSES = ("flux", "qwen_image", "z_image", "flux2", "chroma", "krea2")
"""Families whose network leaves a choice of attention."""


def attention(made: Translation, family: str) -> None:
    """Set the kernel of the attention."""
    word = made.text("attention_mechanism", "diffusers").lower()
    plain = word.removesuffix("-hub").replace("-varlen", "")
    ours = KERNELS.get(plain)
    if word.startswith("sage"):
        made.say(
            "none",
            "attention_mechanism",
            "sageattention_usage",
            note="SageAttention has no gradient; torch's attention trains",
        )
    elif not ours or family not in CHOOSES:
        note = (
            "torch's attention (SDPA) is used"
            if not ours
            else f"diffusers' {family or 'network'} leaves no choice; SDPA is used"
        )
        made.say("needless" if ours is not None else "none", "attention_mechanism", note=note)
    else:
        made.put("model.attention", ours, "attention_mechanism")


def encoders_dtype(made: Translation, family: str) -> None:
    """Set the dtype of the text encoders, where one is asked for."""
    names = [f"text_encoder_{number}_precision" for number in (1, 2, 3, 4)]
    words = [made.text(name, "no_change") for name in names]
    plain = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    chosen = next((plain[word] for word in words if word in plain), "")
    packed = next((PACKED[word.partition("-")[0]] for word in words if word.partition("-")[0] in PACKED), "")
    for name, word in zip(names, words, strict=True):
        if word in plain:
            made.put("text.dtype", chosen, name, nearly="" if plain[word] == chosen else "one dtype for all here")
        elif word == "no_change":
            made.say("needless", name, note="auto: bfloat16 on a GPU")
        elif packed and family not in UNETS:
            same = PACKED.get(word.partition("-")[0], "") == packed
            difference = "" if same else "one for all here"
            made.put("text.quantize", packed, name, nearly=difference or "CLIP's stay as they are")
        else:
            note = (
                "CLIP is small, and not quantized here"
                if family in UNETS
                else f"there is no {word} here; they stay as they are"
            )
            made.say("nearly", name, note=note)


def hub(made: Translation) -> None:
    """Set what is pushed to the hub."""
    names = ("push_to_hub", "push_checkpoints_to_hub", "hub_model_id")
    if not (made.on("push_to_hub") or made.on("push_checkpoints_to_hub")):
        made.say("needless", *names, "model_card_private", note="nothing is pushed")
        return
    made.put("output.hub_repo", made.text("hub_model_id") or str(made.settings["name"]), "push_to_hub", "hub_model_id")
    late = "at the end of the run here" if made.on("push_checkpoints_to_hub") else ""
    made.put("output.hub_checkpoints", made.on("push_checkpoints_to_hub"), "push_checkpoints_to_hub", nearly=late)
    made.put("output.hub_private", made.on("model_card_private", True), "model_card_private")
    made.say("none", "model_card_note", "model_card_safe_for_work", note="write it into the card: lora-loom card RUN")
