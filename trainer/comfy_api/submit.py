"""Prompts on a running ComfyUI, from queue to files: `lora-loom submit`.

A few are queued ahead, so that the server never waits for us and others still get their turn. What became of a prompt
is read from the server's history; a server that comes back without it has lost its queue, and gets the prompt once more.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ..errors import ServerError, StoppedError, WorkflowError
from ..storage.atomic import check_writable, write_bytes, write_json
from ..storage.names import safe_name
from .client import Answer, ComfyServer, Events, Preview
from .messages import failure, output_files, output_texts, refusal, started_runs
from .workflow import Planned

AHEAD = 2
"""Prompts on the server at once."""
POLL_S = 2.0
"""Between looks at the history while no event says that a prompt has ended."""
LISTEN_S = 0.25
RECORD = "submit.json"
ENDS = {"execution_success", "execution_error", "execution_interrupted"}


class Watcher(Protocol):
    """Whoever watches prompts."""

    def log(self, text: str) -> None: ...

    def progress(self, label: str, what: str, done: int, total: int, note: str) -> None:
        """A node of a prompt reports how far it is."""
        ...

    def finished(self, result: "Result", done: int, total: int) -> None:
        """A prompt has ended; so many of so many have."""
        ...

    def should_stop(self) -> bool: ...


class Silent:
    """Watches and says nothing."""

    def log(self, text: str) -> None: ...

    def progress(self, label: str, what: str, done: int, total: int, note: str) -> None: ...

    def finished(self, result: "Result", done: int, total: int) -> None: ...

    def should_stop(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one prompt."""

    label: str
    values: Mapping[str, Any]
    prompt_id: str
    error: str
    """Empty if it succeeded."""
    files: tuple[str, ...]
    """Downloaded, as paths on this machine."""
    texts: Mapping[str, str]
    """{node id: text that it showed}."""
    seconds: float
    reused: bool = False
    """Taken over from an earlier call into the same folder."""
    runs: tuple[str, ...] = ()
    """Training runs that it has started; in background mode they go on after it."""


@dataclass
class Active:
    planned: Planned
    prompt_id: str
    started: float
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
    """Run prompts and download what they make into `output`, which also gets a record of them.

    Those that the record has, with all their files, are not run again unless `again`. Raises WorkflowError if the server
    refuses the first, ServerError if it is lost for good, StoppedError if the watcher wants to stop; what is done is kept.
    """
    check_writable(output)
    return _Runner(server, output, watcher or Silent(), previews).run(planned, again=again)


