"""Which run a LoomTrain node means: an active one to attach to, a finished one, one to continue, or a new one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ....trainer.doctor.report import read_diagnosis, text_of
from ....trainer.errors import RunError
from ....trainer.runs.adapting.adapt import adapted_text
from ....trainer.runs.changes import all_in_words
from ....trainer.runs.checkpoint import list_checkpoints
from ....trainer.runs.plan import RunPlan
from ....trainer.runs.run_folder import RunFolder
from ....trainer.score.curve import likeness_curve
from ....trainer.types import ACTIVE, Record
from ..paths import lora_name, root, run_folder
from .queue import Job, Registry

Existing = Literal["resume", "new"]
GRAPH_FILE = "graph.json"
NOTE_FILE = "note.json"
LONGEST_NOTE = 2000
"""Characters."""


@dataclass(frozen=True, kw_only=True)
class RunChoice:
    """The run folder that a queued LoomTrain uses, and whether a run in it is active or finished."""

    folder: RunFolder
    job: Job | None = None
    """Active in this process: attach to it."""
    is_finished: bool = False
    replaces: bool = False
    """The run of this name has other settings and ended before it kept anything: it is forgotten."""
    passed: str = ""
    """Why the run that has the name itself is another one, as a sentence; "" if this run has the name."""


def candidates(name: str) -> Iterator[RunFolder]:
    """Yields the folders name, name-2, name-3, … without end."""
    yield run_folder(name)
    number = 2
    while True:
        yield run_folder(f"{name}-{number}")
        number += 1


def choose(plan: RunPlan, existing: Existing, registry: Registry) -> RunChoice:
    """The first of name, name-2, … that is free or is this very run; `resume` asks for `name` itself.

    Raises RunError listing the differing fields if `resume` meets another configuration of the same name.
    """
    fixed, config = plan.fixed(), plan.config()
    passed = ""
    for folder in candidates(plan.name):
        if not folder.exists():
            return RunChoice(folder=folder, passed=passed)
        job, record = registry.active(folder.name), folder.read()
        if said := all_in_words(folder.differences(fixed, config)):
            if job is None and folder.has_kept_nothing() and folder.is_free():
                return RunChoice(folder=folder, replaces=True, passed=passed)
            if existing == "new":
                passed = (
                    passed
                    or f"a run {folder.name} exists with other settings ({said}): this one gets a name of its own"
                )
                continue
            folder.check_same(fixed, config, "set existing_run to new, or use another name")
        if job is not None:
            return RunChoice(folder=folder, job=job, passed=passed)
        is_finished = record.get("state") == "finished" and record.get("step", 0) >= plan.training.steps
        return RunChoice(folder=folder, is_finished=is_finished, passed=passed)
    raise AssertionError("candidates never end")


def list_runs(registry: Registry) -> list[Record]:
    """Summaries of all runs on disk, newest first; those that no living process trains any more are marked interrupted."""
    runs = []
    for path in root().iterdir() if root().is_dir() else []:
        folder = RunFolder(path)
        if folder.exists():
            runs.append({**_summary_or_damage(folder, registry), "sample": _newest_sample(folder)})
    return sorted(runs, key=lambda run: -run.get("updated", 0))


def _newest_sample(folder: RunFolder) -> str:
    """The first image of the last step that has samples, as a path inside the run's folder; "" without any."""
    names = sorted(path.name for path in folder.path.glob("samples/step-*-0*.png"))
    return f"samples/{names[-1]}" if names else ""


def _summary_or_damage(folder: RunFolder, registry: Registry) -> Record:
    """One damaged run.json does not hide the other runs."""
    try:
        return summary(folder, registry)
    except RunError as error:
        return {**_short({}, folder), "state": "damaged", "error": str(error)}


def summary(folder: RunFolder, registry: Registry) -> Record:
    """What the panel shows of a run. Raises RunError if run.json is damaged."""
    record = folder.read()
    job = registry.active(folder.name)
    if job is not None:
        return {**_short(record, folder), **note_of(folder), **job.summary()}
    if record.get("state") in ACTIVE and folder.is_free():
        folder.update(state="interrupted")
        record = folder.read()
    return {**_short(record, folder), **note_of(folder)}


def note_of(folder: RunFolder) -> Record:
    """Returns {"note": what a person has written of a run, "starred": whether it is one of the good ones}. It has a file of its own:
    run.json says when a run was last changed, and a note is no change."""
    try:
        kept = json.loads((folder.path / NOTE_FILE).read_text(encoding="utf-8"))
        return {"note": str(kept["note"])[:LONGEST_NOTE], "starred": kept["starred"] is True}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return {"note": "", "starred": False}


