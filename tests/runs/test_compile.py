"""memory.compile: gradients of compiled blocks are those of the plain network, and where compiling fails the run goes on without."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load
from torch._dynamo.exc import TorchDynamoException

from lora_loom.trainer.config.run import MemoryConfig
from lora_loom.trainer.errors import ConfigError, RunError
from lora_loom.trainer.runs import assemble
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.weights.compiled import CompiledBlocks
from lora_loom.trainer.weights.recompute import Recomputation, recompute_forward
from tests.conftest import SilentHost, make_config

STEPS = {"steps": 2, "save_every": 2, "batch_size": 1}


@pytest.fixture
def backend(monkeypatch):
    """Compiles with this backend: "eager" traces the forward pass, "aot_eager" the backward pass too; both compute with torch's kernels."""

    plain = assemble.compile_blocks

    def use(name):
        torch._dynamo.reset()
        monkeypatch.setattr(assemble, "compile_blocks", lambda *given: plain(*given, backend=name))

    yield use
    torch._dynamo.reset()


CHECKPOINTED = {"gradient_checkpointing": True}


def run(root, family="sd3", *, steps=STEPS, stop_at=None, **sections):
    host = SilentHost(stop_at)
    config = make_config(family, root, training=steps, **sections)
    outcome = train(config, host)
    adapter = run_folder(config).last_checkpoint().folder / "adapter.safetensors"
    losses = [result.loss for result in host.steps]
    return host, outcome, losses, adapter.read_bytes()


def compiled(root):
    return json.loads((root / "run/run.json").read_text())["compiled"]


@pytest.fixture
def compiler(monkeypatch):
    """A compiler in place of torch's, which takes seconds: a function of what is compiled."""

    def use(make):
        monkeypatch.setattr(torch, "compile", lambda plain, **options: make(plain))

    return use


def counting(calls):
    def make(plain):
        def forward(*args, **kwargs):
            calls.append(plain)
            return plain(*args, **kwargs)

        return forward

    return make


def test_a_run_takes_its_steps_with_compiled_blocks(tmp_path, compiler):
    calls = []
    *_, expected = run(tmp_path / "plain", memory=CHECKPOINTED)
    compiler(counting(calls))
    host, outcome, _, adapter = run(tmp_path / "compiled", memory={**CHECKPOINTED, "compile": True})
    assert outcome.state == "finished"
    assert compiled(tmp_path / "compiled")
    assert len(set(calls)) == 2  # blocks
    assert len(calls) >= 2 * 2 * (STEPS["steps"] + 1)  # forward and recomputation, the trial's too
    assert any(text.startswith("compiled 2 blocks") for text in host.text)
    assert adapter == expected


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "name"), [(True, "eager"), (True, "aot_eager"), (False, "aot_eager")])
def test_a_compiled_run_is_the_plain_one(tmp_path, backend, checkpointing, name):
    backend(name)
    memory = {"gradient_checkpointing": checkpointing}
    _, _, expected, _ = run(tmp_path / "plain", memory=memory)
    _, outcome, losses, _ = run(tmp_path / "compiled", memory={**memory, "compile": True})
    assert outcome.state == "finished"
    assert compiled(tmp_path / "compiled")
    assert losses == pytest.approx(expected, rel=1e-4)


def test_a_block_that_is_recomputed_is_compiled_inside(compiler):
    calls = []
    compiler(counting(calls))
    root = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    recompute_forward(root[1], Recomputation())
    made = CompiledBlocks(root, ["0", "1"])
    x = torch.rand(1, 2, requires_grad=True)
    root(x).sum().backward()
    assert len(calls) == 3  # the second block is computed again in the backward pass
    made.give_up("no more")
    root(x).sum().backward()
    assert len(calls) == 3


