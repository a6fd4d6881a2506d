"""The command line and the graph, side by side: the same settings are the same plan, the same session, the same record."""

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora_loom.trainer.config.aliases import current_tree
from lora_loom.trainer.config.prompt_library import Prompt
from lora_loom.trainer.config.run import DatasetConfig, TrainingConfig, ValidationConfig
from lora_loom.trainer.config.toml import free_on_resume
from lora_loom.trainer.data.sets.dataset import trigger_words
from lora_loom.trainer.errors import ConfigError, RunError
from lora_loom.trainer.lora.metadata import describe
from lora_loom.trainer.runs.assemble import assemble
from lora_loom.trainer.runs.headless import prepare, run_folder, run_plan, train
from lora_loom.trainer.runs.plan import SECTIONS
from lora_loom.trainer.runs.run_folder import RunFolder
from lora_loom.trainer.runs.samples import asked_images, sample_interval, sample_settings
from lora_loom.trainer.runs.session import Backend, RunData
from tests.conftest import SilentHost, make_config, pictures
from tests.nodes.records import OLD_FACTS, OLD_GRAPH_RUN, old_inputs

VALIDATION = {
    "prompts": ["a zib", "two zibs"], "negative_prompt": "blur", "seed": 5, "sample_every": 50, "sample_steps": 7,
    "guidance_scale": 2.0, "width": 64, "height": 96, "every": 25, "timesteps": 3, "patience": 2,
}  # fmt: skip
NODE = {
    "negative": "blur", "seed": 5, "every": 50, "steps": 7, "cfg": 2.0, "measure_every": 25, "timesteps": 3, "patience": 2,
}  # fmt: skip
"""The same, as LoomValidation's inputs are called in saved workflows."""


def graph_plan(host, facts=OLD_FACTS, **changes):
    """What LoomTrain makes of its inputs."""
    host("runs.session")
    from lora_loom.nodes.train import _request

    network = torch.nn.Linear(64, 64)
    request = _request(old_inputs(**changes)).settled(host("paths").run_folder("graph-run"), network, lambda text: None)
    return request.plan(facts)


def command_line_plan(tmp_path, **changes):
    """The same settings in a TOML file."""
    tables = current_tree(OLD_GRAPH_RUN["config"])
    config = make_config(
        "sd3",
        tmp_path,
        name="graph-run",
        dataset=[{"folder": str(pictures()), "trigger": "zib"}],
        data={"resolution": 64, "bucket_step": 32, "validation_split": 0.34},
        network={**tables["network"], "exclude_modules": "", "init_from": ""},
        optimizer=tables["optimizer"],
        schedule=tables["schedule"],
        objective=tables["objective"],
        training={**tables["training"], "precision": "float32"},
        output={"dtype": "float32"},
        **changes,
    )
    return run_plan(prepare(config, SilentHost()))


def plans(host, tmp_path):
    """(of the command line, of the graph), for the same settings."""
    from lora_loom.nodes.sockets.values import MemoryValue, NetworkValue, ValidationValue

    mine = command_line_plan(tmp_path, validation=VALIDATION, model={"quantize": "none"})
    validation = host("runs.samples").validation_config(VALIDATION["prompts"], "blur", (), (64, 96), NODE)
    inputs = {
        "cache": replace(old_inputs()["cache"], trigger="zib", digest=mine.facts["data"]),
        "network": NetworkValue(network=replace(mine.network, rank=16)),
        "memory": MemoryValue(memory=mine.memory, precision="float32", quantize="none", yield_max_s=0.0),
        "validation": ValidationValue(
            validation=validation, vae="v", text="t", report_to="wandb", tracker_project="cats", tracker_run="red"
        ),
    }
    return mine, graph_plan(host, dict(mine.facts), **inputs)


def test_the_same_settings_are_the_same_plan(host, tmp_path):
    mine, graph = plans(host, tmp_path)
    for section in set(SECTIONS) - {"output"}:
        assert getattr(mine, section) == getattr(graph, section), section
    assert (mine.name, mine.trigger, mine.facts) == (graph.name, graph.trigger, graph.facts)
    output = graph.output
    assert (mine.output.dtype, output.report_to, output.tracker_project, output.tracker_run) == (
        output.dtype,
        "wandb",
        "cats",
        "red",
    )
    shared = set(SECTIONS) - {"memory", "validation", "output"}
    fixed, theirs = mine.fixed(), graph.fixed()
    assert {name: fixed[name] for name in shared} == {name: theirs[name] for name in shared}
    assert mine.config().keys() - graph.config().keys() == {"dataset", "dataset_files", "data", "text", "sweep"}
    assert graph.config().keys() - mine.config().keys() == {"cache"}


