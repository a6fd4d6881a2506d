"""A small ComfyUI on the loopback: its routes and events as a real one has them, nodes that only pretend.

It can be killed, which forgets its queue and history, and started again on the same port.
"""

import asyncio
import json
import threading
import uuid

from aiohttp import WSMsgType, web

KINDS = {
    "LoraLoader": {"lora_name": [["cat/cat-000100.safetensors", "cat/cat-000900.safetensors", "cat/cat-001000.safetensors", "dog.safetensors"], {}],
                   "strength_model": ["FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0}], "model": ["MODEL"]},
    "KSampler": {"seed": ["INT", {"min": 0, "max": 100}], "steps": ["INT", {"min": 1, "max": 50}], "sampler_name": ["COMBO", {"options": ["euler", "heun"]}],
                 "model": ["MODEL"], "positive": ["CONDITIONING"]},
    "CLIPTextEncode": {"text": ["STRING", {"multiline": True}]},
    "SaveImage": {"images": ["IMAGE"], "filename_prefix": ["STRING", {}]},
    "LoomTrain": {"name": ["STRING", {}]},
    "Break": {"how": ["STRING", {}]},
}  # fmt: skip
GRAPH = {
    "1": {"class_type": "LoraLoader", "inputs": {"lora_name": "dog.safetensors", "strength_model": 1.0}, "_meta": {"title": "Load LoRA"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}, "_meta": {"title": "Positive"}},
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 2, "sampler_name": "euler", "model": ["1", 0], "positive": ["2", 0]}, "_meta": {"title": "KSampler"}},
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}, "_meta": {"title": "Save"}},
}  # fmt: skip
JPEG = b"\xff\xd8 a preview"


