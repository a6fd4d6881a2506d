"""HTTP routes below /lora_loom/new: what the page's wizard for a new run asks. Same rules as in `routes`."""

from aiohttp import web

from .answers import answering, aside, json_of


def register(routes: web.RouteTableDef) -> None:
    """Add the routes to ComfyUI's table."""
    routes.get("/lora_loom/new")(answering(_choices))
    routes.get("/lora_loom/new/model")(answering(_model))
    routes.post("/lora_loom/new")(answering(_graph))


async def _choices(request: web.Request) -> web.StreamResponse:
    from ..new_run.wizard import choices

    return web.json_response(await aside(choices))


async def _model(request: web.Request) -> web.StreamResponse:
    from ..new_run.wizard import facts

    return web.json_response(await aside(facts, request.query.get("name", "")))


async def _graph(request: web.Request) -> web.StreamResponse:
    from ..new_run.wizard import new_graph

    return web.json_response(await aside(new_graph, await json_of(request)))
