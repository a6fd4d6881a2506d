"""Runs in the background: one daemon thread trains one job at a time, the others wait their turn.

A job holds at a step boundary while ComfyUI runs a prompt and no Loom node is blocked in a wait. That is decided by a
count of waiting nodes, not by reading prompts: a prompt that waits for a run lets every run go on, so it may also wait for
one that is queued behind another.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from ....trainer.errors import LoomError, RunError, StoppedError, without_frames
from ....trainer.runs.execute import execute
from ....trainer.runs.run_folder import RunFolder
from ....trainer.runs.session import Again, Outcome, Session
from ....trainer.training.early_stopping import lowest, selected_loss
from ....trainer.types import StepResult
from ...words import in_the_graph, said_in_the_graph
from ..backend.sharing.reshare import SharedBase
from ..comfy_types import ModelPatcher
from .memory.giving import DeviceMemory
from .turns import Turns

logger = logging.getLogger("lora_loom")

FOLLOW_S = 0.5
"""How often a paused run sees whether ComfyUI has loaded the model again."""
EVENTS_PER_SECOND = 5.0

Emit = Callable[[str, dict[str, Any]], None]


class Job:
    """One run in this process: what it is doing, what it was asked to do. It is the session's host."""

    def __init__(self, session: Session, registry: "Registry", *, yield_max_s: float = 0.0, node: str = "") -> None:
        self._session: Session | None = session
        """None once the job has ended: the shadow, the samples' decoder and the batches are let go."""
        self.registry, self.node = registry, node
        """Id of the LoomTrain in its graph, for the panel under it."""
        self.folder = session.folder
        self.name = session.folder.name
        self.total = session.plan.training.steps
        self.can_sample = session.samples is not None
        self.state = "queued"
        self.error: LoomError | None = None
        self.outcome: Outcome | None = None
        self.last: StepResult | None = None
        self.at = session.folder.saved_step() or 0
        """Steps done; a continued run starts at its checkpoint."""
        self.seconds: float | None = None
        """Per step, smoothed."""
        self.lowest = _lowest(session.folder)
        """The lowest validation loss so far; None before the first."""
        self.done = threading.Event()
        self.base: SharedBase | None = None
        """The MODEL that the run shares its weights with, which must live as long as the job."""
        self.others: list[SharedBase] = []
        """The same of the MODEL that its samples are made with, where that is another one, and of a CLIP that is trained."""
        self.adapting: Again | None = None
        """What makes the run again where memory runs out."""
        self._wake = threading.Condition()
        self._pause = self._stop = self._save = self._sample = False
        self._spoke = 0.0
        self.memory = DeviceMemory(log=self.log, wake_run=self._ask)
        """What its base holds on the device and can give back."""
        self._turns = Turns(registry, self.memory, yield_max_s)

    # What others ask of it; any thread.

    def pause(self) -> None:
        self._ask(pause=True)

    def resume(self) -> None:
        self._ask(pause=False)

    def stop(self) -> None:
        """Finish the step in flight, save, end. A run that still waits its turn ends at once."""
        self._ask(stop=True)
        if self.registry.withdraw(self):
            self._enter("stopped")
            self.done.set()

    def save(self) -> None:
        self._ask(save=True)

    def sample(self) -> None:
        """Raises RunError for a run without prompts."""
        if not self.can_sample:
            raise RunError(f"run {self.name} has no prompts to render: connect LoomValidation to its LoomTrain")
        self._ask(sample=True)

    def _ask(self, **wishes: bool) -> None:
        with self._wake:
            for name, value in wishes.items():
                setattr(self, f"_{name}", value)
            self._wake.notify_all()

    def summary(self) -> dict[str, Any]:
        """Returns what the panel draws."""
        left = (self.total - self.at) * self.seconds if self.seconds else None
        return {
            "name": self.name,
            "node": self.node,
            "state": self.state,
            "step": self.at,
            "total": self.total,
            "loss": self.last.loss if self.last else None,
            "seconds": self.seconds,
            "eta": left,
            "can_sample": self.can_sample,
            "lowest": self.lowest,
            "error": str(self.error) if self.error else "",
        }

    def raise_error(self) -> None:
        """The run's own error, in the thread of whoever waits for it."""
        if self.error is not None:
            raise without_frames(self.error)

    # The thread's side.

    def run(self) -> None:
        """Train to the end. Every way out leaves a state, a message and a set `done`."""
        folder = self.folder
        try:
            folder.lock()
            self.memory.begin()
            logger.info("LoRA Loom: run %s begins at step %d of %d", self.name, self.at, self.total)
            self._enter("running")
            self._turns.regain(lambda: self._stop)
            assert self._session is not None, "a job runs once"
            self.outcome = (self.adapting.execute if self.adapting else execute)(self._session, self)
            self._enter(self.outcome.state)
            logger.info("LoRA Loom: run %s %s at step %d of %d", self.name, self.state, self.at, self.total)
        except StoppedError as error:  # asked for before there was anything to save
            folder.log(str(error))
            self._enter("stopped")
            logger.info("LoRA Loom: run %s stopped: %s", self.name, str(error))
        except LoomError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - nobody else sees an exception of this thread
            with suppress(OSError, LoomError):
                folder.log(traceback.format_exc())
            self._fail(LoomError(f"{type(error).__name__}: {error} (details in {folder.path / 'log.txt'})"))
        finally:
            with suppress(OSError, LoomError):
                folder.unlock()
            self.memory.end()
            self.done.set()

    def release(self) -> None:
        """Let go of everything large; what is shared stays with its owner."""
        self.memory.end()
        self._session = self.base = None
        self.others = []

    @property
    def shared(self) -> list[SharedBase]:
        """Every MODEL that the run shares weights with."""
        return [] if self.base is None else [self.base, *self.others]

    def offer(self, *patchers: ModelPatcher) -> None:
        """Tell of MODELs that a node was given for this run again."""
        for shared, given in zip(self.shared, patchers, strict=False):
            shared.offer(given)

    def _fail(self, error: LoomError) -> None:
        self.error = error = without_frames(said_in_the_graph(error))
        logger.error("LoRA Loom: run %s failed: %s", self.name, str(error))  # a kept record would keep its frames
        try:
            self.folder.log(f"error: {error}")
            self._enter("failed", error=str(error))
        except (
            OSError,
            LoomError,
        ):  # a full disk takes no message either; the panel and whoever waits still learn of the failure
            self.state = "failed"
            self.registry.emit("lora_loom.run", self.summary())

    def _enter(self, state: str, **changes: Any) -> None:
        self.state = state
        self.folder.update(state=state, **changes)
        self.registry.emit("lora_loom.run", self.summary())

    def between_steps(self) -> bool:
        """Pause while asked to, hold while the host is busy; a stop ends both, a save or a sample is served in between."""
        if not self._wish():
            self._wait(until=self._wish)
        return self._wish()

    def between_passes(self) -> bool:
        """The same within a step, a measurement or a sample; a save or a sample is served when the step has ended."""
        self._wait(until=lambda: False)
        return self._stop

    def _wait(self, until: Callable[[], bool]) -> None:
        self._turns.serve()
        if self._pause and not self._stop:
            self._enter("paused")
            with self._wake:
                while not self._wake.wait_for(self._may_leave_pause, FOLLOW_S) or self.memory.is_asked:
                    self._turns.serve()
                    self.registry.follow_host()
            if not until():
                self._enter("running")
        elif not self._stop and self._turns.must_hold():
            self._enter("yielding")
            self._turns.hold(lambda: self._stop or self._pause or until(), self.seconds)
            self._enter("running")
        self.registry.follow_host()
        self._turns.regain(lambda: self._stop)

    def _may_leave_pause(self) -> bool:
        return not self._pause or self._stop or self._wish() or self.memory.is_asked

    def _wish(self) -> bool:
        return self._save or self._sample

    def should_stop(self) -> bool:
        if self._stop and self.state != "stopping":
            self._enter("stopping")
        return self._stop

    def should_save(self) -> bool:
        wanted, self._save = self._save, False
        return wanted

    def should_sample(self) -> bool:
        wanted, self._sample = self._sample, False
        return wanted

    def stage(self, name: str, done: int, total: int) -> None:
        self.registry.emit("lora_loom.log", {"name": self.name, "text": f"{name}: {done}/{total}"})

    def step(self, result: StepResult, total: int) -> None:
        self.last, self.at = result, result.step
        self.seconds = result.seconds if self.seconds is None else 0.9 * self.seconds + 0.1 * result.seconds
        now = time.monotonic()
        if now - self._spoke >= 1 / EVENTS_PER_SECOND or result.step == total:
            self._spoke = now
            self.registry.emit("lora_loom.step", {**self.summary(), "learning_rate": result.learning_rate})

    def log(self, text: str) -> None:
        text = in_the_graph(text)
        self.folder.log(text)
        self.registry.emit("lora_loom.log", {"name": self.name, "text": text})

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        if "held_out" in values:
            self.lowest = min(selected_loss(dict(values)), self.lowest if self.lowest is not None else float("inf"))
        self.registry.emit("lora_loom.step", {**self.summary(), "step": step, **values})

    def saved(self, step: int, lora: Path) -> None:
        self.log(f"step {step}: saved {lora.name}")
        logger.info("LoRA Loom: run %s saved %s at step %d", self.name, lora.name, step)

    def sampled(self, step: int, images: Sequence[Path]) -> None:
        files = [image.relative_to(self.folder.path).as_posix() for image in images]
        self.registry.emit("lora_loom.sample", {"name": self.name, "step": step, "files": files})


