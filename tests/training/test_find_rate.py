"""`learning_rate = "find"`: which rate wins, what it costs, and that a run with it is the run of the number it found."""

import math

import pytest
from safetensors.torch import load_file

from lora_loom.trainer.errors import ConfigError, StoppedError
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.training import rate_trials
from lora_loom.trainer.training.find_rate import MOST, Search, find_rate, make_search
from lora_loom.trainer.training.held_out import held_out_losses, losses_at_even_levels, mean_loss
from lora_loom.trainer.training.rate_trials import judged_loss, passes
from tests.conftest import SilentHost, make_config

LOSSES = {(1e-4, 5): 3.0, (2e-4, 5): 1.0, (4e-4, 5): 2.0, (2e-4, 10): 0.9, (4e-4, 10): 0.5}
SEARCH = Search(rates=(1e-4, 2e-4, 4e-4), steps=5, measured=1)


def test_the_better_ones_go_on_and_the_best_of_them_wins():
    tried = []
    assert find_rate(SEARCH, [], lambda *trial: tried.append(trial) or LOSSES[trial], lambda trial: None) == 4e-4
    assert set(tried) == set(LOSSES)
    assert SEARCH.trained == 5 * 3 + 5 * 2


@pytest.mark.parametrize(("high", "low", "best"), [(0.88, 1.0, 2e-4), (0.84, 1.0, 4e-4), (0.88, 0.899, 1e-4)])
def test_a_rate_above_the_rules_has_to_lead_clearly_and_one_below_has_not(high, low, best):
    """0.9 is the loss of the rule's own rate, 2e-4."""
    first = {1e-4: 2.0 if low > 0.9 else 1.2, 2e-4: 1.2, 4e-4: 1.3 if low > 0.9 else 2.0}
    losses = {**{(rate, 5): loss for rate, loss in first.items()}, (2e-4, 10): 0.9, (4e-4, 10): high, (1e-4, 10): low}
    assert find_rate(SEARCH, [], lambda *trial: losses[trial], lambda trial: None) == best


def test_an_interrupted_search_makes_no_trial_twice():
    kept, tried = [], []

    def train_until_killed(*trial):
        if len(kept) == 3:
            raise KeyboardInterrupt
        return LOSSES[trial]

    with pytest.raises(KeyboardInterrupt):
        find_rate(SEARCH, [], train_until_killed, kept.append)
    found = find_rate(SEARCH, kept, lambda *trial: tried.append(trial) or LOSSES[trial], kept.append)
    assert found == 4e-4
    assert tried == [(2e-4, 10), (4e-4, 10)]


def test_a_rate_that_diverges_never_wins():
    losses = {**LOSSES, (2e-4, 5): math.inf, (1e-4, 10): 1.0, (4e-4, 10): math.nan}
    assert find_rate(SEARCH, [], lambda *trial: losses[trial], lambda trial: None) == 1e-4


@pytest.mark.parametrize("total", [1000, 2000, 7000, 100_000])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_the_search_costs_less_than_a_tenth_from_1000_steps_on(total, batch):
    search = make_search(4.5e-4, total, 4 * 4, batch)
    passes = search.measured * (len(search.rates) + search.kept)
    assert search.trained + passes / (3 * batch) < 0.1 * total
    assert search.steps <= MOST
    assert search.rates[0] < 4.5e-4 == search.rates[1] < search.rates[2]


def go(tmp_path, name, rate, host=None, **sections):
    config = make_config("sd3", tmp_path, name=name, optimizer={"learning_rate": rate}, **sections)
    train(config, host or SilentHost())
    return run_folder(config)


def weights(folder):
    return load_file(folder.lora_file(None))


def test_a_run_with_find_is_the_run_of_the_number_it_found(tmp_path):
    found = go(tmp_path, "found", "find")
    record = found.read()
    assert record["found_rate"] in {trial["rate"] for trial in record["rate_trials"]}
    assert record["config"]["optimizer"]["learning_rate"] == "find"
    named = go(tmp_path, "named", record["found_rate"])
    assert all(weights(found)[key].equal(value) for key, value in weights(named).items())
    longer = go(tmp_path, "found", "find", training={"steps": 8})
    assert longer.read()["rate_trials"] == record["rate_trials"], "a run that goes on keeps its rate"


class Impatient(SilentHost):
    """Asks for a stop after some steps of the search."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def stage(self, name, done, total):
        self.left -= name == "looking for a learning rate"

    def should_stop(self):
        return self.left <= 0


def test_a_search_that_is_stopped_goes_on_with_what_it_has(tmp_path):
    whole = go(tmp_path, "whole", "find").read()
    with pytest.raises(StoppedError, match="what was measured is kept"):
        go(tmp_path, "broken", "find", Impatient(5))
    part = run_folder(make_config("sd3", tmp_path, name="broken")).read()
    assert 0 < len(part["rate_trials"]) < len(whole["rate_trials"])
    again = go(tmp_path, "broken", "find").read()
    assert again["rate_trials"] == whole["rate_trials"]
    assert again["found_rate"] == whole["found_rate"]


def test_an_optimizer_that_finds_its_own_rate_looks_for_none(tmp_path):
    with pytest.raises(ConfigError, match="finds its own"):
        make_config("sd3", tmp_path, optimizer={"name": "prodigy", "learning_rate": "find"})


@pytest.mark.parametrize(("family", "rulers"), [("sd3", 2), ("sd", 1)])
def test_rates_are_judged_by_both_rulers_at_no_more_passes(family, rulers, tmp_path, monkeypatch):
    """Where a family's levels are not the even ones, the best rate for the one is not always the best for the other."""
    seen = []

    def judged(denoiser, probe):
        own = held_out_losses(denoiser, probe)
        even = losses_at_even_levels(denoiser, probe, own)
        loss = judged_loss(denoiser, probe)
        seen.append((loss, mean_loss(own), mean_loss(even), passes(denoiser, probe)))
        return loss

    monkeypatch.setattr(rate_trials, "judged_loss", judged)
    config = make_config(
        family,
        tmp_path,
        optimizer={"learning_rate": "find"},
        data={"validation_split": 0.34},
        validation={"timesteps": 4},
    )
    train(config, SilentHost())
    loss, own, even, count = seen[-1]
    assert loss == pytest.approx((own + even) / 2)
    assert (own != even) == (rulers == 2)
    assert count == 4 * 2  # two images
