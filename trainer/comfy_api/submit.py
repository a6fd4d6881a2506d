"""Running prompts on a ComfyUI server and downloading their files: `lora-loom submit`.

A few prompts are queued ahead, so that the server never waits for this client and other clients still get their turn. The
outcome of a prompt is read from the server's history. A restarted server has lost its queue and gets the prompt once more.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Protocol, TypedDict, cast

from ..errors import ServerError, StoppedError, WorkflowError
from ..storage.atomic import check_writable, write_bytes, write_json
from ..storage.names import safe_name
from ..types import Json
from .client import Answer, ComfyServer, Events, Preview
from .messages import failure, output_files, output_texts, refusal, started_runs
from .workflow import Planned, title_of

AHEAD = 2
"""Number of prompts on the server at a time."""
POLL_S = 2.0
"""Interval of polling the history while no event reports the end of a prompt."""
LISTEN_S = 0.25
"""How long to wait for one event."""
RECORD = "submit.json"
"""File in the output folder with the results of the prompts."""
ENDS = {"execution_success", "execution_error", "execution_interrupted"}


class Watcher(Protocol):
    """Receives the progress of prompts, and may stop them."""

    def log(self, text: str) -> None:
        """A message for the user."""
        ...

    def progress(self, label: str, what: str, done: int, total: int, note: str) -> None:
        """The node `what` of the prompt `label` has done `done` of `total` steps."""
        ...

    def finished(self, result: "Result", done: int, total: int) -> None:
        """A prompt has ended; `done` of `total` prompts have."""
        ...

    def should_stop(self) -> bool:
        """True to remove all prompts from the server."""
        ...


class Silent:
    """A watcher that prints nothing and never stops."""

    def log(self, text: str) -> None:
        pass

    def progress(self, label: str, what: str, done: int, total: int, note: str) -> None:
        pass

    def finished(self, result: "Result", done: int, total: int) -> None:
        pass

    def should_stop(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of one prompt. Its fields are the keys of submit.json."""

    label: str
    values: Mapping[str, object]
    prompt_id: str
    error: str
    """The reason of its failure; "" if it succeeded."""
    files: tuple[str, ...]
    """Paths of the downloaded files on this machine."""
    texts: Mapping[str, str]
    """{node id: the text that it displayed}."""
    seconds: float
    reused: bool = False
    """The result is that of an earlier call with the same output folder."""
    runs: tuple[str, ...] = ()
    """Names of the training runs that it has started. In background mode they continue after it."""


@dataclass
class Active:
    """A prompt that is on the server."""

    planned: Planned
    prompt_id: str
    started: float
    """Clock time at which it was queued or, as soon as that is known, at which its first node began."""
    node: str = ""
    previews: int = 0
    requeued: bool = False


def submit(
    server: ComfyServer,
    planned: Sequence[Planned],
    output: Path,
    watcher: Watcher | None = None,
    *,
    previews: Path | None = None,
    again: bool = False,
) -> list[Result]:
    """Run prompts and download their files into `output`, which also gets a record of the results.

    Prompts that are in the record with all their files are not run again unless `again`. Raises WorkflowError if the server
    rejects the first prompt, ServerError if the connection is lost for good, StoppedError if the watcher stops. Finished
    results are kept.
    """
    check_writable(output)
    return _Runner(server, output, watcher or Silent(), previews).run(planned, again=again)


