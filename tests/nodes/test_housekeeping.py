"""What a person does with runs in ComfyUI's page: rename, away to the trash, order of the queue, settings as TOML."""

import json
from types import SimpleNamespace

import pytest

from lora_loom.trainer.config.run import TrainConfig
from lora_loom.trainer.config.toml import parse, to_dict
from lora_loom.trainer.config.toml_text import to_toml
from lora_loom.trainer.errors import ConfigError, RunError

from .records import old_inputs

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib


@pytest.fixture
def registry(host):
    queue = host("runs.queue")
    return queue.Registry(busy=lambda: False, emit=lambda kind, data: None)


@pytest.fixture
def finished(host):
    """A run with its LoRA files, in its own folder and in ComfyUI's."""
    paths = host("paths")
    folder = paths.run_folder("cat")
    folder.start({"name": "cat", "training": {"steps": 4}}, {}, {})
    folder.update(state="finished", step=4, lora="cat.safetensors", best={"step": 2, "lora": "cat-000002.safetensors", "held_out": 0.5})  # fmt: skip
    for place in (folder.path / "loras", paths.lora_folder() / "cat"):
        place.mkdir(parents=True)
        for name in ("cat.safetensors", "cat-000002.safetensors"):
            (place / name).write_bytes(name.encode())
    return folder


def test_a_renamed_run_is_whole_under_its_new_name(host, finished, registry):
    paths = host("paths")
    record = host("runs.housekeeping").rename(finished, "tabby", registry)
    assert (record["name"], record["state"], record["lora"]) == ("tabby", "finished", "tabby.safetensors")
    assert not finished.path.exists()
    assert not (paths.lora_folder() / "cat").exists()
    target = paths.run_folder("tabby")
    for place in (target.path / "loras", paths.lora_folder() / "tabby"):
        assert {path.name: path.read_bytes() for path in place.iterdir()} == {
            "tabby.safetensors": b"cat.safetensors",
            "tabby-000002.safetensors": b"cat-000002.safetensors",
        }
    assert target.read()["best"]["lora"] == "tabby-000002.safetensors"
    assert target.read()["config"]["name"] == "tabby"
    assert [one.step for one in target.saved_loras()] == [2]


@pytest.mark.parametrize(("name", "error"), [("../x", ConfigError), ("", ConfigError), ("dog", RunError)])
def test_a_name_that_is_taken_or_leads_away_is_refused_and_nothing_moves(host, finished, registry, name, error):
    host("paths").run_folder("dog").start({}, {}, {})
    with pytest.raises(error):
        host("runs.housekeeping").rename(finished, name, registry)
    assert finished.saved_loras()


def test_a_note_is_kept_and_does_not_make_a_run_newer(host, finished, registry):
    before = host("runs.records").list_runs(registry)[0]
    assert (before["note"], before["starred"]) == ("", False)
    house = host("runs.housekeeping")
    assert house.keep_note(finished, " the <b>best</b>, 猫 \n", True) == {
        "note": "the <b>best</b>, 猫",
        "starred": True,
    }
    after = host("runs.records").list_runs(registry)[0]
    assert after == {**before, "note": "the <b>best</b>, 猫", "starred": True}
    house.rename(finished, "tabby", registry)
    assert host("runs.records").list_runs(registry)[0]["starred"] is True