def _short(record: Record, folder: RunFolder) -> Record:
    training = record.get("config", {}).get("training")
    return {
        "name": folder.name,  # its record has another one where somebody has copied or renamed the folder
        "state": record.get("state", ""),
        "step": record.get("step", 0),
        "total": training.get("steps", 0) if isinstance(training, dict) else 0,
        "lora": record.get("lora", ""),
        "error": record.get("error", ""),
        "updated": record.get("updated", 0),
        "created": record.get("created", 0),
        "lowest": (record.get("best") or {}).get("held_out"),
    }


def details(folder: RunFolder, registry: Registry) -> Record:
    """A run's summary with what its folder holds: samples, LoRA files, strips, compare pages (the newest last), checkpoints.

    `layers` counts those that train and those that are left out, by role; {} of runs before that was kept. `lora_folder` is what
    LoraLoader's names of its LoRA files begin with; `best` is the file with the lowest validation loss, if one leads; `movement`
    says how many modules moved, `loss_growth` how many times its start the loss ended at, 0 for a run that is well; `memory_plan` is
    the prediction as in run.json (docs/memory.md), None in a run without one; `adapted` says what it took where memory ran out; `doctor` the lines of the data doctor;
    `likeness` the curve of image similarity (`likeness_curve`).
    """
    names: Record = {
        kind: sorted(path.relative_to(folder.path).as_posix() for path in folder.path.glob(pattern))
        for kind, pattern in (
            ("samples", "samples/*.png"),
            ("loras", "loras/*.safetensors"),
            ("strips", "strips/**/*.png"),
        )
    }
    pages = sorted(folder.path.glob("strips/*.html"), key=lambda path: path.stat().st_mtime)
    names["pages"] = [path.relative_to(folder.path).as_posix() for path in pages]
    names["lora_folder"] = lora_name(folder.name).removesuffix(f"{folder.name}.safetensors")
    record = folder.read()
    diagnosis = read_diagnosis(folder.path)
    names["doctor"] = text_of(diagnosis).splitlines() if diagnosis else []
    names["best"] = (record.get("best") or {}).get("lora", "")
    names["layers"] = record.get("layers", {})
    names["movement"], names["loss_growth"] = record.get("movement"), record.get("loss_growth", 0)
    names["memory_plan"] = record.get("memory_plan")
    names["adapted"] = adapted_text(record)
    names["likeness"] = likeness_curve(folder)
    return {**summary(folder, registry), **names, "checkpoints": [c.step for c in list_checkpoints(folder.checkpoints)]}


def keep_graph(folder: RunFolder, graph: Any, node_id: Any) -> None:
    """Remember the graph that started a run, so that it can be continued from the panel after a restart."""
    from ....trainer.storage.atomic import write_json

    if isinstance(graph, dict):
        write_json(folder.path / GRAPH_FILE, {"prompt": graph, "node": str(node_id)})


def kept_graph(folder: RunFolder) -> Record | None:
    """Returns {"prompt": the whole graph that started a run, "node": id of its LoomTrain}; None if it was not kept.

    Raises RunError if it is damaged.
    """
    path = folder.path / GRAPH_FILE
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {"prompt": dict(stored["prompt"]), "node": str(stored["node"])}
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}): queue the graph of the run itself to go on") from error


def stored_graph(folder: RunFolder) -> Record | None:
    """The LoomTrain node of a run's graph with everything it needs, as a prompt; None if it was not kept.

    Raises RunError if it is damaged.
    """
    stored = kept_graph(folder)
    try:
        return stored and _part_of(stored["prompt"], stored["node"], folder.name)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder.path / GRAPH_FILE} is damaged ({error}): queue the graph of the run itself to go on"
        ) from error


def _part_of(graph: Record, node: str, name: str) -> Record:
    """The node and what its inputs come from, set to continue the run of this name."""
    needed: dict[str, Any] = {}

    def take(node_id: str) -> None:
        if node_id in needed or node_id not in graph:
            return
        needed[node_id] = graph[node_id]
        for value in graph[node_id].get("inputs", {}).values():
            if isinstance(value, list) and len(value) == 2:
                take(str(value[0]))

    take(node)
    inputs = {**needed[node]["inputs"], "mode": "background", "existing_run": "resume", "name": name}
    needed[node] = {**needed[node], "inputs": inputs}
    return needed
