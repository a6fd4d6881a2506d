"""A quantized base in the graph: each weight is brought to the device by itself, and ComfyUI's own stay as they are."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.lora.adapted import own_weight
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.weights.frozen import FrozenLinear
from lora_loom.trainer.weights.quantize import is_quantized


@pytest.mark.parametrize("base", ["auto", "stream"])
def test_loftq_knows_what_quantizing_has_lost(host, monkeypatch, base):
    """ComfyUI's own weights are what it compares with, also where the packed ones are streamed."""
    session, weights = host("runs.session"), host("runs.memory.weights")
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Sequential(FrozenLinear(64, 64)) for _ in range(4)))
    network.blocks = nn.ModuleList(network)
    network.requires_grad_(False)
    before = network[0][0].weight.detach().clone()
    denoiser = SimpleNamespace(module=network, compute_dtype=torch.float32, settings=SimpleNamespace(blocks=()))
    plain = session.default_memory()
    memory = replace(plain, quantize="int4", memory=replace(plain.memory, base=base))
    monkeypatch.setattr(weights, "checkpoint", lambda *given, **how: None)
    stream = weights.stream_settings(base, 0.0)
    weights.prepare_weights(denoiser, SimpleNamespace(load_device="cpu"), memory, stream, lambda text: None, keep=True)
    rounded = own_weight(network[0][0])
    adapter = inject(network, ["0.0"], NetworkConfig(rank=8, init="loftq"), seed=1)
    down, up = (adapter.parameters()[f"0.0|lora_{name}.weight"] for name in "AB")
    lost = before - rounded
    assert 0 < (lost - up @ down).norm() < 0.9 * lost.norm()
    x = torch.randn(20, 64)
    torch.testing.assert_close(
        network[0](x), x @ (rounded + up @ down).T + network[0][0].get_base_layer().bias, rtol=1e-4, atol=1e-4
    )


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
    monkeypatch.setattr(weights, "checkpoint", lambda *given, **how: None)
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
