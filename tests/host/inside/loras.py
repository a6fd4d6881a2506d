"""LoRA files through the host's own loader: what each does to its toy's prediction, and what the loader says about it.

    python -m tests.host.inside.loras FOLDER

reads FOLDER/<toy>.<anything>.safetensors and writes FOLDER/<toy>.<anything>.effect, patched - base of the denoised latents.
"""

import logging
import sys
from pathlib import Path

from .toys import TOYS, answer, comfy, mm, torch, toy_inputs, toy_model


class Said(logging.Handler):
    """Keeps what the loader logs: it only warns about keys that it does not use."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def denoised(patcher, name):
    from record_host_keys import predict

    mm.load_models_gpu([patcher])
    return predict(patcher.model, TOYS[name], toy_inputs(TOYS[name]))[1]


@torch.inference_mode()
def effects(name, files):
    """{file name: what the loader said}, with the effects written beside the files."""
    import comfy.sd
    import comfy.utils
    from safetensors.torch import save_file

    patcher, told = toy_model(name), {}
    base = denoised(patcher, name)
    for file in files:
        said = Said()
        logging.getLogger().addHandler(said)
        try:
            tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
            patched, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)
            effect = denoised(patched, name) - base
        finally:
            logging.getLogger().removeHandler(said)
        told[file.name] = said.lines
        save_file({"effect": effect.clone().contiguous()}, file.with_suffix(".effect"))
        again = denoised(patcher, name)
        assert torch.equal(again, base), "the base is back"
    return told


def main(folder):
    by_toy = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        by_toy.setdefault(file.name.split(".")[0], []).append(file)
    told = {}
    for name, files in by_toy.items():
        told |= effects(name, files)
    answer({"told": told, "comfy": comfy.__name__})


if __name__ == "__main__":
    main(sys.argv[1])