class _Runner:
    """Runs prompts on a server, a few at a time."""

    def __init__(self, server: ComfyServer, output: Path, watcher: Watcher, previews: Path | None) -> None:
        self.server, self.output, self.watcher, self.previews = server, output, watcher, previews
        self.record = _read_record(output)
        self.active: list[Active] = []
        self.results: dict[str, Result] = {}
        self.polled = 0.0

    def run(self, planned: Sequence[Planned], *, again: bool) -> list[Result]:
        waiting, self.total = deque(planned), len(planned)
        try:
            with self.server.events() as events:
                while waiting or self.active:
                    while waiting and len(self.active) < AHEAD:
                        self._begin(waiting.popleft(), events, again=again)
                    self._listen(events)
                    if self.watcher.should_stop():
                        raise StoppedError(f"stopped. {self._summary()}")
        except ServerError as error:
            raise ServerError(f"{error}. {self._summary()}") from error
        except BaseException:
            self._withdraw()
            raise
        return [self.results[prompt.key] for prompt in planned]

    def _summary(self) -> str:
        return f"Of {self.total} prompts {len(self.results)} are done; the same command continues from there"

    def _begin(self, planned: Planned, events: Events, *, again: bool) -> None:
        """Queue a prompt, unless an earlier call has already run it."""
        before = self.record.get(planned.key)
        if not again and before and before["files"] and all(Path(file).is_file() for file in before["files"]):
            self._end(planned, _from_record(before))
            return
        events.open()
        answer = self._post(planned)
        refused = self._refused(planned, answer)
        if not self.active:
            self.polled = time.monotonic()
        if refused and not self.results and not self.active:
            raise WorkflowError(f"the server rejects the workflow:\n{refused}")
        if refused:
            self._end(planned, _result(planned, "", f"rejected: {refused}"))
        else:
            self.active.append(Active(planned, str(answer.fields["prompt_id"]), time.monotonic()))

    def _post(self, planned: Planned) -> Answer:
        body: Json = {"prompt": planned.graph, "client_id": self.server.client_id}
        if self.previews is not None:
            body["extra_data"] = {"preview_method": "auto"}  # servers that do not know this use their own setting
        answer = self.server.post("/prompt", body)
        if answer.fields.get("prompt_id") and answer.fields.get("node_errors"):
            self._cancel([str(answer.fields["prompt_id"])])  # the server would run only a part of the workflow
        return answer

    def _refused(self, planned: Planned, answer: Answer) -> str:
        """Why the server rejected a prompt or a part of it; "" if it accepted all of it."""
        is_queued = answer.status == 200 and "prompt_id" in answer.fields
        if is_queued and not answer.fields.get("node_errors"):
            return ""
        return refusal(planned.graph, answer.data, self.server.declared)

    def _listen(self, events: Events) -> None:
        event = events.receive(LISTEN_S)
        if isinstance(event, Preview):
            self._keep_preview(event)
        elif event is not None:
            self._note(event.type, event.data)
        waited = time.monotonic() - self.polled
        if self.active and waited >= (POLL_S if event is None else 5 * POLL_S):  # waiting events are read first
            self._poll()

    def _note(self, kind: str, data: Json) -> None:
        """Show an event as progress, and poll the history if it reports the end of a prompt."""
        mine = next((active for active in self.active if active.prompt_id == data.get("prompt_id")), None)
        if kind == "lora_loom.step" and self.active:
            self._training(data)
        if mine is None:
            return
        if kind == "executing" and data.get("node"):
            mine.started = mine.started if mine.node else time.monotonic()  # until then it was waiting in the queue
            mine.node = str(data["node"])
            self._progress(mine, 0, 1)
        elif kind == "progress":
            mine.node = str(data.get("node") or mine.node)
            self._progress(mine, _whole(data.get("value", 0)), _whole(data.get("max", 1)))
        if kind in ENDS or (kind == "executing" and data.get("node") is None):
            self._poll()

    def _training(self, data: Json) -> None:
        """Show the step and loss of a training run, if its node is the one that runs now."""
        running = next((active for active in self.active if active.node and active.node == str(data.get("node"))), None)
        loss = data.get("loss")
        if running is not None and isinstance(loss, int | float):
            self._progress(running, _whole(data.get("step")), _whole(data.get("total")), f"loss {loss:.4f}")

    def _progress(self, active: Active, done: int, total: int, note: str = "") -> None:
        what = title_of(active.planned.graph, active.node) or active.node
        self.watcher.progress(active.planned.label, what, done, total, note)

    def _keep_preview(self, preview: Preview) -> None:
        active = next((active for active in self.active if active.node), None)
        if self.previews is not None and active is not None:
            active.previews += 1
            name = f"{active.planned.label or 'preview'}-node{safe_name(active.node)}-{active.previews:04d}"
            write_bytes(self.previews / f"{name}{preview.suffix}", preview.content)

    def _poll(self) -> None:
        """Read the history of every active prompt. Raises ServerError if the connection is lost for good."""
        for active in list(self.active):
            record = self.server.get(f"/history/{active.prompt_id}").fields.get(active.prompt_id)
            if isinstance(record, dict) and (record.get("status") or record.get("outputs")):
                self._finish(active, record)
            elif not self._is_queued(active.prompt_id):
                self._requeue(active)
        self.polled = time.monotonic()

    def _is_queued(self, prompt_id: str) -> bool:
        if prompt_id in self._queued("queue_running") + self._queued("queue_pending"):
            return True
        return bool(self.server.get(f"/history/{prompt_id}").data)  # it may have ended between the two requests

    def _queued(self, part: str) -> list[object]:
        """The ids of the prompts in a part of the server's queue."""
        items = self.server.get("/queue").fields.get(part)
        return [item[1] for item in items] if isinstance(items, list) else []

    def _requeue(self, lost: Active) -> None:
        """Queue a prompt again that a restarted server has lost; the second time it fails."""
        planned = lost.planned
        self.active.remove(lost)
        if lost.requeued:
            error = "the server was restarted twice while it ran: see its log for why it stops"
            self._end(planned, _result(planned, lost.prompt_id, error))
            return
        self.watcher.log(f"{planned.label or 'the prompt'}: the server was restarted and has lost it; queued again")
        answer = self._post(planned)
        refused = self._refused(planned, answer)
        if refused:
            self._end(planned, _result(planned, lost.prompt_id, f"rejected: {refused}"))
        else:
            self.active.append(Active(planned, str(answer.fields["prompt_id"]), lost.started, requeued=True))

    def _finish(self, active: Active, record: Json) -> None:
        """Download the files of a prompt that has ended, and record its result."""
        planned = active.planned
        error = failure(planned.graph, record)
        files = [] if error else self._download(planned, record)
        texts = output_texts(record)
        self.active.remove(active)
        seconds = time.monotonic() - active.started
        result = _result(planned, active.prompt_id, error, tuple(map(str, files)), texts, seconds)
        self._end(planned, replace(result, runs=tuple(started_runs(record))))

    def _download(self, planned: Planned, record: Json) -> list[Path]:
        """Download a prompt's files. Those of a sweep are named by its values, others as on the server; only own files are replaced."""
        earlier = self.record.get(planned.key)
        remote, mine = output_files(record), set(earlier["files"]) if earlier else set()
        paths: list[Path] = []
        for number, file in enumerate(remote, 1):
            name = safe_name(file.filename)
            if planned.label:
                name = planned.label + ("" if len(remote) == 1 else f"-{number}") + PurePosixPath(name).suffix
            path = free_path(self.output / name, lambda path: str(path) in mine)
            self.server.download("/view", path, filename=file.filename, subfolder=file.subfolder, type=file.type)
            paths.append(path)
        return paths

    def _end(self, planned: Planned, result: Result) -> None:
        self.results[planned.key] = result
        if not result.error and not result.reused:
            self.record[planned.key] = _to_record(result)
            write_json(self.output / RECORD, {"prompts": self.record})
        self.watcher.finished(result, len(self.results), self.total)

    def _withdraw(self) -> None:
        """Remove this client's prompts from the server, if it can still be reached."""
        if self.active:
            self.server.patience_s = 0.0
            self._cancel([active.prompt_id for active in self.active])

    def _cancel(self, prompt_ids: Sequence[str]) -> None:
        try:
            self.server.post("/queue", {"delete": list(prompt_ids)})
            for prompt_id in self._queued("queue_running"):
                if prompt_id in prompt_ids:  # older servers interrupt whatever runs, so only while it is one of these
                    self.server.post("/interrupt", {"prompt_id": prompt_id})
        except ServerError as error:
            self.watcher.log(str(error))


