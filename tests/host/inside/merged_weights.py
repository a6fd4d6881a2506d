"""LoRA files through ComfyUI's own loader: the weights that it patches, and the keys that it does not use.

    python -m tests.host.inside.merged_weights FOLDER

reads FOLDER/<toy>.<anything>.lora.safetensors, writes FOLDER/<toy>.<anything>.patched, the whole denoiser, and answers {file name:
lines of the loader}.
"""

import logging
import sys
from pathlib import Path

from .loras import Said
from .toys import answer, comfy, torch, toy_model


@torch.inference_mode()
def patched(patcher, file):
    """What the loader says; the patched weights are written beside the file."""
    import comfy.lora
    import comfy.sd
    import comfy.utils
    from record_host_keys import file_name
    from safetensors.torch import save_file

    said = Said()
    logging.getLogger().addHandler(said)
    try:
        tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
        changed, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)
        weights = dict(patcher.model.diffusion_model.state_dict())
        for key, patches in changed.patches.items():
            name = key.removeprefix("diffusion_model.")
            weights[name] = comfy.lora.calculate_weight(patches, weights[name].clone(), key)
    finally:
        logging.getLogger().removeHandler(said)
    named = {file_name(name): tensor.clone().contiguous() for name, tensor in weights.items()}
    save_file(named, file.with_suffix(".patched"))
    return said.lines


def main(folder):
    told, patchers = {}, {}
    for file in sorted(Path(folder).glob("*.lora.safetensors")):
        name = file.name.split(".")[0]
        patchers.setdefault(name, toy_model(name))
        told[file.name] = patched(patchers[name], file)
    answer({"told": told, "comfy": comfy.__name__})


if __name__ == "__main__":
    main(sys.argv[1])
