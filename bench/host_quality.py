"""What is learnt inside ComfyUI: validation loss of LoomTrain's defaults against core's TrainLoraNode's, on the demo base.

The same pictures and captions of one concept, equal rank, steps and number format (fp32), five seeds each; everything else as
each node comes. Two more series show what the difference is made of: ours at core's learning rate, and that on every layer
(core trains all of them, and norms and biases besides). All files are loaded by ComfyUI's own loader and measured by one
evaluator: the mean squared error on pictures that none has seen, with the same noise at eight noise levels, once evenly
spread over the schedule ("even") and once as the family's shift spreads them ("family"): which trainer looks better can depend
on that. Needs COMFYUI_PATH and COMFYUI_PYTHON.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from .host_speed import run_inside

SEEDS = int(os.environ.get("LOOM_BENCH", "5"))
STEPS, RANK, LEVELS, SIDE = 200, 8, 8, 128
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, learning rate 5e-4": {"learning_rate": 5e-4},
    "ours, learning rate 5e-4, all layers": {"learning_rate": 5e-4, "targets": "all"},
}
"""{series: what differs from the nodes' defaults}."""


class Workshop:
    """The demo base as ComfyUI's MODEL, CLIP and VAE, and its concept's pictures in the input folder."""

    def __init__(self, torch: Any, loom: Any, folder: Path) -> None:
        import folder_paths

        for name in ("input", "output", "loras"):
            (folder / name).mkdir()
        folder_paths.set_input_directory(str(folder / "input"))
        folder_paths.set_output_directory(str(folder / "output"))
        folder_paths.folder_names_and_paths["loras"] = ([str(folder / "loras")], {".safetensors"})
        self.torch, self.loom, self.folder = torch, loom, folder
        loom("trainer.demo.demo").write_data(folder / "input", seed=0, wide=True)
        with torch.inference_mode():
            self.model, self.clip, self.vae = loom("nodes.host.demo.model").load_demo()
        self.held_out = [self.example(path) for path in sorted((folder / "input" / "held_out").glob("*.png"))]
        self.images = [self.example(path) for path in sorted((folder / "input" / "images").glob("*.png"))]

    def example(self, path: Path) -> tuple[Any, Any]:
        """(raw latents, ComfyUI's conditioning)."""
        import numpy as np
        from PIL import Image

        with self.torch.inference_mode():
            pixels = self.torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255)
            tokens = self.clip.tokenize(path.with_suffix(".txt").read_text().strip())
            return self.vae.encode(pixels.unsqueeze(0)), self.clip.encode_from_tokens_scheduled(tokens)

    def ours(self, seed: int, learning_rate: float | None = None, targets: str | None = None) -> dict[str, Any]:
        """The file that LoomTrain writes, through the nodes and their defaults."""
        from safetensors.torch import load_file

        nodes = self.loom("nodes").NODE_CLASS_MAPPINGS

        def run(kind: str, **inputs: Any) -> Any:
            forms = nodes[kind].INPUT_TYPES()
            options = {
                name: form[1]["default"]
                for name, form in {**forms["required"], **forms.get("optional", {})}.items()
                if len(form) > 1 and isinstance(form[1].get("default", ()), str | int | float | bool)
            }
            with self.torch.inference_mode():  # as ComfyUI's executor calls a node
                out = getattr(nodes[kind](), nodes[kind].FUNCTION)(**{**options, **inputs})
            return out["result"] if isinstance(out, dict) else out

        dataset = run("LoomDataset", folder="images")[0]
        cache = run("LoomCache", dataset=dataset, vae=self.vae, clip=self.clip, resolution=SIDE, buckets="off")[0]
        memory = run("LoomMemory", precision="float32")[0]
        changed: dict[str, Any] = {"learning_rate": learning_rate, "rate": "value"} if learning_rate else {}
        if targets:
            changed["network"] = run("LoomNetwork", targets=targets)[0]
        name = f"ours-{seed}-{learning_rate}-{targets}"
        run(
            "LoomTrain", model=self.model, cache=cache, name=name, steps=STEPS, rank=RANK, seed=seed, mode="wait",
            save_every=STEPS, length="value", memory=memory, lora_dtype="float32", **changed,
        )  # fmt: skip
        return load_file(self.folder / "loras" / "lora_loom" / name / f"{name}.safetensors")

    def core(self, seed: int) -> dict[str, Any]:
        """What TrainLoraNode returns with its defaults."""
        from comfy_extras.nodes_train import TrainLoraNode

        form = TrainLoraNode.define_schema().inputs
        options = {field.id: field.default for field in form if getattr(field, "default", None) is not None}
        options |= {
            "steps": STEPS, "rank": RANK, "seed": seed, "training_dtype": "fp32", "lora_dtype": "fp32", "optimizer": "AdamW",
            "loss_function": "MSE", "algorithm": "LoRA", "existing_lora": "[None]",
        }  # fmt: skip
        with self.torch.inference_mode():
            out = TrainLoraNode.execute(
                model=[self.model],
                latents=[{"samples": latents} for latents, _ in self.images],
                positive=[conditioning for _, conditioning in self.images],
                **{name: [value] for name, value in options.items()},
            )
        return (getattr(out, "result", None) or getattr(out, "args", out))[0]

    def measure(self, lora: dict[str, Any] | None) -> dict[str, float]:
        """Validation losses of the base with a file laid over it by ComfyUI; of the base alone for None."""
        import comfy.model_management
        import comfy.sd

        loaded, shadow = self.loom("nodes.host.backend.denoiser"), self.loom("nodes.host.backend.shadow")
        with self.torch.inference_mode():
            patcher = self.model if lora is None else comfy.sd.load_lora_for_models(self.model, None, lora, 1.0, 0.0)[0]
            comfy.model_management.load_models_gpu(
                [patcher]
            )  # lays the file over the weights, and takes another one out
        denoiser = loaded.load_denoiser(self.model, compute_dtype=self.torch.float32)
        with self.torch.inference_mode(False):
            denoiser.module = shadow.build_shadow(patcher.model.diffusion_model, {})  # the weights as they are now
        return self._loss(denoiser)

    def _loss(self, denoiser: Any) -> dict[str, float]:
        evaluate, timesteps = self.loom("trainer.training.held_out"), self.loom("trainer.diffusion.timesteps")
        batches = [self._batch(latents.clone(), conditioning) for latents, conditioning in self.held_out]
        shift = self.loom("nodes.host.runs.session").training_shift(denoiser)
        family = timesteps.NoiseLevels(law=timesteps.Uniform(), shift=shift)
        held_out = evaluate.HeldOut(batches=batches, timesteps=LEVELS, levels=family, seed=0)
        return {
            "even": evaluate.held_out_loss(denoiser, held_out, evaluate.EVEN),
            "family": evaluate.held_out_loss(denoiser, held_out),
        }

    def _batch(self, latents: Any, conditioning: Any) -> Any:
        text, extra = conditioning[0]
        given = {"cross_attn": text, **extra, "noise": latents, "device": self.torch.device("cpu")}
        sample = {name: value.cond.clone() for name, value in self.model.model.extra_conds(**given).items()}
        return self.loom("trainer.types").Batch(
            latents_BCHW=self.model.model.process_latent_in(latents), conditioning={"samples": [sample]},
            weight_B=self.torch.ones(1), mask_B1HW=None, names=("x",),
        )  # fmt: skip