def test_the_same_plan_is_the_same_session_and_the_same_file(host, tmp_path):
    """Of the metadata nothing but the digests' sources and the date may differ; trigger and accumulation are in both."""
    denoiser = SimpleNamespace(objective=SimpleNamespace(name="flow"))
    backend = Backend(denoiser=denoiser, architecture="sd3", compute_dtype=torch.float32, shift=3.0)
    data = RunData(training=[], held_out=[1, 2], images=4, resolution=64)
    sessions = [assemble(plan, backend, data, RunFolder(tmp_path / "x"), ["a.b"]) for plan in plans(host, tmp_path)]
    first, second = (describe(one.plan.network, step=3, **one.metadata) for one in sessions)
    assert {**first, "modelspec.date": ""} == {**second, "modelspec.date": ""}
    assert second["modelspec.trigger_phrase"] == "zib"
    assert second["ss_gradient_accumulation_steps"] == "2"
    assert [(one.held_out.timesteps, one.held_out.seed, one.loss, one.lora_dtype) for one in sessions] == [
        (3, None, sessions[0].loss, torch.float32)
    ] * 2
    with pytest.raises(AttributeError):
        sessions[0].samples = object()


def test_the_trigger_words_are_those_of_the_datasets():
    from lora_loom.nodes.sockets.values import CacheValue

    sets = [DatasetConfig(folder="x", trigger=word) for word in ("", "zib", "zab")]
    assert trigger_words([*sets, sets[1]]) == "zib, zab"
    assert trigger_words([]) == ""
    old = {name: value for name, value in vars(old_inputs()["cache"]).items() if name != "trigger"}
    assert CacheValue(**old).trigger == "", "records of earlier versions have none"


# What may change when a run is continued.


def test_a_run_of_version_0_1_goes_on(host, tmp_path):
    folder = host("paths").run_folder("graph-run")
    folder.update(**OLD_GRAPH_RUN)
    (folder.checkpoints / "step-000003").mkdir(parents=True)
    graph = graph_plan(host)
    assert folder.differences(graph.fixed(), graph.config()) == []
    folder.start(graph.config(), graph.fixed(), {}, ["a"])
    assert folder.differences(graph.fixed(), graph.config()) == [], "nor does it in the new shape"
    assert folder.read()["format"] == 2


def test_what_keeps_a_run_from_going_on_and_the_sentence_are_the_same_on_both_sides(host, tmp_path):
    from lora_loom.nodes.sockets.values import MemoryValue

    graph = graph_plan(host)
    folder = host("paths").run_folder("graph-run")
    folder.start(graph.config(), graph.fixed(), {})
    (folder.checkpoints / "step-000001").mkdir(parents=True)
    precise = old_inputs()["memory"]
    changed = graph_plan(host, memory=MemoryValue(**{**vars(precise), "precision": "bfloat16", "quantize": "none"}))
    records, registry = host("runs.records"), SimpleNamespace(active=lambda name: None)
    with pytest.raises(RunError) as refused:
        records.choose(changed, "resume", registry)
    text = str(refused.value)
    assert "model.quantize: 'int8' -> 'none'" in text
    assert "training.precision: 'float32' -> 'bfloat16'" in text
    assert f"{free_on_resume()}; set existing_run to new, or use another name" in text
    assert records.choose(changed, "new", registry).folder.name == "graph-run-2"

    config = make_config("sd3", tmp_path, training={"steps": 1})
    train(config, SilentHost())
    with pytest.raises(RunError) as refused:
        train(replace(config, training=replace(config.training, seed=9)), SilentHost())
    assert f"{free_on_resume()}; use another name for a new run" in str(refused.value)
    assert free_on_resume() == (
        "Only training.steps, training.save_every, training.keep_checkpoints, training.epochs, training.save_every_epochs, "
        "training.keep_loras, training.keep_best, training.goal and the sections memory (but vae_tiling and compile), validation, sweep and output may change"
    )


