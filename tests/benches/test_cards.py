"""What the benchmark on cards does on a GPU, with a toy on a CPU: a network laid out as its plan says, and steps on it."""

import torch

from bench.cards import on_a_card
from bench.network_sizes import SIZES
from lora_loom.trainer.memory_plan.plan import MemoryPlan, Parts
from lora_loom.trainer.weights.streaming import StreamSettings

TOYS = {size.name: size for size in SIZES if size.toy}


def test_a_toy_is_streamed_and_measured():
    parts = Parts(base=1000, adapter=1, optimizer=1, activations=1)
    plan = MemoryPlan(
        device="cpu", available=None, parts=parts, stream=StreamSettings(budget=None), streamed=4, blocks=4
    )
    found = on_a_card(TOYS["SD3 toy"], "bf16", 64, plan, torch.device("cpu"))
    assert found["s/step"] > 0
    assert found["streamed blocks"] == "4 of 4"
    assert 0 < found["not in advance"] < 20
    assert found["measured / predicted"] > 1
