"""What a GPU does otherwise than a CPU: copies beside arithmetic, memory of an allocator, kernels of its own. `make test-gpu`.

Where it means something on a CPU the same test runs there too, so that the test itself is known to work.
"""

import gc

import pytest
import torch
from torch import nn

from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.weights.arena import Arena
from lora_loom.trainer.weights.frozen import FrozenLinear, compute_in
from lora_loom.trainer.weights.packing.layers import check_matmul, exact_products, use_products
from lora_loom.trainer.weights.pinned_copier import DEPTH, PIECE, PinnedCopier
from lora_loom.trainer.weights.quantize import quantize
from lora_loom.trainer.weights.recompute import Recomputation, recompute_forward
from lora_loom.trainer.weights.ring import Ring, make_block
from lora_loom.trainer.weights.streaming import StreamSettings, stream_base
from tests.conftest import SilentHost, make_config
from tests.memory_plan.holding import alike, compared
from tests.runs.test_streamed_runs import written

CUDA = torch.device("cuda", 0)
DEVICES = [torch.device("cpu"), pytest.param(CUDA, marks=pytest.mark.gpu)]
on_devices = pytest.mark.parametrize("device", DEVICES, ids=str)
on_gpu = pytest.mark.gpu


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Blocks(nn.Module):
    def __init__(self, width, count):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(width) for _ in range(count))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def passes(module, device, width, count=3):
    """Outputs and gradients of several passes, with what torch keeps for later overwritten between them."""
    found = []
    for number in range(count):
        x = torch.linspace(-1, 1, 32 * width).reshape(32, width).roll(number, 0).to(device).requires_grad_()
        out = module(x)
        out.square().mean().backward()
        found += [out.detach().cpu(), x.grad.cpu()]
        torch.full((8, 1 << 20), float("nan"), device=device)
    return found


@on_devices
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_streamed_base_computes_the_same_bits_while_copies_run_beside_it(device, slots):
    """On a GPU blocks of 134 MB, which pass in pieces; any missing wait shows as another number."""
    width = 2048 if device.type == "cuda" else 32
    plain = Blocks(width, 6).requires_grad_(False).to(device)
    expected = passes(plain, device, width)
    del plain
    module = Blocks(width, 6).requires_grad_(False)
    stream = stream_base(module, StreamSettings(budget=None), device, None, torch.float32, slots=slots)
    assert all(torch.equal(one, other) for one, other in zip(expected, passes(module, device, width), strict=True))
    assert stream.ring.moves > 0
    assert stream.rest() == slots * stream.ring.size
    stream.wake()
    assert all(torch.equal(one, other) for one, other in zip(expected, passes(module, device, width), strict=True))
    stream.close()
    assert stream.arena.live == stream.fixed


@on_gpu
def test_what_is_on_the_device_is_the_ring_and_what_is_pinned_are_two_pieces():
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    homes = [torch.randn(40 << 20) for _ in range(4)]  # 168 MB each
    blocks = [make_block(str(n), lambda n=n: [homes[n]], [torch.float32], CUDA) for n in range(4)]
    ring = Ring(Arena(CUDA), PinnedCopier(CUDA, blocks[0].size), blocks, 2)
    assert torch.cuda.memory_allocated() - before == ring.arena.live == 2 * ring.size
    for number in (0, 1, 2, 3, 2, 1, 0):
        assert torch.equal(ring.get(blocks[number])[0].cpu(), homes[number])
    staging = ring.copier._staging
    assert [one.buffer.numel() for one in staging] == [PIECE] * DEPTH
    assert all(one.buffer.is_pinned() for one in staging)
    assert not any(home.is_pinned() for home in homes)
    ring.close()
    assert torch.cuda.memory_allocated() == before


@on_devices
def test_what_waits_in_ram_comes_back_as_it_was(device, monkeypatch):
    monkeypatch.setattr("lora_loom.trainer.weights.recompute.LEAST_IN_RAM", 0)
    width, found = 64, []
    for in_ram in (None, False, True):
        module = Blocks(width, 4).requires_grad_(False).to(device)
        if in_ram is not None:
            recompute = Recomputation(in_ram=in_ram)
            for block in module.blocks:
                recompute_forward(block, recompute)
        found.append(passes(module, device, width))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))