def test_a_start_lora_counts_by_its_content_on_both_sides(host, tmp_path):
    """Renamed it is the same run, changed it is not."""
    from lora_loom.nodes.sockets.values import NetworkValue

    old = old_inputs()["network"].network
    renamed = NetworkValue(network=replace(old, init_from="moved/start.safetensors"))
    folder = host("paths").run_folder("graph-run")
    folder.update(**OLD_GRAPH_RUN)
    (folder.checkpoints / "step-000003").mkdir(parents=True)
    graph = graph_plan(host)
    moved = graph_plan(host, network=renamed)
    assert folder.differences(moved.fixed(), moved.config()) == []
    other = graph_plan(host, {**OLD_FACTS, "init": "changed"})
    assert folder.differences(other.fixed(), other.config()) == [f"facts.init: {OLD_FACTS['init']!r} -> 'changed'"]
    mine = replace(graph, own={"model": {"base": "x", "quantize": "int8", "matmul": "off"}}, network=moved.network)
    assert mine.fixed() == graph.fixed(), "the command line leaves the path out in the same way"


# Validation.


@pytest.mark.parametrize(("asked", "steps"), [(0, 250), (50, 50), (-1, 0)])
def test_sample_every_means_the_same_on_both_sides(asked, steps):
    """0 = at checkpoints; -1, which is LoomValidation's 0, = on request."""
    assert sample_interval(ValidationConfig(sample_every=asked), TrainingConfig()) == steps


def test_the_nodes_inputs_have_the_tables_names(host):
    samples = host("runs.samples")
    made = samples.validation_config(VALIDATION["prompts"], "blur", (), (64, 96), NODE)
    expected = {**VALIDATION, "prompts": tuple(VALIDATION["prompts"])}
    assert made == ValidationConfig(**expected)
    plain = samples.validation_config(["a"], "", (), (512, 512), {"every": 0})
    assert (plain.sample_every, plain.every, plain.timesteps, plain.patience) == (
        -1,
        0,
        ValidationConfig().timesteps,
        0,
    )
    assert plain.model_guidance == 3.5
    same = samples.validation_config(["a", "b"], "", (), (64, 64), {"seed": 7, "same_seed": True})
    prompts = [Prompt(text="a"), Prompt(text="b"), Prompt(text="c", seed=3)]
    assert [one.seed for one in asked_images(same, prompts, 64)] == [7, 7, 3]
    assert [one.seed for one in asked_images(replace(same, same_seed=False), prompts, 64)] == [7, 8, 3]
    assert samples.validation_config(["a"], "", (), (64, 64), {"model_guidance": 2.0}).model_guidance == 2.0
    assert sample_settings(plain, 9.0).guidance.scale == 9.0
    assert sample_settings(ValidationConfig(), 9.0).guidance.scale == 9.0, "0 is the usual scale"

    from lora_loom.nodes.settings import LoomValidation

    groups = LoomValidation.INPUT_TYPES()
    shown = {name: widget[1].get("display_name", name) for group in groups.values() for name, widget in group.items()}
    names = {"every": "sample_every", "steps": "sample_steps", "cfg": "guidance_scale", "negative": "negative_prompt",
             "measure_every": "measure_every", "timesteps": "timesteps", "patience": "patience", "report": "report_to"}  # fmt: skip
    assert {name: shown[name] for name in names} == names


def test_samples_on_request_are_refused_where_nobody_can_ask(tmp_path):
    config = make_config("sd3", tmp_path, validation={"prompts": ["a"], "sample_every": -1})
    with pytest.raises(ConfigError, match=r"validation\.sample_every = -1: .*use 0 \(at checkpoints\) or more"):
        prepare(config, SilentHost())


class Vae:
    """Large, and watched by a weak reference."""


def test_a_vae_lives_as_long_as_the_record_that_names_it(host):
    """ComfyUI keeps the record while LoomValidation's output is cached: queued again it is found, and afterwards freed."""
    from lora_loom.nodes.sockets.values import ValidationValue

    samples = host("runs.samples")
    held, records, refs = samples.HeldModels(), [], []
    for _ in range(3):
        value, vae = ValidationValue(validation=ValidationConfig(), vae="v", text="t"), Vae()
        held.hold(value, samples.Held(vae))
        records.append(value)
        refs.append(weakref.ref(vae))
        del vae
    assert [held.of(value).vae for value in records] == [ref() for ref in refs], "equal records, each with its own"
    copy = replace(records[0])
    with pytest.raises(ConfigError, match="the VAE of LoomValidation is not loaded in this process"):
        held.of(copy)
    del records[:2], value
    gc.collect()
    assert [ref() is None for ref in refs] == [True, True, False]
    assert len(held) == 1
    records.clear()
    gc.collect()
    assert (refs[2](), len(held)) == (None, 0)


