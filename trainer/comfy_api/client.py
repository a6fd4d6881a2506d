"""A client of a running ComfyUI server: HTTP requests that survive a restart, websocket events, downloads.

This module knows nothing of workflows. The websocket is used for progress only. The outcome of a prompt is always requested
by HTTP, so a lost event only delays the progress bar.
"""

import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import ConfigError, ServerError, StoppedError
from ..storage.atomic import write_bytes
from ..types import Json

if TYPE_CHECKING:
    import httpx
    import websocket

DEFAULT_SERVER = "http://127.0.0.1:8188"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
TIMEOUT_S = 30.0
"""Timeout of one HTTP request."""
PAUSE_S = 0.5
"""Pause between attempts to reach a server whose connection was lost."""
CONNECT_S, RETRY_S = 5.0, 1.0
"""Timeout for opening the websocket, and the pause between two attempts."""
PREVIEW, PREVIEW_WITH_METADATA = 1, 4
"""The kinds of ComfyUI's binary events."""


@dataclass(frozen=True)
class Answer:
    """An HTTP response of the server."""

    status: int
    data: object
    """The decoded JSON, or the text of a response that is not JSON."""

    @property
    def fields(self) -> Json:
        """The JSON object; {} if the response is anything else."""
        return self.data if isinstance(self.data, dict) else {}


class ComfyServer:
    """A server at an address such as http://127.0.0.1:8188. Raises ConfigError for an invalid address.

    Once `find` has reached the server, a request that gets no answer is repeated for `patience_s` seconds. `told` receives a
    line when the connection is lost and when it is back.
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
        self._inputs: dict[str, Json | None] = {}

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def __enter__(self) -> "ComfyServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def find(self) -> None:
        """Raise ServerError at once if there is no ComfyUI server at the address."""
        answer = self.get("/queue")
        if "queue_running" not in answer.fields:
            raise ServerError(f"{self.url} answers, but it is not a ComfyUI server ({answer.status}): check --server")
        self.was_found = True

    def get(self, path: str, **parameters: str | int) -> Answer:
        """GET with query parameters. Raises ServerError if the server cannot be reached."""
        return _answer(self._lasting(lambda: self.http.get(path, params=parameters)))

    def post(self, path: str, body: Json) -> Answer:
        """POST a JSON object. Raises ServerError.

        It is repeated only while no connection can be made: a request that may have arrived is not sent twice.
        """
        return _answer(self._lasting(lambda: self.http.post(path, json=body), unsent_only=True))

    def download(self, path: str, target: Path, **parameters: str) -> None:
        """Download a file. Raises ServerError if the server does not have it, RunError if it cannot be written."""
        answer = self._lasting(lambda: self.http.get(path, params=parameters))
        if answer.status_code != 200:
            raise ServerError(f"{self.url} does not serve {parameters.get('filename', path)} ({answer.status_code})")
        write_bytes(target, answer.content)

    def declared(self, node_class: str) -> Json | None:
        """Returns {input: ComfyUI's declaration} of a node class; None if the server does not have the class."""
        if node_class not in self._inputs:
            known = self.get(f"/object_info/{node_class}").fields.get(node_class)
            inputs = known.get("input", {}) if isinstance(known, dict) else {}
            merged = {**inputs.get("required", {}), **inputs.get("optional", {})}
            self._inputs[node_class] = merged if known else None
        return self._inputs[node_class]

    def _lasting(self, request: "Callable[[], httpx.Response]", *, unsent_only: bool = False) -> "httpx.Response":
        """The response to a request, which is repeated while the server cannot be reached. Raises ServerError, StoppedError."""
        import httpx

        deadline, lost = time.monotonic() + self.patience_s, False
        while True:
            try:
                answer = request()
            except httpx.TransportError as error:
                retry = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)) or not unsent_only
                if not self.was_found:
                    raise ServerError(f"cannot reach ComfyUI at {self.url} ({_reason(error)}): start it, or set its address with --server") from error  # fmt: skip
                if not retry or time.monotonic() >= deadline:
                    raise ServerError(f"the connection to ComfyUI at {self.url} was lost ({_reason(error)}) and was not restored within {self.patience_s:g} s: start ComfyUI and run the same command again") from error  # fmt: skip
                if not lost:
                    self.told(
                        f"{self.url} does not answer ({_reason(error)}): waiting up to {self.patience_s:g} s for it"
                    )
                lost = True
                if self.should_stop():
                    raise StoppedError("stopped while waiting for the server") from error
                time.sleep(PAUSE_S)
            else:
                if lost:
                    self.told(f"{self.url} answers again")
                return answer

    def events(self) -> "Events":
        """The events of this client's prompts, as a context manager."""
        return Events(self)


@dataclass(frozen=True)
class Event:
    """A JSON event of the server."""

    type: str
    data: Json


class Events:
    """The websocket messages to a client. The connection is opened on the first read, and again after it was lost."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self.socket: websocket.WebSocket | None = None
        self.tried = -RETRY_S

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *error: object) -> None:
        self._drop()

    def open(self) -> None:
        """Open the websocket if necessary. It is called before a prompt is queued, so that none of its events is missed.

        If the server refuses, there are no events and prompts are polled.
        """
        import websocket

        if self.socket is not None or time.monotonic() - self.tried < RETRY_S:
            return
        self.tried = time.monotonic()
        address = f"ws{self.server.url.removeprefix('http')}/ws?clientId={self.server.client_id}"
        with suppress(OSError, websocket.WebSocketException):
            self.socket = websocket.create_connection(address, timeout=CONNECT_S)

    def receive(self, timeout_s: float) -> "Event | Preview | None":
        """The next event or preview; None if nothing arrives in time, or if the connection is lost."""
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
    """An encoded image of a sampler's intermediate result."""

    suffix: str
    content: bytes


def read_event(message: str | bytes) -> "Event | Preview | None":
    """The event or preview in a websocket message; None if it is neither."""
    if isinstance(message, bytes):
        return _read_preview(message)
    try:
        event: object = json.loads(message)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict):
        return None
    return Event(type=str(event.get("type")), data=event["data"])


def _read_preview(message: bytes) -> Preview | None:
    """A binary event: 4 bytes kind, then 4 bytes image format and the image, or 4 bytes length, JSON of this length and the image."""
    kind, second = (int.from_bytes(message[start : start + 4], "big") for start in (0, 4))
    content = message[8:]
    if kind == PREVIEW_WITH_METADATA:
        content = content[second:]
    elif kind != PREVIEW:
        return None
    return Preview(".png" if content.startswith(b"\x89PNG") else ".jpg", content) if content else None


def clean_url(text: str) -> str:
    """An address with a scheme and without a trailing slash. Raises ConfigError if it is invalid."""
    url = text.strip() if "://" in text else f"http://{text.strip()}"
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(f"server = {text!r}: write an address, e.g. {DEFAULT_SERVER}")
    return url.rstrip("/")


def _answer(response: "httpx.Response") -> Answer:
    try:
        return Answer(response.status_code, response.json())
    except ValueError:
        return Answer(response.status_code, response.text)


def _reason(error: Exception) -> str:
    """The system's message of an error: "Connection refused" instead of "[Errno 111] Connection refused"."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror or cause)
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
