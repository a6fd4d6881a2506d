"""What a run really holds while it trains, counted over all live storages: the second meter, beside the plan that was made on shapes."""

import shutil

import torch

from lora_loom.trainer.memory_plan.meter import LiveBytes
from lora_loom.trainer.memory_plan.rehearsal import tensors_of
from lora_loom.trainer.runs import assemble
from lora_loom.trainer.runs.headless import build_cache, make_session, plan_memory, prepare, run_plan
from lora_loom.trainer.training.loop import LoopSettings, fit
from lora_loom.trainer.weights.streaming import stream_of
from tests.conftest import SilentHost, make_config, pictures


def held_by_steps(prepared, steps=2):
    """The most bytes that live tensors take while a run trains: base, adapter, optimizer and all between."""
    host = SilentHost()
    build_cache(prepared, host)
    plan = run_plan(prepared)
    prepared.folder.start(plan.config(), plan.fixed(), {}, prepared.targets, {})  # where what is measured once is kept
    session = make_session(prepared, plan)
    meter = LiveBytes()
    session, training = assemble.set_up(session, host)
    meter.hold([*tensors_of(session.denoiser.module)])
    if (stream := stream_of(session.denoiser.module)) and stream.ring:  # a base of two blocks stays as a whole
        streamed = [home for block in stream.blocks for home in block.homes()]
        meter.live -= sum(home.numel() * home.element_size() for home in streamed)
        meter.hold([slot.buffer for slot in stream.ring._free])
    meter.hold(tables(session.denoiser.module))
    if session.samples is not None:
        meter.hold([*tensors_of(session.samples.decode.__closure__[1].cell_contents.module)])
        meter.hold([*tensors_of(session.samples.denoiser.module)])
    settings = LoopSettings(
        loss=session.loss, seed=0, accumulation=prepared.config.training.gradient_accumulation_steps, clip_norm=1.0
    )
    meter.restart()
    with meter:
        going = fit(session.denoiser, training, session.batches, settings, lambda step: 1e-4)
        for _ in range(steps):
            next(going)
    return meter.peak


def tables(module):
    """Complex numbers of positions, plain attributes: a device gets a copy of them in every pass, the CPU computes where they are."""
    attributes = [value for part in module.modules() for value in vars(part).values()]
    each = [one for value in attributes for one in (value if isinstance(value, list | tuple) else [value])]
    return [one for one in each if isinstance(one, torch.Tensor) and one.is_complex()]


def alike(folder):
    """The pictures, all with the longest caption: samples with texts of several lengths are computed one after another where a
    family must not see padding, and a plan is for those that are computed together."""
    if not folder.exists():
        shutil.copytree(pictures(), folder)
        captions = list(folder.glob("*.txt"))
        longest = max((caption.read_text() for caption in captions), key=len)
        for caption in captions:
            caption.write_text(longest)
    return [{"folder": str(folder)}]


def compared(root, family, **changes):
    """Returns (the plan of a run of a toy, the bytes that its first steps then hold)."""
    config = make_config(family, root, dataset=alike(root / "alike"), **changes)
    prepared = prepare(config, SilentHost())
    plan = prepared.memory_plan = plan_memory(prepared)
    return plan, held_by_steps(prepared)