@pytest.mark.slow
def test_the_real_backend_agrees_to_one_in_ten_thousand(tmp_path):
    torch._dynamo.reset()
    """A whole run with inductor; where there is a C++ compiler it may not be off."""
    _, _, expected, plain = run(tmp_path / "plain")
    host, outcome, losses, adapter = run(tmp_path / "compiled", memory={"compile": True})
    assert compiled(tmp_path / "compiled") == (shutil.which(os.environ.get("CXX", "g++")) is not None), host.text
    assert outcome.state == "finished"
    assert losses == pytest.approx(expected, rel=1e-4)
    theirs = load(plain)
    for name, tensor in load(adapter).items():  # the sign of a gradient decides Adam's first steps
        assert float((tensor - theirs[name]).norm()) <= 1e-2 * float(theirs[name].norm())


def failing(plain):
    def forward(*args, **kwargs):
        raise TorchDynamoException("no compiler was found\nand more lines")

    return forward


def test_where_it_fails_it_is_off_with_a_sentence_and_stays_off(tmp_path, compiler):
    steps = {**STEPS, "steps": 4}
    *_, whole = run(tmp_path / "plain", steps=steps)
    compiler(failing)
    host, *_ = run(tmp_path / "failing", steps=steps, stop_at=2, memory={"compile": True})
    assert not compiled(tmp_path / "failing")
    said = "memory.compile is off: TorchDynamoException: no compiler was found and more lines"
    assert said in host.text
    compiler(counting([]))
    host, *_, adapter = run(tmp_path / "failing", steps=steps, memory={"compile": True})
    assert "memory.compile is off: this run began without" in host.text
    assert adapter == whole


@pytest.mark.slow
def test_a_backend_that_fails_switches_it_off(tmp_path, backend):
    def broken(graph, inputs):
        raise RuntimeError("no compiler was found")

    backend(broken)
    host, *_ = run(tmp_path, memory={"compile": True})
    assert any(text.startswith("memory.compile is off: ") and "no compiler was found" in text for text in host.text)


def test_gradients_that_differ_switch_it_off(tmp_path, compiler):
    def twice(plain):
        return lambda *args, **kwargs: tuple(
            2 * one if isinstance(one, torch.Tensor) else one for one in plain(*args, **kwargs)
        )

    compiler(twice)
    *_, plain = run(tmp_path / "plain")
    host, *_, adapter = run(tmp_path / "off", memory={"compile": True})
    assert any("memory.compile is off: gradients differ by" in text for text in host.text)
    assert adapter == plain


def test_without_torch_compile_it_is_off(tmp_path, monkeypatch):
    def refuse(plain, **options):
        raise RuntimeError("torch.compile is not supported on this Python")

    monkeypatch.setattr(torch, "compile", refuse)
    host, *_ = run(tmp_path, memory={"compile": True})
    assert "memory.compile is off: RuntimeError: torch.compile is not supported on this Python" in host.text


def test_what_the_compiler_raises_later_ends_nothing(compiler):
    compiler(failing)
    root = torch.nn.Sequential(torch.nn.Linear(2, 2))
    x = torch.rand(1, 2)
    expected = root(x)
    made = CompiledBlocks(root, ["0"])
    assert torch.equal(root(x), expected)
    assert not made.is_on
    assert made.reason == "TorchDynamoException: no compiler was found and more lines"


def test_it_may_not_change_when_a_run_is_continued(tmp_path):
    run(tmp_path, steps={**STEPS, "steps": 4}, stop_at=2)
    with pytest.raises(RunError, match="memory.compile: False -> True"):
        run(tmp_path, steps={**STEPS, "steps": 4}, memory={"compile": True})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"base": "stream"}, "base = 'stream' or vram_gb"),
        ({"vram_gb": 4.0}, "base = 'stream' or vram_gb"),
        ({"shard": True}, "shard = true"),
        ({"checkpoint": "ffn"}, "checkpoint = 'ffn'"),
        ({"on_oom": "adapt"}, "on_oom = 'adapt'"),
    ],
)
def test_what_it_does_not_go_with_is_refused(other, said):
    with pytest.raises(ConfigError, match=rf"memory\.compile = True: it does not go with {said}"):
        MemoryConfig(compile=True, **other)
