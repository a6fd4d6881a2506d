"""A run on disk: `run.json`, `metrics.jsonl`, `log.txt`, `checkpoints/`, `loras/`, `samples/`, `strips/`, and its lock."""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.toml import changed_settings, differences, free_on_resume
from ..errors import LoomError, NameTakenError, RunError, StoppedError
from ..storage.atomic import remove_leftovers, remove_temporaries, write_bytes, write_json, write_tensors
from ..storage.records import read_record
from ..storage.tensor_file import damage_of
from ..training.early_stopping import lowest, recommended
from ..training.held_out import ruler_of
from ..types import Record, StepResult
from .changes import all_in_words, changed_sets
from .checkpoint import Checkpoint, adapter_modules, list_checkpoints

RUN_FORMAT = 2
"""1: the configuration of a graph run had a shape of its own, and no run named its modules. `record.py` reads both."""
_UPDATING, _ASKING = threading.Lock(), threading.Lock()
CLAIM_S = 2.0  # who only asks whether a run is free has it for a moment
LORAS, MODELS, LIKENESS_FILE = "loras", "models", "likeness.json"
WRITTEN = ("checkpoints", LORAS, MODELS, "samples")
"""Sub-folders of a run that only the process which trains it writes into."""
SWEPT = ("strips", "strips/cells")
"""Sub-folders that sweeps and scores write into, at any time."""


_STEP = re.compile(r"-(\d{6,})$")


@dataclass(frozen=True, kw_only=True)
class SavedLora:
    """The LoRA file of a checkpoint."""

    step: int
    path: Path