def inside() -> dict[str, Any]:
    from tests.host.inside.toys import import_pack, torch  # ComfyUI for the CPU, one thread

    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(torch, import_pack(), Path(folder))
        found: dict[str, Any] = {"base": shop.measure(None), "core": [], **{name: [] for name in OURS}}
        for seed in range(SEEDS):
            for name, changes in OURS.items():
                print(name, seed, file=sys.stderr, flush=True)
                found[name].append(shop.measure(shop.ours(seed, **changes)))
            found["core"].append(shop.measure(shop.core(seed)))
        assert shop.measure(None) == found["base"], "the base has changed"
    return found


def main() -> None:
    from .common import report

    found = run_inside("bench.host_quality")
    if found is None:
        return
    figures = {}
    for ruler in ("even", "family"):
        figures[f"{ruler} levels: base"] = found["base"][ruler]
        for name in ("core", *OURS):
            losses = [measured[ruler] for measured in found[name]]
            figures |= {
                f"{ruler} levels: {name}: mean of {SEEDS} seeds": statistics.mean(losses),
                f"{ruler} levels: {name}: standard deviation": statistics.stdev(losses) if SEEDS > 1 else 0.0,
                f"{ruler} levels: {name}: smallest": min(losses),
                f"{ruler} levels: {name}: largest": max(losses),
            }
        ratio = statistics.mean(m[ruler] for m in found["ours"]) / statistics.mean(m[ruler] for m in found["core"])
        figures[f"{ruler} levels: ours / core (aim <= 0.85)"] = ratio
    report("host_quality", figures)


if __name__ == "__main__" and sys.argv[1:2] == ["inside"]:
    print(json.dumps(inside()))
