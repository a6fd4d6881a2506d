"""Model files through ComfyUI's own loading: which keys are missing or of no use, and what the model then predicts.

    python -m tests.host.inside.models FOLDER

reads FOLDER/<toy>.safetensors, writes FOLDER/<toy>.denoised, and answers {toy: [what loading said]}.
"""

import logging
import sys
from pathlib import Path

from .loras import Said, denoised
from .toys import TOYS, answer, mm, torch, toy_model


@torch.inference_mode()
def load(name, file):
    """What `load_model_weights` says; the prediction of the toy with the file's weights is written beside it."""
    import comfy.utils
    from safetensors.torch import save_file

    patcher = toy_model(name)
    for parameter in patcher.model.diffusion_model.parameters():
        parameter.zero_()
    tensors, said = comfy.utils.load_torch_file(str(file), safe_load=True), Said()
    logging.getLogger().addHandler(said)
    try:
        # what comfy.sd.load_diffusion_model_state_dict does after it has chosen the class, which it does by the size of real models
        patcher.model.load_model_weights(tensors, "")
    finally:
        logging.getLogger().removeHandler(said)
    save_file({"denoised": denoised(patcher, name).clone().contiguous()}, file.with_suffix(".denoised"))
    return said.lines


def main(folder):
    answer({file.stem: load(file.stem, file) for file in sorted(Path(folder).glob("*.safetensors")) if file.stem in TOYS})  # fmt: skip
    mm.unload_all_models()


if __name__ == "__main__":
    main(sys.argv[1])
