"""memory.on_oom = "adapt" in the graph: a run whose memory ran out lays its base out anew, with settings that take less.

ComfyUI's models are loaded and unloaded by its own thread alone. Where a base that lies on the device shall be streamed, that
thread is asked to give it back: the node that waits for the run does it, else ComfyUI between two prompts, as at its /free.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from .....trainer.config.run import MemoryConfig
from .....trainer.errors import RunError, StoppedError
from .....trainer.lora.adapted import take_off_adapter
from .....trainer.lora.base_lora import BaseLora, lay_base_loras
from .....trainer.memory_plan.base_sizes import BaseSizes, base_sizes
from .....trainer.runs.adapting.adapt import Remade, execute_adapting
from .....trainer.runs.session import Outcome, Session
from .....trainer.training.text_encoders import WithText, together
from .....trainer.weights.streaming import StreamSettings, stream_of
from ....sockets.values import MemoryValue
from ...backend.denoiser import LoadedDenoiser, is_dynamic, leave_in_ram, load_denoiser
from ...backend.sharing.reshare import SharedBase, loaded_models, network_of
from ...comfy_types import ModelPatcher
from ..queue import Job
from ..server import REGISTRY, ask_to_unload, quiet
from ..turns import POLL_S
from .listed import lend
from .weights import prepare_weights, wanted_stream

PATIENCE_S = 120.0
"""How long ComfyUI is waited for until it has given the device back."""


@dataclass(kw_only=True)
class Adapting:
    """How the run of a graph is made again. `below` are the base LoRAs of its MODEL; `sizes` and `stream` describe its base as it was begun.
    It holds nothing of ComfyUI's: what a run shares with it may be exchanged meanwhile."""

    denoiser: LoadedDenoiser
    texts: WithText | None
    """The network together with the text encoders, where they are trained: they stay where they are."""
    value: MemoryValue
    below: Sequence[BaseLora]
    sizes: BaseSizes
    stream: StreamSettings | None
    _errand: Callable[[], None] | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @classmethod
    def of(cls, session: Session, value: MemoryValue, below: Sequence[BaseLora]) -> "Adapting":
        """For a session that is ready, before its adapter is injected."""
        texts = session.denoiser if isinstance(session.denoiser, WithText) else None
        denoiser = texts.inner if texts else session.denoiser
        assert isinstance(denoiser, LoadedDenoiser)
        laid_out, memory = stream_of(denoiser.module), value.memory
        segments = tuple(denoiser.settings.blocks) if memory.recomputes_blocks else ()
        stream = None
        if laid_out is not None and laid_out.ring is not None:
            stream = StreamSettings(budget=laid_out.arena.limit, segments=segments)
        sizes = base_sizes(denoiser.module, segments=segments)
        mine = [one for one in below if not one.identity.on_clip]
        return cls(denoiser=denoiser, texts=texts, value=value, below=mine, sizes=sizes, stream=stream)

    def execute(self, session: Session, job: Job) -> Outcome:
        """Train to the end, made again as often as memory runs out."""
        asked = session.plan.memory

        def make(memory: MemoryConfig) -> Session:
            return session if memory == asked else self._again(session, job, memory)

        remade = Remade(make=make, sizes=lambda: self.sizes, stream=self.stream)
        return execute_adapting(remade, asked, session.folder, job)

    def run_errand(self) -> None:
        """Do what the run has asked for, in the thread of the node that waits for it."""
        with self._lock:
            if self._errand is not None:
                self._errand()
                self._errand = None

    def _again(self, session: Session, job: Job, memory: MemoryConfig) -> Session:
        base = job.base
        assert base is not None
        job.memory.watch()  # what it held goes with the network
        self._until(job, lambda: not job.registry.must_yield(), float("inf"), "")
        patcher = base.model()
        stream = wanted_stream(patcher, memory)
        if stream is not None:
            self._have_given_back(job, patcher)
        self.denoiser.module = torch.nn.Module()  # the one before goes
        if self.texts:
            self.texts.module = self.denoiser.module
        with quiet():
            self.denoiser.module = load_denoiser(patcher, compute_dtype=self.denoiser.compute_dtype).module
        prepare_weights(self.denoiser, patcher, replace(self.value, memory=memory), stream, job.log)
        laid = lay_base_loras(self.denoiser.module, self.below)
        job.base = SharedBase(self.denoiser.module, patcher, loaded_models)
        lend(job.memory, self.denoiser.module, torch.device(patcher.load_device), REGISTRY)
        if self.texts and self.texts.text:
            text = self.texts.text.networks()
            for network in text.values():
                take_off_adapter(network)
            self.texts.module = together(self.denoiser, text)
        backend = replace(session.backend, base_loras=laid)
        return replace(session, plan=replace(session.plan, memory=memory), backend=backend)

    def _have_given_back(self, job: Job, patcher: ModelPatcher) -> None:
        """Return when ComfyUI holds the base on the device no more."""

        def is_given_back() -> bool:
            return all(one.device.type == "cpu" for one in network_of(patcher).parameters())

        if is_dynamic(patcher) or torch.device(patcher.load_device).type == "cpu" or is_given_back():
            return
        with self._lock:
            self._errand = lambda: leave_in_ram(patcher)
        ask_to_unload()
        try:
            self._until(job, is_given_back, PATIENCE_S, "ComfyUI did not give the model's device memory back")
        finally:
            with self._lock:
                self._errand = None

    def _until(self, job: Job, condition: Callable[[], bool], patience: float, otherwise: str) -> None:
        """Raises StoppedError where the run is stopped meanwhile, RunError with `otherwise` and a remedy after `patience` seconds."""
        end = time.monotonic() + patience
        while not condition():
            if job.should_stop():
                raise StoppedError("stopped after memory ran out: run it again to go on")
            if time.monotonic() > end:
                raise RunError(f"{otherwise}: unload models in ComfyUI, and queue the graph again")
            time.sleep(POLL_S)
            job.memory.serve()
