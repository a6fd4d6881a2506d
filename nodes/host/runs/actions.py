"""What the training nodes do in their own thread: start, wait, look."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor

from ....trainer.data.sets.dataset import Dataset
from ....trainer.errors import LoomError, RunError
from ....trainer.lora.base_lora import BaseLora
from ....trainer.runs.plan import RunPlan, environment
from ....trainer.runs.run_folder import RunFolder
from ....trainer.runs.samples import Samples
from ....trainer.training.loss_settings import GUIDED_SCALE
from ....trainer.training.text_encoders import WithText
from ....trainer.weights.streaming import stream_of
from ...sockets.values import RunValue
from ..backend.base_loras import loader_names, read_base_loras, read_clip_loras
from ..backend.denoiser import refuse_patches
from ..backend.model_rows import told_of
from ..backend.sharing.reshare import SharedBase, loaded_models
from ..comfy_types import Graph, ModelPatcher
from ..encoding.trained_text import TrainedClip
from ..paths import lora_name, root, run_folder
from ..progress import Bar
from .memory.adapting import Adapting
from .memory.listed import lend
from .plots import loss_image
from .queue import Job
from .records import Existing, candidates, choose, keep_graph, list_runs, summary
from .server import REGISTRY
from .session import TrainRequest, check_request, facts, make_session, preview_of, with_steps
from .turns import POLL_S
from .wiring import way_of


def start(
    request: TrainRequest,
    patcher: ModelPatcher,
    mode: str,
    existing: Existing,
    graph: Graph | None,
    node_id: str | None,
) -> tuple[RunValue, str, Tensor]:
    """Start, continue, attach to or return a run. Raises LoomError before anything is changed on disk."""
    nodes = graph or {}
    refuse_patches(
        patcher, way_of(nodes, nodes[str(node_id)]["inputs"].get("model") if str(node_id) in nodes else None)
    )
    dataset = check_request(patcher, request)
    notes: list[str] = []
    told, network = told_of(patcher), patcher.model.diffusion_model
    scale = told.row.guided.value if told and told.row.guided else GUIDED_SCALE
    request = request.settled(run_folder(request.name), network, notes.append, scale)
    request = with_steps(request, dataset, notes.append)
    below = (
        *read_base_loras(patcher, request.base_loras, loader_names(graph, node_id)),
        *read_clip_loras(request.clip, loader_names(graph, node_id, "clip")),
    )
    plan = _counted(request.plan(facts(patcher, request), below), len(dataset.examples))
    choice = choose(plan, existing, REGISTRY)
    folder, job = choice.folder, choice.job
    KNOWN.seen(folder.name)
    notes += [choice.passed] if choice.passed else []
    if choice.replaces:
        folder.log(folder.forget())
    if job is not None:
        job.offer(patcher, *others_of(request))
    elif job is None and not choice.is_finished:
        named = replace(plan, name=folder.name)
        job = _submit(request, named, patcher, dataset, folder, below, graph, node_id, notes)
    if mode == "wait" and job is not None:
        _wait_for(job, cancel_stops=True)
    return _result(folder)


def _counted(plan: RunPlan, images: int) -> RunPlan:
    """The plan with the number of images in its cache, which says in words what has changed; it keeps no run from being continued."""
    return replace(plan, own={**plan.own, "cache": {**plan.own["cache"], "images": images}})


def _submit(
    request: TrainRequest,
    plan: RunPlan,
    patcher: ModelPatcher,
    dataset: Dataset,
    folder: RunFolder,
    below: Sequence[BaseLora],
    graph: Graph | None,
    node_id: str | None,
    notes: list[str],
) -> Job:
    import torch

    session = make_session(patcher, request, plan, dataset, folder, below, Bar().update, notes.append)
    here = environment(str(patcher.load_device), torch.get_num_threads())
    folder.start(plan.config(), plan.fixed(), here, session.modules, session.backend.about)
    keep_graph(folder, graph, node_id)
    for note in notes:
        folder.log(note)
    job = Job(session, REGISTRY, yield_max_s=request.memory.yield_max_s, node=str(node_id))
    job.base = SharedBase(session.denoiser.module, patcher, loaded_models)
    planned = session.backend.about["memory_plan"]
    job.memory.activations = planned["parts"]["activations"] if planned else 0
    if plan.memory.on_oom == "adapt":
        job.adapting = Adapting.of(session, request.memory, below)
    preview = preview_of(request)
    for other in others_of(request):
        is_text = other is not preview
        text = cast(TrainedClip, cast(WithText, session.denoiser).text) if is_text else None
        shadow = text.network if text else cast(Samples, session.samples).denoiser.module
        job.others.append(SharedBase(shadow, other, loaded_models))
    is_streamed = stream_of(session.denoiser.module) is not None  # seen before the run changes the network
    submitted = REGISTRY.submit(job)
    if is_streamed and submitted is job:
        lend(job.memory, session.denoiser.module, torch.device(patcher.load_device), REGISTRY)
    return submitted


def others_of(request: TrainRequest) -> list[ModelPatcher]:
    """What a run shares the weights of besides its MODEL: that of its samples, and a CLIP that is trained."""
    clip = request.clip.patcher if request.clip else None
    return [one for one in (preview_of(request), clip) if one is not None]


def wait(run: RunValue) -> tuple[RunValue, str, Tensor]:
    """Block until the run has ended. Raises its error, or RunError for a run that nobody trains."""
    job = REGISTRY.active(run.name)
    if job is not None:
        _wait_for(job, cancel_stops=False)
    else:
        past = REGISTRY.jobs.get(run.name)
        if past is not None:
            past.raise_error()
        record = summary(run_folder(run.name), REGISTRY)
        if record["state"] == "failed":
            raise RunError(f"run {run.name} failed: {record['error']}")
        if record["state"] != "finished":
            raise RunError(
                f"run {run.name} is {record['state']} at step {record['step']} of {record['total']}: queue its LoomTrain again to go on"
            )
    return _result(run_folder(run.name))


def _wait_for(job: Job, *, cancel_stops: bool) -> None:
    """Show progress until the job ends; Cancel either stops the run (after saving) or only the waiting."""
    from comfy.model_management import InterruptProcessingException, throw_exception_if_processing_interrupted

    bar = Bar()
    with REGISTRY.waiting():
        try:
            while not job.done.wait(POLL_S):
                if job.adapting is not None:
                    job.adapting.run_errand()
                throw_exception_if_processing_interrupted()
                if job.last is not None:
                    bar.update(job.last.step, job.total)
        except InterruptProcessingException:
            if cancel_stops:
                job.stop()
                job.done.wait()
            raise
    job.raise_error()


def _result(folder: RunFolder) -> tuple[RunValue, str, Tensor]:
    value = RunValue(name=folder.name, directory=str(folder.path))
    return value, lora_name(folder.name), loss_image(folder.read_metrics(), folder.name)


def open_run(name: str) -> RunValue:
    """Raises RunError for a name that no run has."""
    folder = run_folder(name)
    if not folder.exists():
        known = ", ".join(run["name"] for run in list_runs(REGISTRY)[:10]) or "none yet"
        raise RunError(f"there is no run {name!r} in {root()}: known are {known}")
    return RunValue(name=folder.name, directory=str(folder.path))


def model_of(name: str) -> ModelPatcher:
    """The MODEL of a run that trains now. Raises RunError for any other, which holds none."""
    job = REGISTRY.active(name)
    base = job.base if job is not None else None
    if base is None:
        raise RunError(f"run {name} does not train now, so it holds no model: link a loader's MODEL instead")
    return base.model()


class KnownRuns:
    """Which runs this process has seen on disk, so that one that is deleted is missed."""

    def __init__(self) -> None:
        self._present: set[str] = set()
        self._deleted: dict[str, int] = {}

    def seen(self, name: str) -> None:
        self._present.add(name)

    def deletions(self, name: str, *, exists: bool) -> int:
        """How often a run of this name has been found deleted."""
        if exists:
            self._present.add(name)
        elif name in self._present:
            self._present.remove(name)
            self._deleted[name] = self._deleted.get(name, 0) + 1
        return self._deleted.get(name, 0)


KNOWN = KnownRuns()


def needs_start(name: str, existing: Existing = "resume") -> str:
    """What LoomTrain reports as changed: the same answer while nothing is to be started, else a new one for every way a run ended.

    `new` may have started name-2, name-3, …: all of them count. A run that was deleted since it was last seen counts too.
    """
    found = []
    try:
        for folder in candidates(name):
            exists = folder.exists()
            if gone := KNOWN.deletions(folder.name, exists=exists):
                found.append(f"{folder.name} was deleted {gone} times")
            if exists:
                record = summary(folder, REGISTRY)
                if record["state"] in ("failed", "stopped", "interrupted"):
                    found.append(f"{folder.name} {record['state']} at {record['step']}, {record['updated']}")
            if existing == "resume" or not exists:
                break
    except LoomError as error:
        return str(error)
    return "; ".join(found) or "idle"


def state_of(name: str) -> str:
    """State and step of a run as a short text that changes when either does; the error's text for a run that cannot be read."""
    try:
        record = summary(run_folder(name), REGISTRY)
    except LoomError as error:
        return str(error)
    return f"{record['state']} {record['step']}"


def states() -> str:
    """Returns the states of all runs: inputs that are links are not known when ComfyUI asks a node whether it has changed."""
    return "; ".join(f"{run['name']} {run['state']} {run['step']}" for run in list_runs(REGISTRY))
