"""Text encoders of a merged checkpoint, and of its base under ComfyUI's LoRA loader: what both say about the same tokens.

    python -m tests.host.inside.merged_text FOLDER

reads FOLDER/<toy>.{base,merged,lora}.safetensors and answers {toy: {encoder: [|base + LoRA - base|, |merged - (base + LoRA)|], "unused": keys}}.
Checkpoints go through ComfyUI's own renaming, so its names are those of real files; only widths are small.
"""

import json
import sys
import tempfile
from pathlib import Path

from .toys import answer, mm, torch, toy_tensor

CONFIG = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "quick_gelu", "projection_dim": 8,
    "max_position_embeddings": 77, "vocab_size": 49408, "eos_token_id": 49407, "layer_norm_eps": 1e-5, "num_channels": 3, "model_type": "clip_text_model",
}  # fmt: skip
TOKENS = [[49406, 5, 17, 230, *[49407] * 73]]
STRENGTH = 0.5
PARTS = {"sd1": ("clip_l",), "sdxl": ("clip_l", "clip_g")}


def encoders(toy, path):
    """A module with the encoders of a checkpoint as ComfyUI names and fills them."""
    import comfy.supported_models
    import comfy.utils
    from comfy.sd1_clip import SDClipModel

    kind = {"sd1": comfy.supported_models.SD15, "sdxl": comfy.supported_models.SDXL}[toy]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:  # older versions take a file only
        json.dump(CONFIG, file)
        file.flush()
        model = torch.nn.Module()
        for part in PARTS[toy]:
            setattr(model, part, SDClipModel(device="cpu", dtype=torch.float32, textmodel_json_config=file.name))
    model.load_state_dict({key: toy_tensor(key, tuple(t.shape)) for key, t in model.state_dict().items() if t.is_floating_point()}, strict=False)  # fmt: skip
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    keys = ("cond_stage_model.", "conditioner.")
    renamed = kind.process_clip_state_dict(
        kind.__new__(kind), {key: t for key, t in tensors.items() if key.startswith(keys)}
    )
    missing = set(renamed) - set(model.state_dict())
    assert not missing, missing
    model.load_state_dict(renamed, strict=False)
    return model


def said(patcher, toy):
    mm.load_models_gpu([patcher])
    found = {part: getattr(patcher.model, part).encode(TOKENS) for part in PARTS[toy]}
    texts = {part: hidden.clone() for part, (hidden, _) in found.items()}
    return texts | ({"clip_g pooled": found["clip_g"][1].clone()} if "clip_g" in found else {})


@torch.inference_mode()
def compare(toy, folder):
    import comfy.lora
    import comfy.utils

    cpu = torch.device("cpu")
    base, merged = (comfy.model_patcher.ModelPatcher(encoders(toy, folder / f"{toy}.{name}.safetensors"), load_device=cpu, offload_device=cpu) for name in ("base", "merged"))  # fmt: skip
    tensors = comfy.utils.load_torch_file(str(folder / f"{toy}.lora.safetensors"), safe_load=True)
    patches = comfy.lora.load_lora(dict(tensors), comfy.lora.model_lora_keys_clip(base.model, {}))
    plain = said(base, toy)
    patched = base.clone()
    used = patched.add_patches(patches, STRENGTH)
    mine, theirs = said(merged, toy), said(patched, toy)
    found = {part: [float((theirs[part] - plain[part]).norm()), float((mine[part] - theirs[part]).norm())] for part in plain}  # fmt: skip
    return {**found, "used": len(used), "modules": len({key.split(".")[0] for key in tensors if key.startswith("lora_te")})}  # fmt: skip


def main(folder):
    answer({toy: compare(toy, Path(folder)) for toy in PARTS})


if __name__ == "__main__":
    main(sys.argv[1])