class RunFolder:
    """One run. Everything it writes is written whole or not at all; only `metrics.jsonl` and `log.txt` grow."""

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        """`whole`: a full fine-tune, whose files are models; one that has been begun is told by its folder."""
        self.path = path
        self.name = path.name
        self.whole = whole
        self._lock: Any = None

    @property
    def results(self) -> Path:
        """Folder of its files: LoRAs, or the models of a full fine-tune."""
        return self.path / (MODELS if self.is_whole else LORAS)

    @property
    def is_whole(self) -> bool:
        """Whether it trains a whole model."""
        return self.whole or (self.path / MODELS).is_dir()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def exists(self) -> bool:
        """Whether there is a run. Its checkpoints make one too: they must not be continued as if they were of any run."""
        return (self.path / "run.json").is_file() or self._copy.is_file() or self.last_checkpoint() is not None

    def read(self) -> Record:
        """run.json; where it is gone or damaged what the run began with, of which there is a copy. Raises RunError without one."""
        try:
            return read_record(self.path / "run.json")
        except (OSError, ValueError, RecursionError) as error:
            with suppress(OSError, ValueError, RecursionError):
                return {
                    **read_record(self._copy),
                    "name": self.name,
                    "state": "interrupted",
                    "step": self.saved_step() or 0,
                }
            raise RunError(
                f"{self.path / 'run.json'} cannot be read ({error}): choose another name for a new run"
            ) from error

    @property
    def _copy(self) -> Path:
        """A copy of run.json as `start` wrote it."""
        return self.checkpoints / "run.json"

    def ruler(self) -> str:
        """How its validation loss is measured: as it was begun, or as runs begin now (`held_out.ruler_of`)."""
        return ruler_of(self.read() if self.exists() else {})

    def lock(self, patience: float = CLAIM_S) -> None:
        """Claim the run for this process. Raises RunError if another one has it, for `patience` seconds, or the folder cannot be written."""
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / "lock", thread_local=False)
            self._lock.acquire(timeout=patience)
        except Timeout as error:
            raise RunError(
                f"run {self.name} is being trained by another process ({self.path / 'lock'}): wait for it, or use another name"
            ) from error
        except OSError as error:
            raise RunError(
                f"cannot write to {self.path}: {error.strerror or error}; choose another output folder"
            ) from error
        for folder in (self.path, *(self.path / name for name in WRITTEN)):
            remove_temporaries(folder)
        remove_leftovers(*(self.path / name for name in SWEPT))

    def is_free(self) -> bool:
        """Whether no living process trains this run. Two threads that ask do not take each other for one."""
        with _ASKING, suppress(RunError):
            self.lock(patience=0)
            self.unlock()
            return True
        return False

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def changed_environment(self, environment: Record) -> str:
        """A line that names what exact resuming depends on and has changed since the last checkpoint; "" if nothing has."""
        before = {**self.read().get("environment", {}), "pid": 0}
        changed = differences(before, {**environment, "pid": 0}) if len(before) > 1 and self.last_checkpoint() else []
        return f"resuming in a different environment, not bit-identical: {'; '.join(changed)}" if changed else ""

    def start(
        self,
        config: Record,
        fixed: Record,
        environment: Record,
        modules: Sequence[str] = (),
        about: Record | None = None,
    ) -> None:
        """Write run.json of a new run, or of one that is continued (settings that may change are then replaced).

        `modules` are the paths of the modules that get an adapter: what a preset of `config` means may change between
        versions, what a run trains may not. `about` are further entries, which say what the base model is.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.exists() and not (self.path / "run.json").is_file():
            self.log(f"run.json is gone: what the run is was read from {self._copy}")
        record: Record = {
            "format": RUN_FORMAT,
            "name": self.name,
            "created": self.read().get("created", 0) if self.exists() else time.time(),
            "config": config,
            "fixed": fixed,
            "environment": environment,
            "modules": list(modules),
            "ruler": self.ruler(),
            **(about or {}),
        }
        self.update(**record)
        write_json(self._copy, record)

    def update(self, **changes: Any) -> None:
        """Merge into run.json, atomically: a node and the training thread may both write it."""
        with _UPDATING:
            data = self.read() if self.exists() else {}
            write_json(self.path / "run.json", {**data, **changes, "updated": time.time()})

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Whatever ends the work inside the block is noted in run.json, and goes on."""
        try:
            yield
        except StoppedError:
            self._note("interrupted", "")
            raise
        except LoomError as error:
            self._note("failed", str(error))
            raise
        except Exception as error:
            self._note("failed", f"{type(error).__name__}: {error}")
            raise
        except BaseException:  # Ctrl-C pressed twice
            self._note("interrupted", "")
            raise

    def _note(self, state: str, error: str) -> None:
        with suppress(LoomError):  # the disk may be full, and the problem at hand is the one to report
            self.update(state=state, error=error)

    def differences(self, fixed: Record, config: Record) -> list[str]:
        """Lines "section.field: old -> new" for what keeps the run on disk from being continued with these settings.

        Of changed data only the digest is known; the settings that can have changed it are looked up in `config`.
        """
        record = self.read()
        lines = changed_settings(record.get("fixed", {}), json.loads(json.dumps(fixed)))
        if any(line.startswith("training.gradient_accumulation_steps:") for line in lines):
            lines.append("(it counts the forward passes of all processes together)")
        if any(line.startswith("facts.data:") for line in lines):
            lines += changed_sets(record.get("config", {}), json.loads(json.dumps(config)))
        return lines

    def check_same(self, fixed: Record, config: Record, remedy: str = "use another name for a new run") -> None:
        """Raise NameTakenError with `differences`, what may change, and the remedy, unless the run may be continued."""
        if said := all_in_words(self.differences(fixed, config)):
            said = f"exists with another configuration: {said}. {free_on_resume()}"
            raise NameTakenError(f"run {self.name} {said}; {remedy}")

    def has_kept_nothing(self) -> bool:
        """Whether the run ended before its first checkpoint, without a LoRA file: its name is free for other settings."""
        return self.last_checkpoint() is None and not any(self.results.glob("*.safetensors"))

    def is_replaceable(self, fixed: Record, config: Record) -> bool:
        """Whether a run of this name with other settings ended before it kept anything."""
        return self.exists() and self.has_kept_nothing() and bool(self.differences(fixed, config))

    def forget(self) -> str:
        """Delete what a run that kept nothing has left behind, so that another one can take its name; returns a line that says so."""
        for path in (self.path / "run.json", self.metrics, self.path / "doctor.json", self.path / LIKENESS_FILE):
            path.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.path / "samples"):
            shutil.rmtree(folder, ignore_errors=True)
        return f"run {self.name} kept nothing of its earlier attempt with other settings: it is replaced"

    def recorded_modules(self) -> list[str]:
        """Paths of the modules that the run trains, sorted; [] if it has not begun to. Runs of earlier versions say it in
        their checkpoints only. Raises RunError if the last one is damaged."""
        if not self.exists():
            return []
        checkpoint = self.last_checkpoint()
        return self.read().get("modules") or (adapter_modules(checkpoint) if checkpoint else [])

    def last_checkpoint(self) -> Checkpoint | None:
        return next(reversed(list_checkpoints(self.checkpoints)), None)

    def saved_step(self) -> int | None:
        """Step of the last checkpoint."""
        checkpoint = self.last_checkpoint()
        return checkpoint.step if checkpoint else None

    def kept(self) -> str:
        """Which checkpoint a run that failed goes on from, in words."""
        checkpoint = self.last_checkpoint()
        return f"kept: {checkpoint.folder}" if checkpoint else "no checkpoint was saved yet"

    def cut_metrics(self, step: int) -> None:
        """Drop lines after a step: they belong to work that is done again."""
        if self.metrics.is_file():
            kept = [line for line in self.read_metrics() if line["step"] <= step]
            write_bytes(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def read_metrics(self) -> list[Record]:
        """All lines that are whole records of a step. Raises RunError for a file that may not be read, and so must not be replaced."""
        if not self.metrics.is_file():
            return []
        try:
            whole = self.metrics.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise RunError(f"cannot read {self.metrics}: {error.strerror or error}") from error
        lines = []
        for text in whole.splitlines():
            with suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
        return lines

    def append_metrics(self, **values: Any) -> None:
        self._append(self.metrics, json.dumps(values))

    def append_step(self, result: StepResult, beside: Mapping[str, float]) -> None:
        self.append_metrics(
            step=result.step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            learning_rate=result.learning_rate,
            seconds=round(result.seconds, 4),
            **{**result.extras, **beside},
        )

    def log(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._append(self.path / "log.txt", "\n".join(f"{stamp} {line}" for line in text.splitlines()))

    def _append(self, path: Path, line: str) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror or error}; free some space") from error

    def lacks_best(self, step: int) -> bool:
        """Whether the validation loss was lowest at this step, of which there is no LoRA file."""
        lines = self.read_metrics()
        return any("held_out" in line for line in lines) and lowest(lines)[0] == step and not self.lora_file(step).is_file()  # fmt: skip

    def recommended(self) -> Record | None:
        """`early_stopping.recommended` among the LoRA files of the run, with the file's name; "" where none leads."""
        lines = self.read_metrics()
        found = recommended(lines, {step for step in (int(line["step"]) for line in lines) if self.lora_file(step).is_file()})  # fmt: skip
        return found and {**found, "lora": "" if found["step"] is None else self.lora_file(found["step"]).name}

    def save_lora(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        step: int | None,
        publish_folder: Path | None,
        *,
        only_missing: bool = False,
    ) -> Path:
        """Write `loras/<name>-000100.safetensors` (`<name>.safetensors` without a step), and the same in `publish_folder`;
        with `only_missing` none that is there and whole."""
        write = partial(write_tensors, tensors=tensors, metadata=metadata)
        return self.save_file(write, step, publish_folder, only_missing=only_missing)

    def save_file(
        self,
        write: Callable[[Path], object],
        step: int | None,
        publish_folder: Path | None,
        *,
        only_missing: bool = False,
    ) -> Path:
        """Let `write` write the file of a step, or of the end, in all its places."""
        for path in self._lora_places(step, publish_folder):
            remove_temporaries(path.parent)
            if not (only_missing and _is_whole(path)):
                write(path)
        return self.lora_file(step)

    def lacks_lora(self, step: int, publish_folder: Path | None) -> bool:
        """Whether the LoRA file of a step is missing or damaged in one of the places that it belongs to."""
        return not all(_is_whole(path) for path in self._lora_places(step, publish_folder))

    def prune_loras(self, keep: int, publish_folder: Path | None) -> None:
        """Delete the LoRA files of all checkpoints but the newest `keep` and the one of the lowest validation loss; 0 keeps all."""
        lines = self.read_metrics() if keep else []
        best = lowest(lines)[0] if any("held_out" in line for line in lines) else None
        for old in self.saved_files()[:-keep] if keep else []:
            for path in self._lora_places(old.step, publish_folder) if old.step != best else []:
                path.unlink(missing_ok=True)

    def _lora_places(self, step: int | None, publish_folder: Path | None) -> list[Path]:
        path = self.lora_file(step)
        return [path, *([publish_folder / self.name / path.name] if publish_folder else [])]

    def saved_loras(self) -> list[SavedLora]:
        """The LoRA files of checkpoints, oldest first; none of a full fine-tune."""
        return [] if self.is_whole else self.saved_files()

    def saved_files(self) -> list[SavedLora]:
        """The files of checkpoints, LoRAs or models, oldest first."""
        found = {path: _STEP.search(path.stem) for path in self.results.glob("*.safetensors")}
        steps = {int(match[1]): path for path, match in found.items() if match}
        return [SavedLora(step=step, path=path) for step, path in sorted(steps.items()) if path == self.lora_file(step)]

    def lora_file(self, step: int | None) -> Path:
        """Where the LoRA, or the model, of a step is, or the last one."""
        return self.results / (f"{self.name}.safetensors" if step is None else f"{self.name}-{step:06d}.safetensors")


class ReadOnlyRunFolder(RunFolder):
    """The run for a process that is not the first of several, which does all the writing."""

    def lock(self, patience: float = CLAIM_S) -> None: ...

    def unlock(self) -> None: ...

    def start(self, *_: object, **__: object) -> None: ...

    def update(self, **changes: Any) -> None: ...

    def forget(self) -> str:
        return ""

    def cut_metrics(self, step: int) -> None: ...

    def _append(self, path: Path, line: str) -> None: ...

    def save_file(self, write: object, step: int | None, *_: object, **__: object) -> Path:
        return self.lora_file(step)


def _is_whole(path: Path) -> bool:
    return path.is_file() and not damage_of(path)