def _result(planned: Planned, prompt_id: str, error: str, files: tuple[str, ...] = (), texts: Mapping[str, str] | None = None, seconds: float = 0.0) -> Result:  # fmt: skip
    return Result(label=planned.label, values=dict(planned.values), prompt_id=prompt_id, error=error, files=files, texts=texts or {}, seconds=seconds)  # fmt: skip


class _Record(TypedDict):
    """A `Result` as JSON."""

    label: str
    values: Mapping[str, object]
    prompt_id: str
    error: str
    files: Sequence[str]
    texts: Mapping[str, str]
    seconds: float
    reused: bool
    runs: Sequence[str]


def _to_record(result: Result) -> _Record:
    return cast(_Record, asdict(result))


def _from_record(record: _Record) -> Result:
    return Result(
        label=record["label"],
        values=record["values"],
        prompt_id=record["prompt_id"],
        error=record["error"],
        files=tuple(record["files"]),
        texts=record["texts"],
        seconds=record["seconds"],
        reused=True,
        runs=tuple(record["runs"]),
    )


def _read_record(output: Path) -> dict[str, _Record]:
    """Returns {key: result} of earlier calls with this output folder. Damaged entries and those of another format are ignored."""
    try:
        prompts = json.loads((output / RECORD).read_text(encoding="utf-8"))["prompts"]
        return {key: entry for key, entry in prompts.items() if set(entry) == {part.name for part in fields(Result)}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _whole(value: object) -> int:
    """A number of an event as an integer; 0 for anything else."""
    return int(value) if isinstance(value, int | float) else 0


def free_path(path: Path, is_ours: Callable[[Path], bool]) -> Path:
    """The path, with -2, -3, … added to its name while a file that `is_ours` does not accept has it."""
    free, number = path, 1
    while free.exists() and not is_ours(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def problems(results: Sequence[Result]) -> str:
    """One line for each prompt that failed; "" if none did."""
    return "\n".join(f"{result.label}: {result.error}" if result.label else result.error for result in results if result.error)  # fmt: skip
