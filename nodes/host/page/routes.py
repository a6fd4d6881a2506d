"""HTTP routes below /lora_loom: runs, their metrics and files, and what can be asked of a running one.

Handlers live on the server's event loop, so everything that touches the disk goes through `_aside`. Reading changes
nothing; actions are POST with a JSON body and from the same origin, so that no other web page can cause one.
"""

import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from .answers import Handler, answering, aside, json_of, why_refused

logger = logging.getLogger("lora_loom")

TYPES = {
    ".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".json": "application/json",
    ".jsonl": "application/x-ndjson", ".txt": "text/plain; charset=utf-8", ".csv": "text/csv; charset=utf-8",
    ".html": "text/html; charset=utf-8", ".svg": "image/svg+xml", ".safetensors": "application/octet-stream",
}  # fmt: skip
"""What the files route serves; everything else is not found."""
DOWNLOADS = {".safetensors", ".csv"}
SCRIPT_HASH = re.compile(rb"script-src '(sha256-[A-Za-z0-9+/]{43}=)'")
"""How the page of a sweep states the hash of its own script, in its first `HEAD_BYTES`."""
HEAD_BYTES = 4096
ACTIONS = ("pause", "resume", "stop", "save", "sample")


def attach() -> None:
    """Register with ComfyUI's server, and for its end; without one there is nothing to do."""
    from server import PromptServer

    from . import data_routes, new_routes

    instance = getattr(PromptServer, "instance", None)
    if instance is not None:
        from ..runs.endings import ENDINGS

        register(instance.routes)
        data_routes.register(instance.routes)
        new_routes.register(instance.routes)
        watch(instance.app)
        ENDINGS.install()


def watch(app: web.Application) -> None:
    """Look at the Host and forwarding headers of every request of the server, before it is answered (`reach`)."""
    from ..reach import REACH

    @web.middleware  # type: ignore[untyped-decorator]
    async def look(request: web.Request, handler: Handler) -> web.StreamResponse:
        REACH.note(request.headers.get("Host"), request.headers)
        return await handler(request)

    try:
        app.middlewares.append(look)
    except RuntimeError:  # the server has started already; our own routes look too
        logger.warning("LoRA Loom was loaded after the server began: it sees its own requests only")


def register(routes: web.RouteTableDef) -> None:
    """Add the routes to ComfyUI's table; it serves them below /api as well."""
    routes.get("/lora_loom/runs")(answering(_runs))
    routes.get("/lora_loom/runs/{name}")(answering(_run))
    routes.get("/lora_loom/runs/{name}/metrics")(answering(_metrics))
    routes.get("/lora_loom/runs/{name}/files/{path:.+}")(answering(_file))
    routes.get("/lora_loom/runs/{name}/settings")(answering(_settings))
    routes.get("/lora_loom/runs/{name}/graph")(answering(_graph))
    routes.get("/lora_loom/trash")(answering(_trash))
    routes.post("/lora_loom/trash/restore")(answering(_restore))
    routes.post("/lora_loom/trash/empty")(answering(_empty_trash))
    for action in ACTIONS:
        routes.post(f"/lora_loom/runs/{{name}}/{action}")(answering(_action(action)))
    for name, work in (("rename", _rename), ("delete", _delete), ("move", _move), ("note", _note)):
        routes.post(f"/lora_loom/runs/{{name}}/{name}")(answering(_changing(work)))


def _missing(name: str) -> web.Response:
    return web.json_response({"error": f"there is no run {name!r}"}, status=404)


async def _runs(request: web.Request) -> web.StreamResponse:
    from ..runs.housekeeping import count_trashed
    from ..runs.records import list_runs
    from ..runs.server import REGISTRY

    runs, trash = await aside(list_runs, REGISTRY), await aside(count_trashed)
    return web.json_response({"runs": runs, "queue": REGISTRY.waiting_names(), "trash": trash})


async def _run(request: web.Request) -> web.StreamResponse:
    from ..paths import run_folder
    from ..runs.records import details
    from ..runs.server import REGISTRY

    folder = run_folder(request.match_info["name"])
    if not folder.exists():
        return _missing(folder.name)
    return web.json_response(await aside(details, folder, REGISTRY))


async def _metrics(request: web.Request) -> web.StreamResponse:
    from ....trainer.errors import ConfigError
    from ..paths import run_folder

    folder = run_folder(request.match_info["name"])
    asked = {"since": request.query.get("since", "0"), "most": request.query.get("most", "0")}
    for name, text in asked.items():
        if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 12:
            raise ConfigError(f"{name} = {text!r}: a whole number, e.g. 0")
    if not folder.exists():
        return _missing(folder.name)
    lines = [line for line in await aside(folder.read_metrics) if line["step"] > int(asked["since"])]
    return web.json_response({"metrics": thinned(lines, int(asked["most"]))})


