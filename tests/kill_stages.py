"""What can be killed half-way: the stages of a run's life, each small, with what it leaves in a form that can be compared.

`bench/kills.py` kills them at random moments and at every point, `tests/test_kill_points.py` at every point where that is cheap.
"""

import importlib
import json
from types import SimpleNamespace

from safetensors import safe_open

from lora_loom.trainer.runs.headless import build_cache, make_session, prepare, run_plan, train
from lora_loom.trainer.score.run import score_sheet
from lora_loom.trainer.sweep.run import load_sheet, sweep, write_strips, write_tables
from tests.conftest import SilentHost, make_config
from tests.kills import contents
from tests.nodes.stubs import stubbed

SIDES = {"columns": ("checkpoint",), "rows": ("prompt", "seed"), "title": "run"}


def whole_run(root, **training):
    """Three steps with everything that a save can consist of."""
    return make_config(
        "sd3",
        root,
        data={"validation_split": 0.34},
        training={"steps": 3, "batch_size": 1, "save_every": 1, "keep_checkpoints": 1, "ema_decay": 0.9, **training},
        validation={
            "prompts": ["a toad"], "width": 32, "height": 32, "sample_steps": 1, "sample_every": 1, "patience": 9, "timesteps": 1,
        },
        sweep={"prompts": ["a toad"], "width": 32, "height": 32, "steps": 1, "seeds": "1"},
        output={"loras": str(root / "published"), "cache": str(root / "cache")},
    )  # fmt: skip


def comparable(root):
    """What was left, without the times of day, durations and what the first steps since the last start showed. The name of a shard of the cache follows from its content."""
    return {
        name: _timeless(root / name, content) for name, content in contents(root).items() if not name.endswith(".lock")
    }


def _timeless(path, content):
    if path.name == "run.json":
        varying = ("created", "updated", "costs", "environment", "config", "fixed", "first_steps")
        return {key: value for key, value in json.loads(content).items() if key not in varying}
    if path.name == "metrics.jsonl":
        return [{**json.loads(line), "seconds": 0, "ram_gb": 0} for line in content.splitlines()]
    if path.name in ("log.txt", "files.json"):  # grows with every start; times of change of files
        return None
    if path.suffix == ".safetensors" and path.parent.name != "cache" and "checkpoints" not in path.parts:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key).float().numpy().tobytes() for key in sorted(file.keys())}
            return {**file.metadata(), "modelspec.date": ""}, tensors
    return content


def cache(root):
    build_cache(prepare(whole_run(root), SilentHost()), SilentHost())


def run(root):
    train(whole_run(root), SilentHost())


def short_run(root):
    """One checkpoint to compare."""
    train(whole_run(root, steps=1), SilentHost())


def grid(root):
    """What `lora-loom sweep` does: two cells."""
    sheet = sweep(whole_run(root, steps=1), SilentHost())
    write_strips(sheet, **SIDES)
    write_tables(sheet, **SIDES)


def strip(root):
    """What `lora-loom strip` does, with a name of its own."""
    sheet = load_sheet(root / "run" / "strips")
    write_strips(sheet, **SIDES, name="other")
    write_tables(sheet, **SIDES, name="other")


def scores(root):
    """What `lora-loom score` does."""
    done = score_sheet(root / "run" / "strips", SilentHost())
    write_strips(done.sheet, **SIDES)


def begin_session(config):
    """A session as a front end makes it over a filled cache, and what writes the beginning of its run folder."""
    prepared = prepare(config, SilentHost())
    prepared.cache.reload()
    plan = run_plan(prepared)
    session = make_session(prepared, plan)
    return session, lambda: session.folder.start(plan.config(), plan.fixed(), {}, prepared.targets)


def queue_session(session, start, load):
    """What LoomTrain writes from the moment its session is made. `load` imports a module of nodes/host."""
    queue, records = load("runs.queue"), load("runs.records")
    start()
    records.keep_graph(session.folder, {"1": {"class_type": "LoomTrain", "inputs": {"name": "run"}}}, "1")
    registry = SimpleNamespace(emit=lambda *event: None, must_yield=lambda: False, follow_host=lambda: None)
    job = queue.Job(session, registry)
    job.run()
    job.raise_error()


def graph(root):
    """A run of ComfyUI's queue: two steps with all that belongs to a save."""
    with stubbed(root / "comfyui"):
        load = lambda name: importlib.import_module(f"lora_loom.nodes.host.{name}")  # noqa: E731
        queue_session(*begin_session(whole_run(root, steps=2)), load)


STAGES = {
    "cache": ((), cache),
    "run": ((), run),
    "graph": ((cache,), graph),
    "sweep": ((short_run,), grid),
    "strip": ((short_run, grid), strip),
    "score": ((short_run, grid), scores),
}
"""{stage: (what comes before, what it does)}."""


def warm(root, *more):
    """Do everything once in this process: what it has imported, its children need not import."""
    for stage in (short_run, grid, strip, scores, *more):
        stage(root)
