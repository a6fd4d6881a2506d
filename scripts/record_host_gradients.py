"""Ask a real ComfyUI what training its toy models would compute, and write it down as a fixture.

    COMFYUI_PATH=~/ComfyUI $COMFYUI_PYTHON scripts/record_host_gradients.py tests/fixtures/host/gradients.safetensors

Per toy: "<toy>.loss", the loss of each sample for the toy's latents, noise and noise levels, and "<toy>.gradients", for every
weight matrix in the order of its names the length of the mean loss's gradient and its products with three fixed matrices.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NO_SWITCH = "the rotary kernels have no gradient"


def out_of_place() -> Any:
    """A mode in which Python's `x += y` makes a new tensor: the host's networks add in place, which has no gradient."""
    import torch

    plain = {"add_": torch.add, "sub_": torch.sub, "mul_": torch.mul, "div_": torch.div}

    class OutOfPlace(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return plain.get(getattr(function, "__name__", ""), function)(*args, **(kwargs or {}))

    return OutOfPlace()


def trainable(network: Any) -> dict[str, Any]:
    """{original key: weight} of all matrices and kernels, in layers that have a gradient."""
    import torch
    from record_host_keys import file_name

    for module in network.modules():
        for plain in (torch.nn.Linear, torch.nn.Conv2d):
            if isinstance(module, plain):
                module.__class__ = plain
    weights = {file_name(key): p for key, p in network.named_parameters() if key.endswith(".weight") and p.ndim > 1}
    for weight in weights.values():
        weight.requires_grad_(True)
    return weights


def losses(comfy: Any, model: Any, toy: Any, inputs: Mapping[str, Any]) -> Any:
    """Mean squared error of each sample, (B,), between what the network predicts and what it is trained to predict."""
    import comfy.model_sampling
    from record_host_keys import predict

    noisy, denoised = predict(model, toy, dict(inputs), grad=True)
    sigma = inputs["sigma"].reshape(-1, 1, 1, 1)
    flow = isinstance(model.model_sampling, comfy.model_sampling.CONST)
    target = inputs["noise"] - inputs["latents"] if flow else inputs["noise"]
    return ((noisy - denoised) / sigma - target).square().flatten(1).mean(1)


def record(comfy: Any, toy: Any) -> tuple[Any, Any]:
    """(losses, gradient_summary of the gradients) of one toy."""
    import torch
    from host_toys import gradient_summary, toy_inputs, toy_tensor
    from record_host_keys import build

    model = build(comfy, toy, toy_tensor)
    weights = trainable(model.diffusion_model)
    comfy.model_management.in_training = True  # the host's own switch for kernels that have a gradient
    with out_of_place():
        loss_B = losses(comfy, model, toy, toy_inputs(toy))
        found = torch.autograd.grad(loss_B.mean(), list(weights.values()), allow_unused=True)
    pairs = zip(weights.items(), found, strict=True)
    return loss_B.detach(), gradient_summary({key: torch.zeros_like(w) if g is None else g for (key, w), g in pairs})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file.resolve()
    sys.path.append(str(Path(__file__).resolve().parent))
    from record_host_keys import host

    comfy, version = host()
    if not hasattr(comfy.model_management, "in_training"):
        sys.exit(f"{NO_SWITCH} in ComfyUI {version}: record from a newer one")
    import torch
    from host_toys import HEADLESS, TOYS
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    recorded = {}
    for name in HEADLESS:
        recorded[f"{name}.loss"], recorded[f"{name}.gradients"] = record(comfy, TOYS[name])
        print(f"{name}: loss {recorded[f'{name}.loss'].tolist()}, {len(recorded[f'{name}.gradients'])} weights")
    save_file(recorded, file, {"comfyui": version})
    print(f"recorded from ComfyUI {version}")


if __name__ == "__main__":
    main()
