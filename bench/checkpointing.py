"""Gradient checkpointing of an SD3-class toy at 64 x 64 latents: peak memory and step time, on and off.

Each peak is measured in its own process: the largest resident size, less that after loading.
"""

import multiprocessing
import statistics
import time
from typing import Any

from .common import report

TOY = {
    "num_layers": 4, "attention_head_dim": 64, "num_attention_heads": 4, "caption_projection_dim": 256,
    "joint_attention_dim": 256, "pooled_projection_dim": 128, "pos_embed_max_size": 64, "sample_size": 64, "qk_norm": "rms_norm",
}  # fmt: skip


def measure(on: bool, steps: int, answer: Any) -> None:
    import resource

    import torch
    from diffusers import SD3Transformer2DModel

    from lora_loom.trainer.config.run import NetworkConfig
    from lora_loom.trainer.families.common.modules import checkpoint_blocks
    from lora_loom.trainer.families.common.tiny import random_network
    from lora_loom.trainer.families.sd3 import TARGETS
    from lora_loom.trainer.lora.adapter import inject
    from lora_loom.trainer.lora.targets import resolve_targets

    torch.set_num_threads(1)
    module = random_network(SD3Transformer2DModel, TOY, 0)
    if on:
        checkpoint_blocks(module)
    adapter = inject(module, resolve_targets(module, TARGETS, "attention"), NetworkConfig(rank=8), seed=0)
    inputs = {"hidden_states": torch.randn(1, 16, 64, 64), "timestep": torch.tensor([500.0]),
              "encoder_hidden_states": torch.randn(1, 77, 256), "pooled_projections": torch.randn(1, 128)}  # fmt: skip
    optimizer = torch.optim.AdamW(adapter.parameters().values())
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(steps):
        started = time.perf_counter()
        module(**inputs, return_dict=False)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, statistics.median(times[1:])))


def run(on: bool, steps: int = 4) -> tuple[int, float]:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=measure, args=(on, steps, answer))
    process.start()
    result: tuple[int, float] = answer.get()
    process.join()
    return result


def main(rounds: int = 3) -> None:
    pairs = [(run(False), run(True)) for _ in range(rounds)]
    report(
        "checkpointing",
        {
            "peak MiB over loaded model, off": statistics.median(off[0] for off, _ in pairs) / 1024,
            "peak MiB over loaded model, on": statistics.median(on[0] for _, on in pairs) / 1024,
            "peak on / off": statistics.median(on[0] / off[0] for off, on in pairs),
            "step time on / off": statistics.median(on[1] / off[1] for off, on in pairs),
        },
    )


if __name__ == "__main__":
    main()