class _Runner:
    def __init__(self, server: ComfyServer, output: Path, watcher: Watcher, previews: Path | None) -> None:
        self.server, self.output, self.watcher, self.previews = server, output, watcher, previews
        self.record = _read_record(output)
        self.active: list[Active] = []
        self.results: dict[str, Result] = {}
        self.looked = 0.0

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
        return [self.results[one.key] for one in planned]

    def _summary(self) -> str:
        return f"Of {self.total} prompts {len(self.results)} are done; the same command goes on from there"

    def _begin(self, planned: Planned, events: Events, *, again: bool) -> None:
        """Queue a prompt, unless an earlier call has run the same one."""
        before = self.record.get(planned.key)
        if not again and before and before["files"] and all(Path(file).is_file() for file in before["files"]):
            self._end(
                planned,
                Result(**{**before, "files": tuple(before["files"]), "runs": tuple(before["runs"]), "reused": True}),
            )
            return
        events.open()
        answer = self._post(planned)
        told = self._refused(planned, answer)
        if not self.active:
            self.looked = time.monotonic()
        if told and not self.results and not self.active:
            raise WorkflowError(f"the server refuses the workflow:\n{told}")
        if told:
            self._end(planned, _result(planned, "", f"refused: {told}"))
        else:
            self.active.append(Active(planned, answer.data["prompt_id"], time.monotonic()))

    def _post(self, planned: Planned) -> Answer:
        body: dict[str, Any] = {"prompt": planned.graph, "client_id": self.server.client_id}
        if self.previews is not None:
            body["extra_data"] = {"preview_method": "auto"}  # where the server knows it; else its own setting counts
        answer = self.server.post("/prompt", body)
        if isinstance(answer.data, dict) and answer.data.get("prompt_id") and answer.data.get("node_errors"):
            self._cancel([answer.data["prompt_id"]])  # it would run a part of what was asked for
        return answer

    def _refused(self, planned: Planned, answer: Answer) -> str:
        """Why a prompt was not taken, or not as a whole; empty if it was."""
        is_taken = answer.status == 200 and isinstance(answer.data, dict) and "prompt_id" in answer.data
        if is_taken and not answer.data.get("node_errors"):
            return ""
        return refusal(planned.graph, answer.data, self.server.declared)

    def _listen(self, events: Events) -> None:
        event = events.receive(LISTEN_S)
        if isinstance(event, Preview):
            self._keep_preview(event)
        elif event is not None:
            self._note(event["type"], event["data"])
        waited = time.monotonic() - self.looked
        if self.active and waited >= (POLL_S if event is None else 5 * POLL_S):  # what is still to be read comes first
            self._look()

    def _note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Events are for the eye, and say when it is worth to look."""
        mine = next((one for one in self.active if one.prompt_id == data.get("prompt_id")), None)
        if kind == "lora_loom.step" and self.active:
            self._training(data)
        if mine is None:
            return
        if kind == "executing" and data.get("node"):
            mine.started = mine.started if mine.node else time.monotonic()  # until then it waited its turn
            mine.node = str(data["node"])
            self._progress(mine, 0, 1)
        elif kind == "progress":
            mine.node = str(data.get("node") or mine.node)
            self._progress(mine, int(data.get("value", 0)), int(data.get("max", 1)))
        if kind in ENDS or (kind == "executing" and data.get("node") is None):
            self._look()

    def _training(self, data: Mapping[str, Any]) -> None:
        """A run of ours shows its loss: that of the node which works right now."""
        running = next((one for one in self.active if one.node and one.node == str(data.get("node"))), None)
        if running is not None and data.get("loss") is not None:
            self._progress(running, int(data["step"]), int(data["total"]), f"loss {data['loss']:.4f}")

    def _progress(self, one: Active, done: int, total: int, note: str = "") -> None:
        graph = one.planned.graph
        node = graph.get(one.node, {})
        what = (node.get("_meta") or {}).get("title") or node.get("class_type") or one.node
        self.watcher.progress(one.planned.label, what, done, total, note)

    def _keep_preview(self, preview: Preview) -> None:
        one = next((one for one in self.active if one.node), None)
        if self.previews is not None and one is not None:
            one.previews += 1
            stem = one.planned.label or "preview"
            write_bytes(self.previews / f"{stem}-node{safe_name(one.node)}-{one.previews:04d}{preview.suffix}", preview.content)  # fmt: skip

    def _look(self) -> None:
        """Ask for the fate of every active prompt; raises ServerError if the server stays away."""
        for one in list(self.active):
            answer = self.server.get(f"/history/{one.prompt_id}").data
            record = answer.get(one.prompt_id) if isinstance(answer, dict) else None
            if record and (record.get("status") or record.get("outputs")):
                self._finish(one, record)
            elif not self._is_queued(one.prompt_id):
                self._requeue(one)
        self.looked = time.monotonic()

    def _is_queued(self, prompt_id: str) -> bool:
        queue = self.server.get("/queue").data
        items = [*queue.get("queue_running", []), *queue.get("queue_pending", [])]
        if any(item[1] == prompt_id for item in items):
            return True
        return bool(self.server.get(f"/history/{prompt_id}").data)  # it may have ended between the two looks

    def _requeue(self, one: Active) -> None:
        self.active.remove(one)
        if one.requeued:
            self._end(
                one.planned,
                _result(one.planned, one.prompt_id, "the server has lost it twice: see its log for why it stops"),
            )
            return
        self.watcher.log(f"{one.planned.label or 'the prompt'}: the server was restarted and has lost it; queued again")
        answer = self._post(one.planned)
        told = self._refused(one.planned, answer)
        if told:
            self._end(one.planned, _result(one.planned, one.prompt_id, f"refused: {told}"))
        else:
            self.active.append(Active(one.planned, answer.data["prompt_id"], one.started, requeued=True))

    def _finish(self, one: Active, record: Mapping[str, Any]) -> None:
        planned = one.planned
        error = failure(planned.graph, record)
        files = [] if error else self._download(planned, record)
        texts = output_texts(record)
        self.active.remove(one)
        seconds = time.monotonic() - one.started
        result = _result(planned, one.prompt_id, error, tuple(map(str, files)), texts, seconds)
        self._end(planned, replace(result, runs=tuple(started_runs(record))))

    def _download(self, planned: Planned, record: Mapping[str, Any]) -> list[Path]:
        """Files of a sweep are named after their values, others as the server names them; nothing is replaced but our own."""
        remote, mine = output_files(record), set(self.record.get(planned.key, {}).get("files", ()))
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
            self.record[planned.key] = asdict(result)
            write_json(self.output / RECORD, {"prompts": self.record})
        self.watcher.finished(result, len(self.results), self.total)

    def _withdraw(self) -> None:
        """Whatever of ours is still on the server, taken back; a server that is gone has nothing."""
        if self.active:
            self.server.patience_s = 0.0
            self._cancel([one.prompt_id for one in self.active])

    def _cancel(self, prompt_ids: Sequence[str]) -> None:
        try:
            self.server.post("/queue", {"delete": list(prompt_ids)})
            running = self.server.get("/queue").data.get("queue_running", [])
            for item in running:
                if item[1] in prompt_ids:  # older servers interrupt whatever runs, so only while it is ours
                    self.server.post("/interrupt", {"prompt_id": item[1]})
        except ServerError as error:
            self.watcher.log(str(error))


def _result(planned: Planned, prompt_id: str, error: str, files: tuple[str, ...] = (), texts: Mapping[str, str] | None = None, seconds: float = 0.0) -> Result:  # fmt: skip
    return Result(label=planned.label, values=dict(planned.values), prompt_id=prompt_id, error=error, files=files, texts=texts or {}, seconds=seconds)  # fmt: skip


def _read_record(output: Path) -> dict[str, Any]:
    """What earlier calls into this folder have done; what is damaged or of another form counts for nothing."""
    try:
        found = json.loads((output / RECORD).read_text(encoding="utf-8"))["prompts"]
        return {key: one for key, one in found.items() if set(one) == {part.name for part in fields(Result)}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def free_path(path: Path, is_ours: Callable[[Path], bool]) -> Path:
    """The path, or with -2, -3, … if a file that is not ours has it."""
    free, number = path, 1
    while free.exists() and not is_ours(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def problems(results: Sequence[Result]) -> str:
    """One line for each prompt that failed; empty if none did."""
    return "\n".join(f"{result.label}: {result.error}" if result.label else result.error for result in results if result.error)  # fmt: skip
