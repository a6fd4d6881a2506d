"""Noise levels that walk evenly through their distribution, image by image, and the runs of before, which drew each for itself."""

import math
from collections import defaultdict

import pytest
import torch

from lora_loom.trainer.config.run import ObjectiveConfig
from lora_loom.trainer.config.toml import changed_settings
from lora_loom.trainer.data.batches import share_of
from lora_loom.trainer.data.order import Draw, make_plan
from lora_loom.trainer.diffusion.objectives import FlowMatching
from lora_loom.trainer.diffusion.timesteps import NoiseLevels, Uniform
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.runs.run_folder import RunFolder
from lora_loom.trainer.runs.settled import with_spread
from lora_loom.trainer.seeding import StepKey
from lora_loom.trainer.training.step import LossSettings, draw
from tests.conftest import SilentHost, make_config
from tests.data.test_batches import example


def walk(seed, image, visits):
    return [share_of(seed, image, Draw(0, visit // image.repeats, visit % image.repeats)) for visit in range(visits)]


def discrepancy(points):
    """Largest distance between the share of points below x and x (star discrepancy, exactly)."""
    ordered, n = sorted(points), len(points)
    return max(max((i + 1) / n - x, x - i / n) for i, x in enumerate(ordered))


@pytest.mark.parametrize("visits", [5, 20, 100, 500])
def test_the_visits_of_an_image_cover_the_levels_evenly(visits):
    """A Kronecker sequence of the golden ratio has a star discrepancy below 3 log(n + 1) / n; independent draws have about
    0.6 / sqrt(n)."""
    for number in range(5):
        points = walk(3, example(number, repeats=2), visits)
        assert all(0 <= point < 1 for point in points)
        assert discrepancy(points) <= min(1, math.log(visits + 1) / visits + 1 / visits)


def test_images_and_seeds_begin_at_places_of_their_own():
    begins = [walk(seed, example(number), 1)[0] for seed in range(4) for number in range(5)]
    assert len(set(begins)) == 20
    assert discrepancy(begins) < 0.35


def test_the_level_of_an_image_does_not_depend_on_the_batch_size():
    images = [example(number) for number in range(4)]

    def levels(batch_size):
        plan, found = make_plan(images, batch_size, 0), defaultdict(list)
        for position in range(8 // batch_size * 2):
            for one in plan.at(position):
                found[one.number].append(share_of(0, images[one.number], one))
        return {number: sorted(shares) for number, shares in found.items()}

    assert levels(1) == levels(2) == levels(4)


class Flow:
    objective = FlowMatching(shift=1.0)


def test_a_step_takes_the_level_that_the_batch_says():
    from tests.training.test_loop import ToyBatches

    batch = ToyBatches().at(0)
    batch = type(batch)(**{**vars(batch), "shares": tuple(0.25 + 0.1 * i for i in range(batch.size))})
    settings = LossSettings(noise_levels=NoiseLevels(law=Uniform(), shift=3.0), spread=True)
    expected = torch.tensor([3 * u / (1 + 2 * u) for u in batch.shares])
    for step in (0, 7):
        _, sigma = draw(Flow(), batch, settings, StepKey(seed=1, step=step, micro_batch=0))
        assert torch.allclose(sigma, expected)


def losses(folder):
    return [line["loss"] for line in folder.read_metrics() if "loss" in line]


def test_a_stopped_run_ends_where_the_unbroken_one_does_and_differs_from_independent_levels(tmp_path):
    found = {}
    for name, changes in (("whole", {}), ("broken", {}), ("before", {"objective": {"timestep_spread": "independent"}})):
        config = make_config("sd3", tmp_path / name, **changes)
        train(config, SilentHost(stop_at=3 if name == "broken" else None))
        if name == "broken":
            train(config, SilentHost())
        found[name] = losses(run_folder(config))
        recorded = run_folder(config).read()["config"]["objective"]["timestep_spread"]
        assert recorded == ("independent" if name == "before" else "even")
    assert found["whole"] == found["broken"] != found["before"]


def test_an_earlier_run_goes_on_as_it_began(tmp_path):
    folder, old = RunFolder(tmp_path / "run"), {"objective": {"shift": "auto"}}
    assert with_spread(ObjectiveConfig(), folder).timestep_spread == "even"
    folder.update(config=old, fixed=old)
    (folder.checkpoints / "step-000001").mkdir(parents=True)
    assert with_spread(ObjectiveConfig(), folder).timestep_spread == "independent"
    named = ObjectiveConfig(timestep_spread="even")
    assert with_spread(named, folder) is named
    asked = {"facts": {}, "objective": {"shift": "auto", "timestep_spread": "independent"}}
    assert changed_settings(old, asked) == []
    asked["objective"]["timestep_spread"] = "even"
    assert changed_settings(old, asked) == ["objective.timestep_spread: 'independent' -> 'even'"]