@on_devices
@pytest.mark.parametrize("kind", ["int8", "nf4", "float8"])
def test_a_quantized_base_computes_what_its_unpacked_weights_do(device, kind):
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    module = Blocks(64, 2).requires_grad_(False)
    quantize(module, kind, torch.bfloat16, device)
    compute_in(module, torch.bfloat16)
    x = torch.randn(32, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    module(x).float().square().mean().backward()
    plain, y = Blocks(64, 2).requires_grad_(False).to(device, torch.bfloat16), x.detach().clone().requires_grad_()
    for mine, theirs in zip(plain.blocks, module.blocks, strict=True):
        for name in ("up", "down"):
            getattr(mine, name).weight = nn.Parameter(getattr(theirs, name).weight.dequantize(), requires_grad=False)
    plain(y).float().square().mean().backward()
    assert float((x.grad - y.grad).norm() / y.grad.norm()) < 0.01


@on_devices
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_products_in_8_bits_are_near_exact_ones(device, kind):
    try:
        check_matmul(kind, device)
    except ConfigError as error:
        pytest.skip(str(error))
    module = Blocks(256, 2).requires_grad_(False)
    use_products(module, kind, torch.bfloat16, device)
    compute_in(module, torch.bfloat16)
    module.to(device)
    assert all(isinstance(block.up, FrozenLinear) for block in module.blocks)
    x = torch.randn(64, 256, device=device, dtype=torch.bfloat16, requires_grad=True)
    grads = []
    for exact in (False, True):
        x.grad = None
        if exact:
            with exact_products(module):
                module(x).float().square().mean().backward()
        else:
            module(x).float().square().mean().backward()
        grads.append(x.grad.float())
    apart = float((grads[0] - grads[1]).norm() / grads[1].norm())
    assert 0 < apart < 0.08


@on_gpu
@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
@pytest.mark.parametrize("memory", [{"gradient_checkpointing": True}, {"gradient_checkpointing": False}])
def test_a_plan_is_what_the_allocator_then_gives(tmp_path, family, memory):
    """At 512 px and a batch of 4, so that kernels' own workspace is small beside it."""
    torch.ones(64, 64, device=CUDA, dtype=torch.bfloat16) @ torch.ones(64, 64, device=CUDA, dtype=torch.bfloat16)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = {"device": "cuda"}
    sizes = {"data": {"resolution": 512, "bucket_step": 64}, "training": {"batch_size": 4, "precision": "bfloat16"}}
    plan, _ = compared(tmp_path, family, memory=memory, model=model, **sizes)
    held = torch.cuda.max_memory_allocated() - before
    assert abs(plan.parts.total / held - 1) <= 0.1, (plan.parts, held)


@on_gpu
def test_where_a_small_card_is_full_the_run_goes_on_with_the_same_lora(tmp_path):
    sections = {
        "model": {"device": "cuda"},
        "data": {"resolution": 512, "bucket_step": 64},
        "training": {"steps": 4, "batch_size": 4, "save_every": 2},
        "dataset": alike(tmp_path / "alike"),
    }
    off = {"gradient_checkpointing": False}
    train(make_config("sd", tmp_path / "plenty", memory=off, **sections), SilentHost())
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train(make_config("sd", tmp_path / "less", memory={"gradient_checkpointing": True}, **sections), SilentHost())
    room = torch.cuda.max_memory_reserved() * 1.2
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    try:
        train(make_config("sd", tmp_path / "short", memory={**off, "on_oom": "adapt"}, **sections), SilentHost())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert '"adapted"' in (tmp_path / "short/run/run.json").read_text()
    losses = [[line["loss"] for line in written(tmp_path / name)[1] if "loss" in line] for name in ("short", "less")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3), "kernels of attention may add in any order there"


@on_gpu
def test_compiled_blocks_train_on_a_gpu(tmp_path):
    host = SilentHost()
    train(make_config("sd3", tmp_path, model={"device": "cuda"}, memory={"compile": True}), host)
    assert any(text.startswith(("compiled ", "memory.compile is off: ")) for text in host.text)
