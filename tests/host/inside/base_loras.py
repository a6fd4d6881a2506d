"""Base LoRAs inside a real ComfyUI: a shadow that computes with a MODEL's LoRA against the weights that ComfyUI patches by itself.

Answers {toy: {kind: {"model": error of predictions, "gradient": of an adapter's gradients, "file": as from a file, "moved": what the LoRA does}}}.
"""

import sys

from .gradients import adapted, gradients, loss_of
from .toys import TOYS, answer, import_pack, mm, relative, torch
from .weights import setting

KINDS = ("lora", "loha", "lokr")


def tensors_of(kind, denoiser, split):
    """A LoRA on every target module, as a file has it; with `split` under the names of parts of fused layers, else of the whole."""
    source, found = torch.Generator().manual_seed(0), {}
    paths = denoiser.target_presets["attention+mlp"].paths
    parts = {f"{whole}.{name}" for whole, inside in denoiser.settings.parts.items() for name in inside}
    wholes = {path.rpartition(".")[0] if path in parts and not split else path for path in paths}
    for path in sorted(wholes):
        rows, columns = denoiser.module.get_submodule(path).weight.flatten(1).shape

        def draw(*size):
            return torch.randn(size, generator=source) * 0.2

        kernel = denoiser.module.get_submodule(path).weight.shape[2:]
        if kind == "lora":
            made = {"lora_A.weight": draw(2, columns).reshape(2, -1, *kernel), "lora_B.weight": draw(rows, 2).reshape(rows, 2, *[1] * len(kernel))}  # fmt: skip
        elif kind == "loha":
            made = {f"hada_w{n}_{f}": draw(*((rows, 2) if f == "a" else (2, columns))) for n in "12" for f in "ab"}
        else:
            made = {"lokr_w1": draw(2, 2), "lokr_w2_a": draw(rows // 2, 2), "lokr_w2_b": draw(2, columns // 2)}
        key = denoiser.file_key(path)
        found |= {f"{key}.{name}": tensor for name, tensor in made.items()} | {f"{key}.alpha": torch.tensor(1.0)}
    return found


def case(loom, name, kind):
    from comfy.sd import load_lora_for_models

    from .toys import toy_model

    read = loom("nodes.host.backend.base_loras").read_base_loras
    lay = loom("trainer.lora.base_lora").lay_base_loras
    plain = toy_model(name)
    denoiser, noisy, sigma, samples = setting(loom, plain, name, torch.float32)
    tensors = tensors_of(kind, denoiser, split=kind == "lora")
    patched, _ = load_lora_for_models(plain, None, dict(tensors), 0.8, 0)
    weights = torch.ones_like(noisy)

    def measure(denoiser):
        loom("trainer.weights.frozen").compute_in(denoiser.module, torch.float32)
        loom("nodes.host.backend.checkpointing").checkpoint_blocks(denoiser.module, denoiser.settings.blocks)
        with torch.no_grad():
            predicted = denoiser.predict(noisy, sigma, {"samples": samples})
        adapter = adapted(loom, denoiser, denoiser.module)
        return predicted, gradients(adapter, loss_of(denoiser, noisy, sigma, samples, weights))

    def load(patcher):
        return loom("nodes.host.backend.denoiser").load_denoiser(patcher, compute_dtype=torch.float32)

    base = measure(load(plain))[0]
    mine = load(patched)
    lay(mine.module, read(patched, ()))
    mine = measure(mine)
    config = loom("trainer.config.model").BaseLoraConfig(file=save(tensors), strength=0.8)
    filed = load(plain)
    lay(filed.module, read(plain, [config]))
    filed = measure(filed)
    with torch.inference_mode():
        mm.load_models_gpu([patched])
    network = patched.model.diffusion_model
    merged = toy_model(name)
    with torch.inference_mode():
        merged.model.diffusion_model.load_state_dict({k: v.clone() for k, v in network.state_dict().items()})
    merged = measure(load(merged))
    return {
        "moved": relative(merged[0], base), "model": relative(mine[0], merged[0]), "gradient": relative(mine[1], merged[1]),
        "file": float((filed[0] - mine[0]).norm() + (filed[1] - mine[1]).norm()),
    }  # fmt: skip


def save(tensors):
    import tempfile
    from pathlib import Path

    from safetensors.torch import save_file

    path = Path(tempfile.mkdtemp()) / "below.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return str(path)


def main(names):
    loom = import_pack()
    answer({name: {kind: case(loom, name, kind) for kind in KINDS} for name in names or TOYS})


if __name__ == "__main__":
    main(sys.argv[1:])