@pytest.mark.parametrize(("note", "starred"), [(3, True), ("x", 1), ("x" * 2001, False), (None, False)])
def test_a_note_of_another_kind_is_refused(host, finished, note, starred):
    with pytest.raises(ConfigError):
        host("runs.housekeeping").keep_note(finished, note, starred)
    assert not (finished.path / "note.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"note": "x"}', "null"])
def test_a_damaged_note_is_none(host, finished, registry, content):
    (finished.path / "note.json").write_text(content)
    assert host("runs.records").list_runs(registry)[0]["note"] == ""


def test_a_deleted_run_is_in_the_trash_whole_and_not_listed(host, finished, registry):
    paths = host("paths")
    place = host("runs.housekeeping").move_to_trash(finished, registry, with_loras=False)
    assert place.parent == paths.root() / ".trash"
    assert (place / "run" / "loras" / "cat.safetensors").is_file()
    assert (paths.lora_folder() / "cat" / "cat.safetensors").is_file(), "ComfyUI's file was to stay"
    assert host("runs.records").list_runs(registry) == []
    finished.start({}, {}, {})
    second = host("runs.housekeeping").move_to_trash(finished, registry, with_loras=True)
    assert second != place
    assert (second / "published" / "cat.safetensors").is_file()
    assert not (paths.lora_folder() / "cat").exists()


def test_a_deleted_run_comes_back_with_its_lora_files(host, finished, registry):
    house, paths = host("runs.housekeeping"), host("paths")
    assert house.trashed() == []
    before = finished.read()
    place = house.move_to_trash(finished, registry, with_loras=True)
    [entry] = house.trashed()
    assert (entry["entry"], entry["name"]) == (place.name, "cat")
    assert entry["bytes"] > 0
    assert house.restore(place.name, registry)["name"] == "cat"
    assert {**paths.run_folder("cat").read(), "updated": 0} == {**before, "updated": 0}
    assert (paths.lora_folder() / "cat" / "cat.safetensors").is_file()
    assert house.trashed() == []
    assert not place.exists()


@pytest.mark.parametrize("is_only_lora", [True, False])
def test_a_deleted_run_takes_no_name_that_another_has(host, finished, registry, is_only_lora):
    house, paths = host("runs.housekeeping"), host("paths")
    place = house.move_to_trash(finished, registry, with_loras=True)
    if is_only_lora:
        (paths.lora_folder() / "cat").mkdir()
    else:
        paths.run_folder("cat").start({}, {}, {})
    with pytest.raises(RunError, match="a run cat exists, or LoRA files of that name"):
        house.restore(place.name, registry)
    assert (place / "run").is_dir()
    assert (place / "published").is_dir()


@pytest.mark.parametrize("entry", ["", "..", "../cat", "cat", "cat 2026-11-29 20-50-00", "."])
def test_only_what_lies_in_the_trash_comes_back(host, finished, registry, entry):
    house = host("runs.housekeeping")
    house.move_to_trash(finished, registry, with_loras=False)
    with pytest.raises(RunError, match="is not in the trash"):
        house.restore(entry, registry)


def test_the_trash_is_emptied_and_nothing_else(host, finished, registry, tmp_path):
    house, paths = host("runs.housekeeping"), host("paths")
    place = house.move_to_trash(finished, registry, with_loras=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.txt").write_text("x")
    (place.parent / "dog 2026-01-01 00-00-00").symlink_to(elsewhere)
    (place / "run" / "link").symlink_to(elsewhere)
    assert house.empty_trash() == 1
    assert (elsewhere / "kept.txt").is_file()
    assert (paths.lora_folder() / "cat" / "cat.safetensors").is_file()
    assert house.trashed() == []


def test_a_run_that_another_process_trains_is_left_alone(host, finished, registry):
    finished.lock()
    house = host("runs.housekeeping")
    same = host("paths").run_folder("cat")
    for work in (lambda: house.rename(same, "dog", registry), lambda: house.move_to_trash(same, registry, with_loras=True)):  # fmt: skip
        with pytest.raises(RunError, match="being trained: stop it first"):
            work()
    finished.unlock()
    assert same.exists()


def test_a_queued_run_can_be_moved_and_no_other(registry):
    registry._queue = [SimpleNamespace(name=name) for name in ("a", "b", "c")]
    assert registry.move("c", 0) == ["c", "a", "b"]
    assert registry.move("c", 9) == ["a", "b", "c"]
    with pytest.raises(RunError, match="does not wait"):
        registry.move("running", 0)


@pytest.mark.parametrize("place", [None, -1, "1", True, 0.5])
def test_a_place_in_the_queue_is_a_whole_number(host, place):
    with pytest.raises(ConfigError, match="whole number"):
        host("runs.housekeeping").whole_number(place, "place")


def test_the_settings_of_a_run_are_those_that_differ_and_read_back_as_toml(host):
    from lora_loom.nodes.train import _request

    plan = _request({**old_inputs(), "mode": "background", "existing_run": "resume"}).plan({"model": "m", "data": "d"})
    folder = host("paths").run_folder("cat")
    folder.start(plan.config(), plan.fixed(), {})
    found = host("runs.settings_of_run").settings(folder)
    changed = {one["name"]: one["value"] for one in found["changed"]}
    assert changed["training.steps"] == 6
    assert changed["network.rank"] == 2
    assert changed["objective.logit_mean"] == 0.5
    assert all(one["value"] != one["default"] for one in found["changed"])
    assert "training.gradient_accumulation_steps" in found["all"]
    config = parse(tomllib.loads(found["toml"]), TrainConfig)
    assert config.name == "cat"
    for table in ("network", "optimizer", "schedule", "objective", "training"):
        assert to_dict(getattr(config, table)) == to_dict(getattr(plan, table)), table


def test_a_run_of_the_command_line_gives_its_own_model_and_images(host):
    config = parse(
        {"name": "cat", "model": {"base": "/models/sd"}, "dataset": [{"folder": "a", "trigger": 'x "y"\n'}, {"folder": "b", "role": "validation"}],
         "optimizer": {"options": {"betas": [0.9, 0.99]}}, "training": {"steps": 7}}, TrainConfig)  # fmt: skip
    folder = host("paths").run_folder("cat")
    folder.start(to_dict(config), {}, {})
    text = host("runs.settings_of_run").settings(folder)["toml"]
    assert parse(tomllib.loads(text), TrainConfig) == config


def test_toml_text_reads_back():
    data = {
        "a": "ü \"q\" \\ \n \x7f 🐈", "b": 1e-05, "c": True, "d": [1, 2], "e": [], "odd key": 3,
        "t": {"x": 1, "inner": {"y": [0.5]}}, "rows": [{"z": 1}, {"z": 2, "deep": {"k": "v"}}],
    }  # fmt: skip
    assert tomllib.loads(to_toml({**data, "none": None})) == data
    with pytest.raises(ConfigError, match="no form in TOML"):
        to_toml({"x": object()})


def test_the_list_has_the_newest_sample_and_the_lowest_validation_loss(host, finished, registry):
    samples = finished.path / "samples"
    samples.mkdir(exist_ok=True)
    for name in ("step-000002-0.png", "step-000010-0.png", "step-000010-1.png"):
        (samples / name).write_bytes(b"")
    [run] = host("runs.records").list_runs(registry)
    assert (run["sample"], run["lowest"]) == ("samples/step-000010-0.png", 0.5)
    assert json.dumps(run)


def test_a_long_record_is_thinned_but_for_measurements(host):
    lines = [{"step": step, "loss": 1.0} for step in range(1000)]
    lines[501:503] = [{"step": 501, "held_out": 0.5}, {"step": 502, "likeness": 0.7}]
    found = host("page.routes").thinned(lines, 100)
    assert 100 <= len(found) <= 110
    assert {"step": 501, "held_out": 0.5} in found
    assert {"step": 502, "likeness": 0.7} in found
    assert host("page.routes").thinned(lines, 0) == lines
