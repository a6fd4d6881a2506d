"""Processor seconds per step inside ComfyUI: LoomTrain's step against core's TrainLoraNode on the same toy SD1.5 and SD3.

Equal rank and batch, one thread, in turns in one process. Three cases: bfloat16 weights and arithmetic without and with checkpointing,
where ours trains every Linear and convolution (preset all), core its fixed set, which adds norms and biases (`frozen` is core with
those frozen); and both nodes with their defaults, but for the rank, over the model as ComfyUI's loader gives it: ours in each dtype of
arithmetic, of which a run takes the faster. "as planned" is ours with checkpointing left to the memory plan, as by default: nothing is
recomputed where that fits with ease. Of every variant also the bytes that a step holds at most beyond what lies there between two steps,
and its arithmetic, as shares of core's.
Needs COMFYUI_PATH and COMFYUI_PYTHON.
"""

import json
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RANK, SIDE, STEPS, ROUNDS, WARMUP = 8, 16, 6, 5, 1
FAMILIES = {"sd1": (4, 768, 0), "sd3": (16, 64, 64)}
"""{file: (latent channels, width of the text, width of the pooled text)}."""

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "bf16": {
        "ours": {"loaded": "bfloat16", "dtype": "bfloat16", "targets": "all"},
        "core": {"loaded": "bfloat16", "gradient_checkpointing": False, "lora_dtype": "fp32"},
        "frozen": {"loaded": "bfloat16", "gradient_checkpointing": False, "lora_dtype": "fp32", "frozen": True},
    },
    "bf16, checkpointing": {
        "ours": {"loaded": "bfloat16", "dtype": "bfloat16", "targets": "all", "checkpoint": "all"},
        "ours, as planned": {"loaded": "bfloat16", "dtype": "bfloat16", "targets": "all", "checkpoint": "auto"},
        "core": {"loaded": "bfloat16", "lora_dtype": "fp32"},
    },
    "defaults": {
        "ours, float32": {"dtype": "float32", "checkpoint": "auto"},
        "ours, bfloat16": {"dtype": "bfloat16", "checkpoint": "auto"},
        "core": {},
    },
}
"""{case: {who: options of `Ours` or `core`}}."""


def run_inside(module: str, *arguments: str) -> Any:
    """The JSON that `python -m module inside` prints in ComfyUI's Python; None, with a line of text, where there is none."""
    from .common import comfyui, run_in

    host = comfyui(module.removeprefix("bench."))
    if host is None:
        return None
    folder, python = host
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COMFYUI_PATH": str(folder)}
    text = run_in([python, "-m", module, "inside", *arguments], cwd=ROOT, env=env)
    return json.loads(text.strip().splitlines()[-1])


class StepClock:
    """Seconds that the processor worked between the optimizer steps of whoever trains, so that others on the machine hardly matter."""

    def __init__(self) -> None:
        import time

        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.now, self.marks = time.process_time, []
        register_optimizer_step_post_hook(lambda *_: self.marks.append(self.now()))

    def of(self, call: Any) -> float:
        """Median over the steps that `call` takes, the first ones left out."""
        self.marks.clear()
        call()
        gaps = [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]
        return statistics.median(gaps[WARMUP:])


