"""The ruler of bench/guided_loss.py: it says 1 of the base itself, s of a network that has guidance s inside, and its runs are valid."""

import copy

import pytest

from bench.common import two_blocks
from bench.guided_loss import LOSSES, Measure, config_of
from lora_loom.trainer.config.unused import refuse_unused_options
from scripts.demo_base.student import distil, guided


@pytest.fixture(scope="module")
def measure():
    return Measure(two_blocks(), two_blocks(), scenes=2)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_ruler_reads_the_guidance_that_is_inside(measure, scale):
    inside = copy.copy(measure.student)
    plain = measure.student.predict

    class Guided:
        def predict(self, noisy, sigma, conditioning):
            if conditioning["text"].equal(conditioning["text"][:1].expand_as(conditioning["text"])):
                return plain(noisy, sigma, conditioning)  # the empty text
            return guided(inside, measure.text, noisy, sigma, measure.captions, scale)

    assert measure.guidance(Guided()) == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_its_runs_are_valid(tmp_path, loss):
    config = config_of(two_blocks(), tmp_path, loss, 3)
    refuse_unused_options(config)
    assert (config.objective.guided_loss, config.training.seed) == (loss, 3)


@pytest.mark.slow
def test_a_student_comes_closer_to_the_guided_base(tmp_path):
    share = distil(two_blocks(), tmp_path / "student", steps=60, pool=64)
    assert share < 0.8
    assert (
        Measure(two_blocks(), tmp_path / "student").guidance(Measure(two_blocks(), tmp_path / "student").student) > 1.5
    )