class FakeComfyUI:
    """Starts on a free port. `gate`, if set, holds prompts before their end until it is released."""

    def __init__(self):
        self.port, self.received, self.interrupted, self.ran = 0, [], [], []
        self.gate = threading.Event()
        self.gate.set()
        self.websocket_works = True
        self.runs = {}
        self.actions = []
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self.queue, self.history, self.sockets, self.stopped = [], {}, {}, False
        ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self.thread.start()
        assert ready.wait(10)

    def kill(self):
        self.stopped = True
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    async def _end(self):
        await self.worker
        await self.runner.cleanup()

    def _serve(self, ready):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._listen())
        ready.set()
        self.loop.run_forever()

    async def _listen(self):
        app = web.Application()
        app.add_routes(
            [
                web.get("/ws", self.ws), web.get("/queue", self.get_queue), web.post("/queue", self.post_queue),
                web.post("/prompt", self.post_prompt), web.get("/history/{id}", self.get_history), web.get("/view", self.view),
                web.post("/interrupt", self.interrupt), web.get("/object_info/{kind}", self.object_info),
                web.get("/lora_loom/runs", self.all_runs), web.get("/lora_loom/runs/{name}", self.one_run),
                web.get("/lora_loom/runs/{name}/metrics", self.metrics), web.post("/lora_loom/runs/{name}/{action}", self.act),
                web.get("/lora_loom/runs/{name}/files/{path:.+}", self.run_file),
            ]
        )  # fmt: skip
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self.runner.addresses[0][1]
        self.worker = self.loop.create_task(self.work())

    async def ws(self, request):
        if not self.websocket_works:
            raise web.HTTPNotFound
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets[request.query["clientId"]] = socket
        await socket.send_json({"type": "status", "data": {"sid": request.query["clientId"]}})
        async for message in socket:
            if message.type == WSMsgType.ERROR:
                break
        return socket

    async def tell(self, client, kind, data):
        socket = self.sockets.get(client)
        if socket is not None and not socket.closed:
            await (socket.send_bytes(data) if kind is None else socket.send_json({"type": kind, "data": data}))

    async def get_queue(self, request):
        item = lambda one: [0, one["id"], one["prompt"], {}, []]  # noqa: E731
        return web.json_response({"queue_running": [item(one) for one in self.queue[:1]], "queue_pending": [item(one) for one in self.queue[1:]]})  # fmt: skip

    async def post_queue(self, request):
        gone = (await request.json())["delete"]
        self.queue = [one for one in self.queue if one["id"] not in gone or one is self.queue[0]]
        return web.Response()

    async def object_info(self, request):
        kind = request.match_info["kind"]
        return web.json_response({kind: {"input": {"required": KINDS[kind]}}} if kind in KINDS else {})

    async def post_prompt(self, request):
        body = await request.json()
        self.received.append(body)
        error, nodes = check(body["prompt"])
        if error:
            return web.json_response({"error": error, "node_errors": nodes}, status=400)
        one = {"id": str(uuid.uuid4()), "prompt": body["prompt"], "client": body.get("client_id")}
        self.queue.append(one)
        return web.json_response({"prompt_id": one["id"], "number": 0, "node_errors": {}})

    async def interrupt(self, request):
        self.interrupted.append((await request.json()).get("prompt_id"))
        return web.Response()

    async def get_history(self, request):
        key = request.match_info["id"]
        return web.json_response({key: self.history[key]} if key in self.history else {})

    async def view(self, request):
        return web.Response(body=json.dumps(dict(request.query)).encode())

    async def work(self):
        while not self.stopped:
            if self.queue:
                await self.run_one(self.queue[0])
            await asyncio.sleep(0.005)

    async def run_one(self, one):
        key, client, graph = one["id"], one["client"], one["prompt"]
        await self.tell(client, "execution_start", {"prompt_id": key})
        outputs, messages, state = {}, [], "success"
        for node_id, node in graph.items():
            await self.tell(client, "executing", {"node": node_id, "prompt_id": key})
            if node["class_type"] == "KSampler":
                await self.sample(one, node_id, node["inputs"]["steps"])
            if node["class_type"] == "SaveImage":
                outputs[node_id] = {"images": [{"filename": "x_00001_.png", "subfolder": "", "type": "output"}], "text": ["saved it"]}  # fmt: skip
            if node["class_type"] == "LoomTrain":
                name = node["inputs"]["name"]
                outputs[node_id] = {"loom_run": [name]}
                self.runs.setdefault(name, {"name": name, "state": "running", "step": 0, "total": 3, "loss": 0.5, "eta": 1.0, "seconds": 0.1, "error": "", "samples": [], "loras": [f"loras/{name}-000002.safetensors", f"loras/{name}.safetensors"]})  # fmt: skip
            if node["class_type"] == "Break":
                state = "error"
                messages = [["execution_error", {"node_id": node_id, "exception_type": "RuntimeError", "exception_message": "no kernel image\n"}]]  # fmt: skip
        while not self.gate.is_set() and not self.stopped and one in self.queue and key not in self.interrupted:
            await asyncio.sleep(0.005)
        if self.stopped or one not in self.queue:
            return
        if key in self.interrupted:
            state, messages = "error", [["execution_interrupted", {"node_id": "3"}]]
        self.ran.append(graph)
        self.history[key] = {"outputs": outputs, "status": {"status_str": state, "completed": state == "success", "messages": messages}}  # fmt: skip
        self.queue.remove(one)
        await self.tell(client, "executing", {"node": None, "prompt_id": key})

    async def sample(self, one, node_id, steps):
        for step in range(1, steps + 1):
            await self.tell(one["client"], "progress", {"value": step, "max": steps, "prompt_id": one["id"], "node": node_id})  # fmt: skip
            await self.tell(one["client"], None, (1).to_bytes(4, "big") + (1).to_bytes(4, "big") + JPEG)

    async def all_runs(self, request):
        return web.json_response({"runs": list(self.runs.values())})

    def named(self, request):
        name = request.match_info["name"]
        return self.runs.get(name), web.json_response({"error": f"there is no run {name!r}"}, status=404)

    async def one_run(self, request):
        run, missing = self.named(request)
        if run is None:
            return missing
        if run["state"] == "running" and run.pop("moves", True):
            run["step"] = min(run["step"] + 1, run["total"])
            run["state"] = "finished" if run["step"] == run["total"] else run["state"]
            run["samples"].append(f"samples/step-{run['step']:06d}-0.png")
        return web.json_response(run)

    async def metrics(self, request):
        run, _ = self.named(request)
        steps = range(int(request.query["since"]) + 1, run["step"] + 1)
        return web.json_response({"metrics": [{"step": step, "loss": 1 / step} for step in steps]})

    async def run_file(self, request):
        return web.Response(body=request.match_info["path"].encode())

    async def act(self, request):
        run, missing = self.named(request)
        if run is None:
            return missing
        if request.content_type != "application/json":
            return web.json_response({"error": "send the action with Content-Type: application/json"}, status=403)
        action = request.match_info["action"]
        self.actions.append(action)
        if run["state"] == "finished":
            return web.json_response({"error": f"run {run['name']} is not active"}, status=409)
        run["state"] = {"pause": "paused", "resume": "running", "stop": "stopped"}.get(action, run["state"])
        return web.json_response(run)


def check(graph):
    """ComfyUI's validation, as far as the tests provoke it."""
    nodes = {}
    for node_id, node in graph.items():
        kind, found = node["class_type"], []
        if kind not in KINDS:
            extra = {"node_id": node_id, "class_type": kind}
            return {"type": "missing_node_type", "message": f"Node '{kind}' not found.", "details": "", "extra_info": extra}, {}  # fmt: skip
        for name, value in node["inputs"].items():
            spec = KINDS[kind].get(name, ["*"])
            options = spec[0] if isinstance(spec[0], list) else spec[1]["options"] if spec[0] == "COMBO" else None
            extra = {"input_name": name, "input_config": spec, "received_value": value}
            if options is not None and value not in options:
                found.append({"type": "value_not_in_list", "message": "Value not in list", "details": name, "extra_info": extra})  # fmt: skip
            if spec[0] == "INT" and value > spec[1]["max"]:
                found.append({"type": "value_bigger_than_max", "message": "too big", "details": name, "extra_info": extra})  # fmt: skip
        if found:
            nodes[node_id] = {"errors": found, "dependent_outputs": [], "class_type": kind}
    if nodes:
        return {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": "", "extra_info": {}}, nodes  # fmt: skip
    return None, {}
