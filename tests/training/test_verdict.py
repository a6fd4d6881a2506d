"""A loss that ends far above its start, a lead that is none, and a recomputation that gives other values, are all said."""

import json

import pytest
import torch

from lora_loom.trainer.errors import RunError
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.training.early_stopping import recommended
from lora_loom.trainer.training.verdict import growth
from lora_loom.trainer.weights.recompute import Recomputation
from tests.conftest import SilentHost, make_config


def lines(**losses):
    return [{"step": int(step[1:]), "held_out": loss} for step, loss in losses.items()]


@pytest.mark.parametrize(
    ("measured", "times"),
    [(lines(s0=1.0, s5=3.0), 3.0), (lines(s0=1.0, s5=1.2), 0), (lines(s0=1.0, s5=9.0, s9=0.9), 0), (lines(s5=1.0, s9=3.0), 0)],
)  # fmt: skip
def test_growth_of_the_validation_loss(measured, times):
    assert growth(measured) == times


@pytest.mark.parametrize(("rate", "wrong"), [(-0.01, False), (0.0, False), (0.5, True)])
def test_growth_of_the_training_loss(rate, wrong):
    training = [{"step": step, "loss": 1.0 + rate * step} for step in range(40)]
    assert bool(growth(training)) == wrong
    assert not growth(training[:10]), "too few to judge"


def test_equal_losses_are_no_difference():
    found = recommended(lines(s0=1.0, s5=0.742141, s9=0.742139), {5, 9})
    assert found["step"] is None
    assert found["reason"].startswith("no difference: steps 9 and 5")
    assert recommended(lines(s0=1.0, s5=0.75, s9=0.74), {5, 9})["step"] == 9
    beaten = recommended(lines(s0=0.7, s5=0.75, s9=0.74), {5, 9})
    assert beaten["step"] is None
    assert "none of them beats" in beaten["reason"]


def test_a_run_keeps_what_its_loss_and_its_first_steps_say(tmp_path):
    config = make_config("sd3", tmp_path, training={"steps": 2, "batch_size": 1}, optimizer={"learning_rate": 1e-12})
    host = SilentHost()
    train(config, host)
    record = json.loads((run_folder(config).path / "run.json").read_text())
    assert record["loss_growth"] == 0
    first = record["first_steps"]
    assert first["steps"] == 2
    assert 0 < first["way"] < 1e-6
    assert all(len(first[what]) == 3 for what in ("gradient_norms", "update_norms"))
    assert any("this learning rate changes nothing" in text for text in host.text)


class Drifting(torch.nn.Module):
    """A block whose second forward is another function."""

    def __init__(self, drift):
        super().__init__()
        self.linear, self.drift, self.calls = torch.nn.Linear(4, 4), drift, 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * (1 + self.drift * (self.calls - 1)), "not a tensor"


def test_a_recomputation_that_differs_is_refused_and_an_equal_one_changes_nothing():
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for drift in (0.0, 0.19):
        block, recompute = Drifting(drift), Recomputation()
        with torch.no_grad():
            recompute(block, x)  # a measurement before the first step
        block.calls = 0
        loss = recompute(block, x)[0].sum() + recompute(Drifting(0.0), x)[0].sum()
        if drift:
            with pytest.raises(RunError, match="differs by 19% from its forward pass.*gradient_checkpointing = false"):
                loss.backward()
        else:
            loss.backward()
            assert recompute.difference == 0
            assert block.calls == 2


def test_a_block_that_gets_its_tensors_by_name_is_run_on_shapes_too():
    """Flux' blocks in ComfyUI do; there is nothing to compare without values."""
    recompute, x = Recomputation(), torch.ones(2, 3, device="meta", requires_grad=True)
    recompute(lambda: x * 2).sum().backward()
    assert recompute.difference is None
    assert x.grad.shape == x.shape