def _lowest(folder: RunFolder) -> float | None:
    lines = folder.read_metrics()
    return lowest(lines)[1] if any("held_out" in line for line in lines) else None


class Registry:
    """All jobs of this process. `busy` says whether the host runs a prompt; `emit` sends events to the browser."""

    def __init__(
        self,
        *,
        busy: Callable[[], bool],
        emit: Emit,
        free_memory: Callable[[], None] = lambda: None,
        quiet: Callable[[], AbstractContextManager[bool]] = lambda: nullcontext(True),
        prompts: Callable[[], int] = lambda: 0,
        unload: Callable[[], None] = lambda: None,
    ) -> None:
        self._busy, self.emit, self.free_memory, self.quiet = busy, emit, free_memory, quiet
        self.prompts, self.unload = prompts, unload
        """Counts the prompts that the host has begun; asks it to unload its models."""
        self.jobs: dict[str, Job] = {}
        self._queue: list[Job] = []
        self._lock = threading.Lock()
        self._waiting = 0
        self._thread: threading.Thread | None = None

    def must_yield(self) -> bool:
        return not self.is_waited_for and self._busy()

    @property
    def is_waited_for(self) -> bool:
        """Whether a node waits for a run, and ComfyUI's thread with it."""
        return self._waiting > 0

    def follow_host(self) -> None:
        """At a step boundary: every run shares the copy of its model that the host holds now, if the host has a new one.

        The copies that are left go while no prompt can begin: the host's list of loaded models has no lock of its own.
        """
        if self.must_yield():
            return
        with self._lock:
            jobs = self.all_active()
        for job in jobs:
            for done in filter(None, [one.follow() for one in job.shared]):
                job.log(done)
        retired = [one.retired for job in jobs for one in job.shared if one.retired]
        if retired:
            with self.quiet() as nothing_runs:
                for models in retired if nothing_runs or self.is_waited_for else ():
                    models.clear()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A node is blocked until a run ends: no run yields meanwhile."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def active(self, name: str) -> Job | None:
        """The job of this name that has not ended."""
        job = self.jobs.get(name)
        return job if job is not None and not job.done.is_set() else None

    def all_active(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in list(self.jobs.values()) if not job.done.is_set()]

    def submit(self, job: Job) -> Job:
        """Queue it; one already active under the name is returned instead."""
        with self._lock:
            current = self.active(job.name)
            if current is not None:
                return current
            self.jobs[job.name] = job
            self._queue.append(job)
            job.folder.update(state="queued")
            self.emit("lora_loom.run", job.summary())
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="lora-loom", daemon=True)
                self._thread.start()
        return job

    def withdraw(self, job: Job) -> bool:
        """Take a job that has not begun off the queue; False if it has."""
        with self._lock:
            if job not in self._queue:
                return False
            self._queue.remove(job)
        self._release(job)
        return True

    def waiting_names(self) -> list[str]:
        """Names of the jobs that have not begun, the next one first."""
        with self._lock:
            return [job.name for job in self._queue]

    def move(self, name: str, place: int) -> list[str]:
        """Let a job that waits be the one at `place`, from 0; returns the new order. Raises RunError if it does not wait."""
        with self._lock:
            job = next((job for job in self._queue if job.name == name), None)
            if job is None:
                raise RunError(f"run {name} does not wait for its turn: only a queued run can be moved")
            self._queue.remove(job)
            self._queue.insert(place, job)
        return self.waiting_names()

    def forget(self, name: str) -> None:
        """Let go of a job that has ended: its run has another name now, or is deleted."""
        with self._lock:
            if name in self.jobs and self.jobs[name].done.is_set():
                del self.jobs[name]

    def _release(self, job: Job) -> None:
        job.release()
        self.free_memory()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                job = self._queue.pop(0)
            job.run()
            self._release(job)
