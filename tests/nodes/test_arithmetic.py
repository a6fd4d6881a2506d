"""The dtype that a run of the graph computes in where it is left to the MODEL: the faster one on a CPU that has both, kept by the run."""

from types import SimpleNamespace

import pytest
import torch

BOTH = {"float32": 2.0, "bfloat16": 1.0}


@pytest.fixture
def arithmetic(host, monkeypatch):
    """The module, with the trial switched on and on a processor that computes bfloat16."""
    module = host("runs.memory.arithmetic")
    monkeypatch.setenv(module.SWITCH, "1")
    monkeypatch.setattr(module, "computes_bfloat16", lambda: True)
    return module


class Folder:
    def __init__(self, record=None):
        self.record = record

    def exists(self):
        return self.record is not None

    def has_kept_nothing(self):
        return False

    def read(self):
        return self.record


def settle(arithmetic, monkeypatch, *, seconds=BOTH, folder=None, device="cpu", own=torch.float32, **memory):
    """Returns (entry of run.json, dtype, log)."""
    said, run = [], SimpleNamespace(denoiser=SimpleNamespace(compute_dtype=own))
    monkeypatch.setattr(arithmetic, "_seconds", lambda *given: dict(seconds))
    value = SimpleNamespace(**{"precision": "auto", "packing": "none", **memory})
    made = arithmetic.settle_arithmetic(
        run, SimpleNamespace(load_device=device), value, folder or Folder(), said.append
    )
    return made, run.denoiser.compute_dtype, said


def test_the_faster_dtype_is_taken_and_said(arithmetic, monkeypatch):
    made, dtype, said = settle(arithmetic, monkeypatch)
    assert made == {"arithmetic": {"dtype": "bfloat16", "seconds": BOTH}}
    assert dtype == torch.bfloat16
    assert said == ["arithmetic: bfloat16 (a micro-batch takes 2 s in float32 and 1 s in bfloat16 here)"]


def test_float32_stays_where_bfloat16_gains_little(arithmetic, monkeypatch):
    made, dtype, _ = settle(arithmetic, monkeypatch, seconds={"float32": 1.0, "bfloat16": 0.96})
    assert (made["arithmetic"]["dtype"], dtype) == ("float32", torch.float32)


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_a_run_keeps_what_it_began_with(arithmetic, monkeypatch, kept):
    entry = {"dtype": kept, "seconds": {}}
    made, dtype, said = settle(arithmetic, monkeypatch, folder=Folder({"arithmetic": entry}))
    assert (made, dtype, said) == ({"arithmetic": entry}, getattr(torch, kept), [])


def test_a_run_of_an_earlier_version_keeps_the_models_own(arithmetic, monkeypatch):
    assert settle(arithmetic, monkeypatch, folder=Folder({})) == ({}, torch.float32, [])


@pytest.mark.parametrize(
    "given",
    [{"device": "cuda"}, {"own": torch.float16}, {"precision": "float32"}, {"packing": "int8"}],
)
def test_where_there_is_no_choice_nothing_is_tried(arithmetic, monkeypatch, given):
    made, dtype, _ = settle(arithmetic, monkeypatch, **given)
    assert (made, dtype) == ({}, given.get("own", torch.float32))


def test_it_is_not_tried_without_instructions_or_where_it_is_switched_off(arithmetic, monkeypatch):
    monkeypatch.setenv(arithmetic.SWITCH, "0")
    assert settle(arithmetic, monkeypatch)[0] == {}
    monkeypatch.setenv(arithmetic.SWITCH, "1")
    monkeypatch.setattr(arithmetic, "computes_bfloat16", lambda: False)
    assert settle(arithmetic, monkeypatch)[0] == {}


@pytest.mark.parametrize(("unit", "turns"), [(0.1, 4), (3.0, 1)])
def test_the_least_of_a_few_rounds_counts_and_long_steps_are_made_once(arithmetic, monkeypatch, unit, turns):
    clock, calls = [0.0], []

    def step(run, patcher, batch, dtype):
        def go():
            calls.append(dtype)
            first = 5 if len(calls) <= 2 else 1
            clock[0] += unit * first * (1 if dtype == torch.bfloat16 else 2)

        return go

    monkeypatch.setattr(arithmetic, "_step", step)
    monkeypatch.setattr(arithmetic, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    batches = SimpleNamespace(at=lambda position: "batch")
    run = SimpleNamespace(batches=lambda images: batches, dataset=SimpleNamespace(training=()))
    found = arithmetic._seconds(run, None)
    assert len(calls) == 2 * turns
    first = 5 if turns == 1 else 1
    assert found == pytest.approx({"float32": 2 * first * unit, "bfloat16": first * unit})
