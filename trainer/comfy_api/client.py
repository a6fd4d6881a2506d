"""A running ComfyUI over HTTP and its websocket: requests that outlive a restart, events, downloads.

Nothing here knows what a workflow means. The websocket carries progress only; what became of a prompt is always asked
by HTTP, so a lost event costs nothing but a late bar.
"""

import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError, ServerError, StoppedError
from ..storage.atomic import write_bytes

DEFAULT_SERVER = "http://127.0.0.1:8188"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
TIMEOUT_S = 30.0
"""For one answer."""
PAUSE_S = 0.5
"""Between attempts to reach a server that was lost."""
CONNECT_S, RETRY_S = 5.0, 1.0
"""For opening the websocket, and from one attempt to the next."""
PREVIEW, PREVIEW_WITH_METADATA = 1, 4
"""ComfyUI's kinds of binary events."""


@dataclass(frozen=True)
class Answer:
    status: int
    data: Any
    """JSON, or the text of an answer that is none."""


class ComfyServer:
    """One server by its address, e.g. http://127.0.0.1:8188. Raises ConfigError for an address that cannot be one.

    A request that finds the server gone is repeated for `patience_s` seconds once `find` has seen it.
    """

    def __init__(
        self,
        url: str = DEFAULT_SERVER,
        *,
        patience_s: float = 120.0,
        told: Callable[[str], None] = lambda text: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        import httpx

        self.url, self.patience_s, self.told, self.should_stop = clean_url(url), patience_s, told, should_stop
        self.client_id = uuid.uuid4().hex
        self.was_found = False
        is_local = urlsplit(self.url).hostname in LOOPBACK
        self.http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=not is_local, follow_redirects=True)
        self._kinds: dict[str, Any] = {}

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> "ComfyServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def find(self) -> None:
        """Raises ServerError at once if there is no ComfyUI at the address."""
        answer = self.get("/queue")
        if not isinstance(answer.data, dict) or "queue_running" not in answer.data:
            raise ServerError(f"{self.url} answers, but not as ComfyUI does ({answer.status}): check --server")
        self.was_found = True

    def get(self, path: str, **parameters: Any) -> Answer:
        return _answer(self._lasting(lambda: self.http.get(path, params=parameters)))

    def post(self, path: str, body: Any) -> Answer:
        """Repeated only while no connection can be made: a request that may have arrived is not sent twice."""
        return _answer(self._lasting(lambda: self.http.post(path, json=body), unsent_only=True))

    def download(self, path: str, target: Path, **parameters: Any) -> None:
        """Raises ServerError if there is no such file, RunError if it cannot be written."""
        answer = self._lasting(lambda: self.http.get(path, params=parameters))
        if answer.status_code != 200:
            raise ServerError(f"{self.url} does not hand out {parameters.get('filename', path)} ({answer.status_code})")
        write_bytes(target, answer.content)

    def declared(self, kind: str) -> dict[str, Any] | None:
        """{input: its declaration} of a node class; None if the server has no such class."""
        if kind not in self._kinds:
            data = self.get(f"/object_info/{kind}").data
            known = data.get(kind) if isinstance(data, dict) else None
            inputs = known.get("input", {}) if known else {}
            merged = {**inputs.get("required", {}), **inputs.get("optional", {})}
            self._kinds[kind] = merged if known else None
        found: dict[str, Any] | None = self._kinds[kind]
        return found

    def _lasting(self, request: Callable[[], Any], *, unsent_only: bool = False) -> Any:
        """The answer, however long the server is away, up to the patience. Raises ServerError."""
        import httpx

        deadline, lost = time.monotonic() + self.patience_s, False
        while True:
            try:
                answer = request()
            except httpx.TransportError as error:
                retry = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)) or not unsent_only
                if not self.was_found:
                    raise ServerError(f"cannot reach ComfyUI at {self.url} ({_reason(error)}): start it, or give its address with --server") from error  # fmt: skip
                if not retry or time.monotonic() >= deadline:
                    raise ServerError(f"ComfyUI at {self.url} went away ({_reason(error)}) and did not come back within {self.patience_s:g} s: start it and run the same command again") from error  # fmt: skip
                if not lost:
                    self.told(f"{self.url} does not answer ({_reason(error)}): waiting for it, {self.patience_s:g} s")
                lost = True
                if self.should_stop():
                    raise StoppedError("stopped while waiting for the server") from error
                time.sleep(PAUSE_S)
            else:
                if lost:
                    self.told(f"{self.url} is back")
                return answer

    def events(self) -> "Events":
        return Events(self)


class Events:
    """The websocket's messages to this client. It is opened when it is first read, and anew after it was lost."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self.socket: Any = None
        self.tried = -RETRY_S

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *error: object) -> None:
        self._drop()

    def open(self) -> None:
        """Before a prompt is queued, so that none of its events is missed. A refusal leaves polling."""
        import websocket

        if self.socket is not None or time.monotonic() - self.tried < RETRY_S:
            return
        self.tried = time.monotonic()
        address = f"ws{self.server.url.removeprefix('http')}/ws?clientId={self.server.client_id}"
        with suppress(OSError, websocket.WebSocketException):
            self.socket = websocket.create_connection(address, timeout=CONNECT_S)

    def receive(self, timeout_s: float) -> "dict[str, Any] | Preview | None":
        """The next event, a preview, or None if nothing came in time; a lost connection is nothing, too."""
        import websocket

        self.open()
        if self.socket is None:
            time.sleep(timeout_s)
            return None
        self.socket.settimeout(timeout_s)
        try:
            message = self.socket.recv()
        except websocket.WebSocketTimeoutException:
            return None
        except (OSError, websocket.WebSocketException):
            self._drop()
            time.sleep(timeout_s)
            return None
        return read_event(message)

    def _drop(self) -> None:
        if self.socket is not None:
            with suppress(Exception):
                self.socket.close()
        self.socket = None


@dataclass(frozen=True)
class Preview:
    """An encoded picture of what a sampler has so far."""

    suffix: str
    content: bytes


def read_event(message: Any) -> "dict[str, Any] | Preview | None":
    """An event {type, data}, a preview, or None for what is neither."""
    if isinstance(message, (bytes, bytearray)):
        return _read_preview(bytes(message))
    try:
        event = json.loads(message)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("data"), dict) else None


def _read_preview(message: bytes) -> Preview | None:
    """4 bytes kind; then 4 bytes picture format and the picture, or 4 bytes length, that much JSON and the picture."""
    kind, second = (int.from_bytes(message[start : start + 4], "big") for start in (0, 4))
    content = message[8:]
    if kind == PREVIEW_WITH_METADATA:
        content = content[second:]
    elif kind != PREVIEW:
        return None
    return Preview(".png" if content.startswith(b"\x89PNG") else ".jpg", content) if content else None


def clean_url(text: str) -> str:
    """http:// is added, a trailing slash taken off. Raises ConfigError."""
    url = text.strip() if "://" in text else f"http://{text.strip()}"
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(f"server = {text!r}: write an address, e.g. {DEFAULT_SERVER}")
    return url.rstrip("/")


def _answer(response: Any) -> Answer:
    try:
        return Answer(response.status_code, response.json())
    except ValueError:
        return Answer(response.status_code, response.text)


def _reason(error: Exception) -> str:
    """The system's own words: "Connection refused" instead of "[Errno 111] Connection refused"."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror or cause)
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
