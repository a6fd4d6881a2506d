"""A quantized base in the graph: each weight is brought to the device by itself, and ComfyUI's own stay as they are."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lora_loom.trainer.weights.frozen import FrozenLinear
from lora_loom.trainer.weights.quantize import is_quantized


@pytest.mark.parametrize("quantize", ["nf4", "int8", "matmul"])
@pytest.mark.parametrize("base", ["auto", "stream"])
def test_weights_are_packed_one_by_one(host, monkeypatch, quantize, base):
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes")
    session = host("runs.session")
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Sequential(FrozenLinear(64, 64), FrozenLinear(64, 64)) for _ in range(4))
    network = nn.Sequential(*(layer for block in blocks for layer in block))
    network.blocks = blocks
    network.norm = nn.LayerNorm(64)
    network.requires_grad_(False)
    held = {name: (tensor, tensor.clone()) for name, tensor in network.named_parameters()}
    denoiser = SimpleNamespace(module=network, compute_dtype=torch.float32, settings=SimpleNamespace(blocks=()))
    weights, plain = host("runs.memory.weights"), session.default_memory()
    packing = {"matmul": "fp8"} if quantize == "matmul" else {"quantize": quantize}
    memory = replace(plain, **packing, memory=replace(plain.memory, base=base))
    monkeypatch.setattr(weights, "place_weights", lambda *given: pytest.fail("it was laid on the device as a whole"))
    monkeypatch.setattr(weights, "checkpoint", lambda *given: None)
    said = []
    patcher = SimpleNamespace(load_device="cpu")
    stream = weights.stream_settings(base, 0.0)
    weights.prepare_weights(denoiser, patcher, memory, stream, said.append)
    assert is_quantized(network)
    assert said[0].startswith(f"quantized to {memory.packing}: an extra copy of ")
    assert all(torch.equal(tensor, before) for tensor, before in held.values())
    x = torch.rand(20, 64, requires_grad=True)
    out = network.blocks[3](network.blocks[2](network.blocks[1](network.blocks[0](x))))
    out.sum().backward()
    assert x.grad.isfinite().all()