def load(torch: Any, path: str, dtype: str = "") -> Any:
    """The file as a MODEL, as a loader node makes it: in ComfyUI's own dtype, or in the one that is chosen there."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(path, {"dtype": getattr(torch, dtype)} if dtype else {})


def core(
    torch: Any, path: str, latents: Any, positive: Any, steps: int, frozen: bool = False, loaded: str = "", **given: Any
) -> dict[str, Any]:
    """Run TrainLoraNode; returns its tensors by name. `given` are inputs that differ from the node's defaults."""
    from comfy_extras import nodes_train

    plain = nodes_train._setup_lora_adapters

    def without_differences(*arguments: Any) -> Any:
        tensors, adapters = plain(*arguments)
        for name, parameter in tensors.items():
            if name.endswith((".diff", ".diff_b")):
                parameter.requires_grad_(False)
        return {name: p for name, p in tensors.items() if p.requires_grad}, adapters

    nodes_train._setup_lora_adapters = without_differences if frozen else plain
    options = {
        "batch_size": 1, "steps": steps, "grad_accumulation_steps": 1, "learning_rate": 1e-4, "rank": RANK, "optimizer": "AdamW",
        "loss_function": "MSE", "seed": 0, "training_dtype": "bf16", "lora_dtype": "bf16", "quantized_backward": False, "algorithm": "LoRA",
        "gradient_checkpointing": True, "checkpoint_depth": 1, "offloading": False, "existing_lora": "[None]", "bucket_mode": False,
        "bypass_mode": False, **given,
    }  # fmt: skip
    try:
        model = load(torch, path, loaded)
        with torch.inference_mode():
            out = nodes_train.TrainLoraNode.execute(
                model=[model],
                latents=[{"samples": latents}],
                positive=[positive],
                **{k: [v] for k, v in options.items()},
            )
    finally:
        nodes_train._setup_lora_adapters = plain
    return getattr(out, "result", None) or getattr(out, "args", out)


