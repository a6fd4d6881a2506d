"""What version 0.1 wrote for a run of LoomTrain (tests/fixtures): its run.json, and the inputs of the node."""

import json
from pathlib import Path

OLD_GRAPH_RUN = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "run_of_the_graph_0.1.json").read_text(encoding="utf-8")
)
OLD_FACTS = OLD_GRAPH_RUN["fixed"]["facts"]


def old_inputs(**changes):
    """The inputs that OLD_GRAPH_RUN was made from; `changes` replace some."""
    from lora_loom.nodes.sockets.values import CacheValue, MemoryValue, NetworkValue, ObjectiveValue, OptimizerValue
    from lora_loom.trainer.config.run import (
        MemoryConfig,
        NetworkConfig,
        ObjectiveConfig,
        OptimizerConfig,
        ScheduleConfig,
    )

    cache = CacheValue(
        folder="cache", listing="sets/0123.json", digest="d" * 64, vae="v" * 64, text="t" * 64, factor=8, resolution=64
    )
    network = NetworkConfig(target_modules="attention", exclude_modules="x", init_from="first/start.safetensors")
    objective = ObjectiveConfig(timestep_sampling="logit_normal", logit_mean=0.5, logit_std=0.8)
    inputs = {
        "cache": cache,
        "name": "graph-run",
        "steps": 6,
        "learning_rate": 1e-3,
        "rank": 2,
        "batch_size": 2,
        "save_every": 3,
        "seed": 7,
        "accumulation": 2,
        "ema": 0.5,
        "keep": 1,
        "lora_dtype": "float32",
        "network": NetworkValue(network=network),
        "optimizer": OptimizerValue(
            optimizer=OptimizerConfig(max_grad_norm=0.5), schedule=ScheduleConfig(kind="cosine", min_lr_ratio=0.1)
        ),
        "objective": ObjectiveValue(objective=objective),
        "memory": MemoryValue(memory=MemoryConfig(), precision="float32", quantize="int8", yield_max_s=2.0),
    }
    return {**inputs, **changes}