def thinned(lines: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Every measurement, and of the steps about `most`, evenly; all of them for 0."""
    every = max(1, len(lines) // most) if most > 0 else 1
    return [line for place, line in enumerate(lines) if place % every == 0 or "loss" not in line]


async def _settings(request: web.Request) -> web.StreamResponse:
    from ..paths import run_folder
    from ..runs.settings_of_run import settings

    folder = run_folder(request.match_info["name"])
    return web.json_response(await aside(settings, folder)) if folder.exists() else _missing(folder.name)


async def _graph(request: web.Request) -> web.StreamResponse:
    from ..paths import run_folder
    from ..runs.records import kept_graph

    folder = run_folder(request.match_info["name"])
    graph = await aside(kept_graph, folder)
    return _missing(folder.name) if graph is None else web.json_response(graph)


async def _file(request: web.Request) -> web.StreamResponse:
    from ..paths import run_folder

    folder = run_folder(request.match_info["name"])
    path = await aside(servable, folder.path, request.match_info["path"])
    if path is None:
        return web.json_response({"error": "there is no such file in this run"}, status=404)
    kind = path.suffix.lower()
    headers = {"Content-Type": TYPES[kind], "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    if kind in (".html", ".svg"):  # may show a caption or a prompt: never with this server's rights
        headers["Content-Security-Policy"] = await aside(page_policy, path)
    if kind in DOWNLOADS:
        headers["Content-Disposition"] = "attachment"
    return web.FileResponse(path, headers=headers)


def page_policy(path: Path) -> str:
    """The Content-Security-Policy of a page: an origin of its own, nothing from elsewhere, and no script.

    The compare page of a sweep is drawn by its script, so that one script may run: the one whose hash the page states.
    Raises RunError for a page that may not be read.
    """
    from ....trainer.errors import RunError

    scripts = ""
    if path.suffix.lower() == ".html":
        try:
            with path.open("rb") as page:
                stated = SCRIPT_HASH.search(page.read(HEAD_BYTES))
        except OSError as error:
            raise RunError(f"cannot read {path.name}: {error.strerror or error}") from error
        scripts = f"; script-src '{stated[1].decode()}'" if stated else ""
    sandbox = "sandbox allow-scripts" if scripts else "sandbox"
    return f"{sandbox}; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'{scripts}"


def servable(folder: Path, name: str) -> Path | None:
    """The file of a run that a request names; None if it leaves the folder, by whatever trick, or is of another type."""
    from ..paths import is_inside

    if "\0" in name or "\\" in name or ":" in name or Path(name).is_absolute():
        return None
    path = folder / name
    if path.suffix.lower() not in TYPES or not is_inside(path, folder) or not path.is_file():
        return None
    return path


def _action(action: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        if refusal := why_refused(request.content_type, request.headers.get("Origin"), request.headers.get("Host")):
            return web.json_response({"error": refusal}, status=403)
        return await _act(action, request.match_info["name"])

    return handler


def _changing(work: Callable[[Any, dict[str, Any]], Awaitable[web.Response]]) -> Handler:
    """A POST that changes the folder of a run, with a JSON object that says how."""

    async def handler(request: web.Request) -> web.StreamResponse:
        from ..paths import run_folder

        body = await json_of(request)
        folder = run_folder(request.match_info["name"])
        return await work(folder, body) if folder.exists() else _missing(folder.name)

    return handler


async def _rename(folder: Any, body: dict[str, Any]) -> web.Response:
    from ..runs.housekeeping import rename
    from ..runs.server import REGISTRY

    return web.json_response(await aside(rename, folder, str(body.get("to", "")).strip(), REGISTRY))


async def _delete(folder: Any, body: dict[str, Any]) -> web.Response:
    from ..runs.housekeeping import move_to_trash
    from ..runs.server import REGISTRY

    place = await aside(partial(move_to_trash, folder, REGISTRY, with_loras=body.get("loras") is True))
    return web.json_response({"trash": str(place)})


async def _trash(request: web.Request) -> web.StreamResponse:
    from ..runs.housekeeping import trashed

    return web.json_response({"trash": await aside(trashed)})


async def _restore(request: web.Request) -> web.StreamResponse:
    from ..runs.housekeeping import restore
    from ..runs.server import REGISTRY

    body = await json_of(request)
    return web.json_response(await aside(restore, str(body.get("entry", "")), REGISTRY))


async def _empty_trash(request: web.Request) -> web.StreamResponse:
    from ..runs.housekeeping import empty_trash

    await json_of(request)  # of this server's own pages only
    return web.json_response({"deleted": await aside(empty_trash)})


async def _move(folder: Any, body: dict[str, Any]) -> web.Response:
    from ..runs.housekeeping import whole_number
    from ..runs.server import REGISTRY

    return web.json_response({"queue": REGISTRY.move(folder.name, whole_number(body.get("place"), "place"))})


async def _note(folder: Any, body: dict[str, Any]) -> web.Response:
    from ..runs.housekeeping import keep_note

    return web.json_response(await aside(keep_note, folder, body.get("note", ""), body.get("starred", False)))


async def _act(action: str, name: str) -> web.Response:
    from ..paths import run_folder
    from ..runs.server import REGISTRY

    folder = run_folder(name)
    if not folder.exists():
        return _missing(folder.name)
    job = REGISTRY.active(folder.name)
    if job is None:
        return await _revive(folder) if action == "resume" else _conflict(f"run {name} is not active")
    if action == "sample" and not job.can_sample:
        return _conflict(f"run {name} has no prompts to render: connect LoomValidation to its LoomTrain")
    getattr(job, action)()
    return web.json_response(job.summary())


def _conflict(text: str) -> web.Response:
    return web.json_response({"error": text}, status=409)


async def _revive(folder: Any) -> web.Response:
    """Queue the graph that started a run again: the model has to be loaded, and that is the prompt queue's business."""
    from ..runs.records import details, stored_graph
    from ..runs.server import REGISTRY, post_prompt

    record = await aside(details, folder, REGISTRY)
    if record["state"] == "finished":
        return _conflict(f"run {folder.name} is finished: raise steps in its LoomTrain and queue it to go on")
    graph = await aside(stored_graph, folder)
    if graph is None:
        return _conflict(f"run {folder.name} has kept no graph: queue its LoomTrain again to go on")
    error = await post_prompt(graph)
    return _conflict(error) if error else web.json_response(record)