# A run of the command line in the graph.


def test_loom_run_and_loom_checkpoints_take_a_run_of_the_command_line(host):
    runs = host("paths").root()
    config = make_config("sd3", runs, name="from-toml", training={"steps": 4, "save_every": 2})
    train(config, SilentHost())
    assert run_folder(config).path == runs / "from-toml"
    host("runs.actions")
    from lora_loom.nodes.sweep import LoomCheckpoints
    from lora_loom.nodes.train import LoomRun

    run, _ = LoomRun().run(name="from-toml")
    assert (run.name, run.directory) == ("from-toml", str(runs / "from-toml"))
    [made] = LoomCheckpoints().run(include_base=True, pick="all", n=1, run=run)
    assert [label for label, _ in made.files] == ["step 2", "step 4"]
    assert made.steps == (2, 4)
    assert made.directory == str(runs / "from-toml" / "strips")
    records = host("runs.records")
    summary = records.summary(run_folder(config), SimpleNamespace(active=lambda name: None))
    assert (summary["state"], summary["step"], summary["total"]) == ("finished", 4, 4)
    assert json.dumps(summary)


# Inputs that came later.


def test_a_workflow_without_the_input_means_its_learning_rate(host):
    assert graph_plan(host).optimizer.learning_rate == 1e-3
    assert graph_plan(host, rate="value").optimizer.learning_rate == 1e-3
    assert graph_plan(host, rate="auto").optimizer.learning_rate == 2e-3, "by the rule, at width 64"


def test_a_workflow_without_the_input_means_its_steps(host):
    for chosen, expected in (({}, 6), ({"length": "value"}, 6), ({"length": "style"}, 0)):
        training = graph_plan(host, **chosen).training
        assert (training.steps, training.goal) == (expected, "character" if expected else "style")
    from lora_loom.nodes.train import _request
    from lora_loom.trainer.data.sets.dataset import Dataset
    from tests.data.test_batches import example

    images = Dataset(examples=tuple(example(number) for number in range(4)))
    asked = _request(old_inputs(length="character"))
    said = []
    request = host("runs.session").with_steps(asked, images, said.append)
    assert request.training.steps == 2000 // 4, "batches of two, and two of them a step"
    assert said == ["training.steps: 500, as usual for a character with 4 images at this batch size"]


def test_a_new_node_begins_at_auto_and_says_what_workflows_of_before_mean(host):
    from lora_loom.nodes import NODE_CLASS_MAPPINGS
    from scripts.write_workflows import api_graph

    for name, default in (("rate", "auto"), ("length", "character")):
        values, options = NODE_CLASS_MAPPINGS["LoomTrain"].INPUT_TYPES()["optional"][name]
        assert (options["default"], options["before"]) == (default, "value")
        assert {default, "value"} <= set(values)
    for name in ("train_sd", "train_flux"):
        [node] = [node for node in api_graph(name).values() if node["class_type"] == "LoomTrain"]
        assert node["inputs"]["rate"] == "auto", "so that both forms of a template mean the same"
        assert node["inputs"]["length"] == "character"


def test_a_length_in_epochs_is_counted_in_the_graph_too(host):
    from lora_loom.nodes.train import _request
    from lora_loom.trainer.data.sets.dataset import Dataset
    from lora_loom.trainer.types import Example, Geometry

    with_steps, said = host("runs.session").with_steps, []
    inputs = old_inputs(epochs=3.0, save_every_epochs=0.5, keep_loras=2, batch_size=2, accumulation=1)
    one = Example(path=Path("a.png"), digest="", captions=("",), geometry=Geometry.whole((64, 64)), repeats=9)
    training = with_steps(_request(inputs), Dataset(examples=(one,)), said.append).training
    assert (training.steps, training.save_every, training.keep_loras) == (15, 2, 2), "nine images are five batches"
    assert said[0] == "training.epochs = 3: 15 steps"
