"""While a run trains: early stopping, the average beside the live adapter in its pictures, costs, curves for other programs."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from lora_loom.trainer.config.run import OutputConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs import trackers
from lora_loom.trainer.runs.adapting import adapt as run_module
from lora_loom.trainer.runs.execute import execute
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.runs.timings import Timings
from lora_loom.trainer.runs.trackers import NoTracker, check_tracker, open_tracker
from lora_loom.trainer.training.early_stopping import is_exhausted, lowest, recommended, selected_loss
from tests.conftest import SilentHost, make_config

HELD_OUT = {"resolution": 64, "bucket_step": 32, "validation_split": 0.34}


def lines(values):
    return [{"step": i, "held_out": value} for i, value in enumerate(values)]


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=12), patience=st.integers(1, 5))
def test_patience_ends_exactly_after_that_many_measurements_without_a_new_low(values, patience):
    best = min(range(len(values)), key=lambda i: values[i])
    assert lowest(lines(values)) == (best, values[best], len(values) - 1 - best)
    assert is_exhausted(lines(values), patience) == (len(values) - 1 - best >= patience)
    assert not is_exhausted(lines(values), 0)


def test_what_the_file_holds_is_judged():
    assert selected_loss({"held_out": 1.0, "held_out_ema": 0.5}) == 0.5
    assert not is_exhausted([{"step": 1, "loss": 2.0}], 1)


PLANTED = [5.0, 4.0, 3.0, 3.5, 3.2, 2.0, 1.0, 0.5, 0.1]
"""Validation loss by step: lowest at step 2 until it falls again from step 5 on."""
WATCHED = {
    "data": HELD_OUT,
    "training": {"steps": 6, "save_every": 6},
    "validation": {"every": 1, "patience": 2},
}


def watched(tmp_path, monkeypatch):
    """A run whose validation loss follows PLANTED."""
    config = make_config("sd3", tmp_path, **WATCHED)

    def planted(denoiser, held_out, should_stop=None):
        return [[PLANTED[sum("held_out" in line for line in run_folder(config).read_metrics())]]]

    monkeypatch.setattr("lora_loom.trainer.runs.execute.held_out_losses", planted)
    return config


def test_a_run_that_gets_worse_stops_early_and_stays_finished(tmp_path, monkeypatch):
    config, host = watched(tmp_path, monkeypatch), SilentHost()
    outcome = train(config, host)
    assert (outcome.state, outcome.step) == ("finished", 4)
    assert any(
        "stopped early at step 4: the validation loss was lowest at step 2 (3.00000)" in text for text in host.text
    )
    again = SilentHost()
    assert train(config, again).step == 4, "a finished run takes no further step"
    assert again.steps == []
    longer = replace(config, validation=replace(config.validation, patience=0))
    assert train(longer, SilentHost()).step == 6, "patience may be changed on resume"


def test_the_low_before_an_early_stop_has_its_file_and_the_record_says_why(tmp_path, monkeypatch):
    config, host = watched(tmp_path, monkeypatch), SilentHost()
    outcome = train(config, host)
    folder = run_folder(config)
    names = {path.name for path in (folder.path / "loras").iterdir()}
    assert names == {"run-000001.safetensors", "run-000002.safetensors", "run-000004.safetensors", "run.safetensors"}
    best = folder.read()["best"]
    assert best == outcome.best
    assert (best["step"], best["lora"], best["held_out"], best["runner_up"]) == (2, "run-000002.safetensors", 3.0, 4)
    assert best["reason"].startswith(
        "step 2 has the lowest validation loss (3.00000) of 3 measured LoRA files; runner-up: step 4"
    )
    assert any("by the validation loss: run-000002.safetensors. step 2" in text for text in host.text)
    with safe_open(folder.path / "loras" / best["lora"], "pt") as low, safe_open(outcome.lora, "pt") as last:
        key = next(key for key in low.keys() if "lora_B" in key)  # noqa: SIM118 - not a dict
        assert not low.get_tensor(key).equal(last.get_tensor(key)), "the file is that of step 2, not of the last"


def test_a_recommendation_names_the_base_where_nothing_beats_it():
    found = recommended(lines([1.0, 3.0, 2.0, 4.0]), [1, 2, 3])
    assert (found["step"], found["runner_up"]) == (None, 1)
    assert "the last step, 3, has 4.00000" in found["reason"]
    assert "but the base without a LoRA has 1.00000, which none of them beats" in found["reason"]
    assert recommended(lines([1.0, 3.0]), [1]) is None, "one is no choice"
    assert recommended(lines([9.0, 3.0, 2.0, 4.0]), [1, 3])["step"] == 1, "only steps with a file"


def test_an_interrupted_run_stops_early_where_the_unbroken_one_did(tmp_path, monkeypatch):
    config = watched(tmp_path, monkeypatch)
    assert train(config, SilentHost(stop_at=3)).state == "stopped"
    assert train(config, SilentHost()).step == 4


def test_patience_needs_images_set_aside(tmp_path):
    with pytest.raises(ConfigError, match="patience = 2 needs a validation loss"):
        train(make_config("sd3", tmp_path, validation={"patience": 2}), SilentHost())


class Samples:
    """Samples that remember the adapter they were made with."""

    every = 2

    def __init__(self, session):
        self.session, self.seen = session, []

    def paths(self, step, kind=""):
        return [self.session.folder.path / f"step-{step}{kind}.png"]

    def using(self, trained):
        return nullcontext()

    def render(self, step, kind="", should_stop=None):
        name = next(n for n in dict(self.session.denoiser.module.named_parameters()) if "lora_B" in n)
        weight = dict(self.session.denoiser.module.named_parameters())[name]
        self.seen.append((step, kind, weight.detach().clone()))
        return self.paths(step, kind)


def test_the_average_is_shown_beside_the_live_adapter(tmp_path, monkeypatch):
    shown = []

    def with_samples(session, host):
        shown.append(Samples(session))
        return execute(replace(session, samples=shown[0]), host)

    monkeypatch.setattr(run_module, "execute", with_samples)
    host = SilentHost()
    config = make_config("sd3", tmp_path, training={"steps": 4, "ema_decay": 0.9}, optimizer={"learning_rate": 0.1})
    train(config, host)
    seen = {(step, kind): weight for step, kind, weight in shown[0].seen}
    assert list(seen) == [(0, ""), (2, ""), (2, "ema"), (4, ""), (4, "ema")]
    assert not seen[2, ""].equal(seen[2, "ema"])
    assert [path.name for path in host.files if path.suffix == ".png"][1:3] == ["step-2.png", "step-2ema.png"]
    costs = run_folder(config).read()["costs"]
    assert set(costs) == {"training", "saving", "samples"}
    assert any(text.startswith("time: ") and "samples" in text for text in host.text)


def test_costs_add_up():
    costs = Timings.continued({"training": 3.0, "pictures": 0.75, "samples": 0.25})  # begun by an earlier version
    with costs.of("samples"):
        pass
    assert sum(costs.shares().values()) == pytest.approx(1)
    assert costs.text() == "time: training 75.0%, samples 25.0%"
    assert Timings().shares() == {}


def test_tensorboard_holds_the_curves(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = make_config(
        "sd3", tmp_path, data=HELD_OUT, training={"steps": 4, "save_every": 2}, output={"report": "tensorboard"}
    )
    train(config, SilentHost(stop_at=2))
    train(config, SilentHost())
    folder = run_folder(config)
    events = accumulator.EventAccumulator(str(folder.path / "tensorboard")).Reload()
    for name in ("loss", "grad_norm", "learning_rate", "held_out"):
        expected = {line["step"]: line[name] for line in folder.read_metrics() if name in line}
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx(expected), name


def test_the_events_of_all_runs_can_lie_in_one_folder(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logs = tmp_path / "logs"
    output = {"report_to": "tensorboard", "tracker_dir": str(logs)}
    train(make_config("sd3", tmp_path, training={"steps": 1}, output=output), SilentHost())
    train(
        make_config("sd3", tmp_path, name="second", training={"steps": 1}, output={**output, "tracker_run": "red"}),
        SilentHost(),
    )
    folder = run_folder(make_config("sd3", tmp_path)).path
    assert sorted(one.name for one in logs.iterdir()) == sorted([folder.name, "red"])
    assert accumulator.EventAccumulator(str(logs / "red")).Reload().Scalars("loss")
    assert not (folder / "tensorboard").exists()
    with pytest.raises(ConfigError, match="name"):
        OutputConfig(tracker_dir="logs", tracker_run="../elsewhere")


def test_a_missing_library_is_said_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    monkeypatch.setattr("lora_loom.trainer.runs.headless.open_base", lambda *a: pytest.fail("looked at the base"))
    with pytest.raises(ConfigError, match="wandb is not installed; pip install wandb"):
        train(make_config("sd3", tmp_path, output={"report": "wandb"}), SilentHost())
    check_tracker("none")


def test_wandb_gets_every_step_once_and_one_that_fails_stops_nothing(tmp_path, monkeypatch):
    logged, started = [], []
    handle = SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append("end")
    )
    fake = SimpleNamespace(init=lambda **options: started.append(options) or handle)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    wandb = OutputConfig(report_to="wandb")
    tracker = open_tracker(wandb, tmp_path / "cat", 0, pytest.fail)
    tracker.scalars(1, {"loss": 0.5})
    tracker.close()
    assert logged == [(1, {"loss": 0.5}), "end"]
    assert (started[0]["project"], started[0]["name"], started[0]["resume"]) == ("lora-loom", "cat", "allow")
    same = open_tracker(wandb, tmp_path / "cat", 5, pytest.fail)
    assert started[1]["id"] == started[0]["id"]
    assert same is not None
    named = replace(wandb, tracker_project="cats", tracker_run="red")
    open_tracker(named, tmp_path / "cat", 5, pytest.fail)
    assert (started[2]["project"], started[2]["name"]) == ("cats", "red")
    said = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: 1 / 0))
    assert isinstance(open_tracker(wandb, tmp_path, 0, said.append), NoTracker)
    assert "training goes on without it" in said[0]
