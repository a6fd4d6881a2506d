"""How routes answer: errors as JSON, work aside of the event loop, and who may change something."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from ...words import in_the_graph

logger = logging.getLogger("lora_loom")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RefusedError(Exception):
    """An action that another page may have caused."""


def answering(handler: Handler) -> Handler:
    """Our own errors become JSON with a status that says whose fault it is."""

    async def wrapped(request: web.Request) -> web.StreamResponse:
        from ....trainer.errors import LoomError
        from ..paths import why_foreign_host
        from ..reach import REACH

        REACH.note(request.headers.get("Host"), request.headers)
        if foreign := await aside(why_foreign_host, request.headers.get("Host")):
            return web.json_response({"error": foreign}, status=403)
        try:
            return await handler(request)
        except RefusedError as refusal:
            return web.json_response({"error": str(refusal)}, status=403)
        except LoomError as error:
            return web.json_response({"error": in_the_graph(str(error))}, status=400)
        except web.HTTPException:
            raise
        except Exception as error:
            logger.exception("LoRA Loom: %s %s failed", request.method, request.path)
            return web.json_response(
                {"error": f"{type(error).__name__}: {error} (details in ComfyUI's console)"}, status=500
            )

    return wrapped


async def aside(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function that touches the disk returns, called in another thread."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


async def json_of(request: web.Request) -> dict[str, Any]:
    """The object that a POST sends. Raises RefusedError for one of another origin, ConfigError for a body that is none."""
    from ....trainer.errors import ConfigError

    if refusal := why_refused(request.content_type, request.headers.get("Origin"), request.headers.get("Host")):
        raise RefusedError(refusal)
    try:
        body = await request.json()
    except ValueError as error:
        raise ConfigError(f"the body is not JSON ({error}): send an object") from error
    if not isinstance(body, dict):
        raise ConfigError(f"the body is {body!r}: send an object")
    return body


def why_refused(content_type: str, origin: str | None, host: str | None) -> str:
    """Why an action may not be taken; empty if it may. A page of another origin cannot send JSON without asking first."""
    if content_type != "application/json":
        return "send the action with Content-Type: application/json"
    try:
        own = origin is None or urlsplit(origin).netloc.lower() == (host or "").lower()
    except ValueError:  # "https://[::1"
        own = False
    if not own:
        return f"actions are accepted from this server's own pages only, not from {origin}"
    return ""
