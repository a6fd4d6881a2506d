"""HTTP routes below /lora_loom/data: a folder of images, its thumbnails and its captions. Same rules as in `routes`."""

from typing import Any

from aiohttp import web

from .answers import answering, aside, json_of

THUMBNAILS = {"Cache-Control": "private, max-age=60", "X-Content-Type-Options": "nosniff"}
LOWEST, HIGHEST = 16, 8192


def register(routes: web.RouteTableDef) -> None:
    """Add the routes to ComfyUI's table."""
    routes.get("/lora_loom/data/folders")(answering(_folders))
    routes.get("/lora_loom/data")(answering(_look))
    routes.get("/lora_loom/data/image")(answering(_image))
    routes.post("/lora_loom/data/caption")(answering(_caption))


async def _folders(request: web.Request) -> web.StreamResponse:
    from ..encoding.editing import folders

    return web.json_response({"folders": await aside(folders)})


async def _look(request: web.Request) -> web.StreamResponse:
    from ..encoding.editing import look

    sides = [_side(request.query.get(name, usual)) for name, usual in (("resolution", "1024"), ("step", "64"))]
    return web.json_response(await aside(look, request.query.get("folder", ""), *sides))


def _side(text: str) -> int:
    from ....trainer.errors import ConfigError

    if not (text.isascii() and text.isdigit() and len(text) < 6 and LOWEST <= int(text) <= HIGHEST):
        raise ConfigError(f"{text!r} pixels: a whole number from {LOWEST} to {HIGHEST}")
    return int(text)


async def _image(request: web.Request) -> web.StreamResponse:
    from ..encoding.editing import thumbnail

    content = await aside(thumbnail, request.query.get("folder", ""), request.query.get("name", ""))
    return web.Response(body=content, content_type="image/jpeg", headers=THUMBNAILS)


async def _caption(request: web.Request) -> web.StreamResponse:
    from ....trainer.errors import ConfigError
    from ..encoding.editing import write_caption

    body: dict[str, Any] = await json_of(request)
    texts = [body.get(name) for name in ("folder", "name", "caption")]
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError("folder, name and caption: send three texts")
    await aside(write_caption, *texts)
    return web.json_response({"saved": texts[1]})
