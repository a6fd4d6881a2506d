"""The counter of live bytes against what torch's own profiler saw being allocated."""

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lora_loom.trainer.memory_plan.meter import LiveBytes


def network():
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(256, 256), nn.GELU())))


def step(module, x_BD):
    module(x_BD).square().mean().backward()


def test_peak_is_what_the_allocator_saw():
    module, x_BD = network(), torch.randn(512, 256)
    step(module, x_BD)
    for parameter in module.parameters():
        parameter.grad = None
    meter = LiveBytes()
    held = meter.hold([*module.parameters(), x_BD])
    with meter:
        step(module, x_BD)
    for parameter in module.parameters():
        parameter.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step(module, x_BD)
    live = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    assert most > 2**20
    assert abs((meter.peak - held) / most - 1) < 0.01


def test_what_exists_is_counted_once_and_what_is_freed_no_more():
    meter, weight = LiveBytes(), torch.zeros(1000)
    assert meter.hold([weight, weight.view(10, 100)]) == 4000
    with meter:
        view = weight[:500]
        made = view + 1
        assert (meter.live, meter.peak) == (6000, 6000)
        del made
        assert (meter.live, meter.peak) == (4000, 6000)
    meter.restart()
    assert meter.peak == 4000


def test_arithmetic_is_counted():
    meter = LiveBytes()
    q = torch.randn(2, 3, 8, 4, requires_grad=True)
    with meter:
        torch.randn(5, 7) @ torch.randn(7, 11)
        products = meter.flop
        nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert products == 2 * 5 * 7 * 11
    assert meter.flop - products == 4 * 2 * 3 * 8 * 8 * 4 * 3.5  # forward once, backward two and a half times