def step_needs(loom: Any, call: Any) -> tuple[int, int]:
    """(bytes that the last step of `call` holds at most beyond what lies there before it, its floating-point operations)."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    meter, steps, before = loom("trainer.memory_plan.meter").LiveBytes(), [], [0]

    def mark(*_: Any) -> None:
        steps.append((meter.peak - before[0], meter.flop))
        meter.restart()
        before[0] = meter.live

    handle = register_optimizer_step_post_hook(mark)
    try:
        with meter:
            call()
    finally:
        handle.remove()
    return steps[-1]


class Ours:
    """The loaded backend over the same file, ready to take steps."""

    def __init__(
        self,
        torch: Any,
        loom: Any,
        path: str,
        latents: Any,
        positive: Any,
        loaded: str = "",
        dtype: str = "",
        targets: str = "default",
        checkpoint: str = "off",
    ) -> None:
        learning_rate, wanted = 1e-4, getattr(torch, dtype) if dtype else None
        self.patcher = load(torch, path, loaded)
        self.denoiser = loom("nodes.host.backend.denoiser").load_denoiser(self.patcher, compute_dtype=wanted)
        module, arithmetic = self.denoiser.module, self.denoiser.compute_dtype
        loom("trainer.weights.frozen").compute_in(module, arithmetic)
        config = loom("trainer.config.run")
        memory = config.MemoryConfig(checkpoint=checkpoint)
        checkpointing = loom("nodes.host.backend.checkpointing").checkpoint
        checkpointing(module, self.denoiser.settings.blocks, memory, rests=checkpoint == "auto")
        paths = loom("trainer.lora.targets").resolve_targets(module, self.denoiser.target_presets, targets, "")
        network = config.NetworkConfig(rank=RANK, alpha=1.0)
        self.adapter = loom("trainer.lora.adapter").inject(module, paths, network, seed=0, compute_dtype=arithmetic)
        loop, timesteps = loom("trainer.training.loop"), loom("trainer.diffusion.timesteps")
        optimizer = loom("trainer.training.optim").make_optimizer(
            list(self.adapter.parameters().values()), config.OptimizerConfig(learning_rate=1e-4)
        )
        training = loop.Training(adapter=self.adapter, optimizer=optimizer)
        loss = loom("trainer.training.step").LossSettings(noise_levels=timesteps.NoiseLevels(law=timesteps.Uniform()))
        settings = loop.LoopSettings(loss=loss, seed=0)
        self._steps = loop.fit(
            self.denoiser, training, self._data(torch, loom, latents, positive), settings, lambda _: learning_rate
        )

        if checkpoint == "auto":
            needs, _ = step_needs(loom, lambda: self.take(2))
            if not loom("trainer.memory_plan.card").card_of(torch.device("cpu")).has_ease(0, needs):
                loom("trainer.weights.recompute").recomputation_of(module).wake()

    def _data(self, torch: Any, loom: Any, latents: Any, positive: Any) -> Any:
        given = {"cross_attn": positive[0][0], **positive[0][1], "noise": latents, "device": torch.device("cpu")}
        sample = {name: value.cond.clone() for name, value in self.patcher.model.extra_conds(**given).items()}
        batch = loom("trainer.types").Batch(
            latents_BCHW=self.patcher.model.process_latent_in(latents), conditioning={"samples": [sample]},
            weight_B=torch.ones(1), mask_B1HW=None, names=("x",),
        )  # fmt: skip
        return type("OneBatch", (), {"size": lambda self, position: 1, "at": lambda self, position: batch})()

    def take(self, steps: int) -> None:
        for _ in range(steps):
            next(self._steps)


def inside() -> dict[str, Any]:
    from tests.host.inside.toys import import_pack, torch  # ComfyUI for the CPU, one thread
    from tests.host.make_checkpoints import main as write_files

    loom, folder = import_pack(), Path(tempfile.mkdtemp())
    write_files(folder)
    clock, found = StepClock(), {}
    for name, (channels, width, pooled) in FAMILIES.items():
        source = torch.Generator().manual_seed(0)
        latents = torch.randn(1, channels, SIDE, SIDE, generator=source)
        extra = {"pooled_output": torch.randn(1, pooled, generator=source)} if pooled else {}
        positive, path = [[torch.randn(1, 77, width, generator=source), extra]], str(folder / f"{name}.safetensors")
        for case, variants in CASES.items():
            found[f"{name}, {case}"] = _case(torch, loom, (path, latents, positive), variants, clock)
    return found


def _case(torch: Any, loom: Any, data: Any, variants: dict[str, dict[str, Any]], clock: StepClock) -> dict[str, Any]:
    """Seconds per step of each variant, in turns, and how many tensors it trains."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    counts: dict[str, int] = {}
    ready = {name: Ours(torch, loom, *data, **given) for name, given in variants.items() if name.startswith("ours")}
    counts |= {name: len(one.adapter.parameters()) for name, one in ready.items()}
    for _ in range(ROUNDS):
        for name, given in variants.items():
            if name in ready:
                times[name].append(clock.of(lambda: ready[name].take(STEPS)))  # noqa: B023 - called at once
            else:
                times[name].append(
                    clock.of(lambda: counts.update({name: len(core(torch, *data, STEPS, **given)[0])}))  # noqa: B023
                )
    needs = {
        name: step_needs(
            loom, partial(ready[name].take, 2) if name in ready else partial(core, torch, *data, 2, **given)
        )
        for name, given in variants.items()
    }
    return {"times": times, "counts": counts, "needs": needs}


def main() -> None:
    from .common import ratio, report

    found = run_inside("bench.host_speed")
    if found is None:
        return
    figures: dict[str, Any] = {}
    for name, case in found.items():
        times, counts = case["times"], case["counts"]
        mine = [who for who in times if who.startswith("ours")]
        figures[f"{name}: core s/step"] = statistics.median(times["core"])
        for who in mine:
            figures[f"{name}: {who} / core"] = ratio(times[who], times["core"])
        for who in mine:
            shares = [ours / core for ours, core in zip(case["needs"][who], case["needs"]["core"], strict=True)]
            figures[f"{name}: {who} / core, bytes of a step and arithmetic"] = "{:.2f}, {:.2f}".format(*shares)
        if "frozen" in times:
            figures[f"{name}: ours / core, norms and biases frozen"] = ratio(times["ours"], times["frozen"])
        figures[f"{name}: trained tensors, ours and core's"] = f"{counts[mine[0]]}, {counts['core']}"
    report("host_speed", figures)


if __name__ == "__main__" and sys.argv[1:2] == ["inside"]:
    print(json.dumps(inside()))
