"""A real ComfyUI server for tests: started in a folder of its own, driven over HTTP and websocket."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)


def need_comfyui():
    if not (COMFYUI / "comfy").is_dir():
        pytest.skip(f"no ComfyUI at {COMFYUI}: set COMFYUI_PATH, and COMFYUI_PYTHON to its Python")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One ComfyUI process over a base directory; the pack and the test nodes are linked into it. On the CPU, unless `device` is another
    option or none."""

    def __init__(self, base, *arguments, device=("--cpu",)):
        self.base, self.arguments, self.process = Path(base), (*device, *arguments), None
        for name, target in (("lora_loom", ROOT), ("loom_test_nodes", ROOT / "tests" / "host" / "test_nodes")):
            link = self.base / "custom_nodes" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(target)
        for folder in ("input", "output", "temp", "user", "models/loras", "models/checkpoints"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)

    def start(self, timeout=180, port=None):
        self.port = port or free_port()
        command = [
            PYTHON,
            str(COMFYUI / "main.py"),
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            "--disable-auto-launch",
            "--database-url",
            "sqlite:///:memory:",
            *self.arguments,
        ]
        self.log = (self.base / "server.log").open("a")
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, env=env, cwd=COMFYUI)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError((self.base / "server.log").read_text()[-4000:])
            try:
                if self.http.get("/queue").status_code == 200:
                    return self
            except httpx.HTTPError:
                time.sleep(0.2)
        raise TimeoutError((self.base / "server.log").read_text()[-4000:])

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def queue(self, prompt, client=None):
        """Returns the prompt's id; raises AssertionError with the server's words if it is refused."""
        answer = self.http.post("/prompt", json={"prompt": prompt, "client_id": client or uuid.uuid4().hex})
        assert answer.status_code == 200, answer.text
        return answer.json()["prompt_id"]

    def refused(self, prompt):
        """Errors by node. The server takes a prompt that has any valid output, so that one is withdrawn again."""
        answer = self.http.post("/prompt", json={"prompt": prompt}).json()
        if "prompt_id" in answer:
            self.http.post("/queue", json={"delete": [answer["prompt_id"]]})
        return answer["node_errors"]

    def release(self, signal):
        """Let a prompt of `graphs.hold` end."""
        (self.base / "input" / signal).touch()

    def history(self, prompt_id):
        return self.http.get(f"/history/{prompt_id}").json().get(prompt_id)

    def finish(self, prompt_id, timeout=120):
        """Wait for a prompt; returns its history."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            record = self.history(prompt_id)
            if record and record.get("status", {}).get("status_str"):
                return record
            time.sleep(0.02)
        raise TimeoutError(f"prompt {prompt_id} did not end; {self.tail()}")

    def run(self, prompt, timeout=120):
        """Queue and wait; raises AssertionError with the error of the node if it fails."""
        record = self.finish(self.queue(prompt), timeout)
        assert record["status"]["status_str"] == "success", error_of(record) or self.tail()
        return record

    def fail(self, prompt, timeout=120):
        """Queue, wait, expect an error; returns its message."""
        record = self.finish(self.queue(prompt), timeout)
        assert record["status"]["status_str"] == "error", "the prompt succeeded"
        return error_of(record)

    def run_state(self, name):
        return self.http.get(f"/lora_loom/runs/{name}").json()

    def wait_state(self, name, *states, timeout=120):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            record = self.run_state(name)
            if record.get("state") in states:
                return record
            time.sleep(0.02)
        raise TimeoutError(f"run {name} is {record}; {self.tail()}")

    def wait_step(self, name, step, timeout=120):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            record = self.run_state(name)
            if record.get("step", 0) >= step:
                return record
            time.sleep(0.01)
        raise TimeoutError(f"run {name} is {record}; {self.tail()}")

    def act(self, name, action):
        return self.http.post(f"/lora_loom/runs/{name}/{action}", json={})

    def tail(self):
        return (self.base / "server.log").read_text()[-3000:]


def error_of(record):
    for kind, data in record["status"].get("messages", []):
        if kind == "execution_error":
            return data["exception_message"]
        if kind == "execution_interrupted":
            return "interrupted"
    return ""


class Listener:
    """All events of the server's websocket, collected in a thread."""

    def __init__(self, server):
        import websocket

        self.client = uuid.uuid4().hex
        self.events = []
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{server.port}/ws?clientId={self.client}", timeout=60)
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self):
        while True:
            try:
                message = self.socket.recv()
            except Exception:  # noqa: BLE001 - closed
                return
            if isinstance(message, str) and message:
                event = json.loads(message)
                self.events.append((time.time(), event["type"], event["data"]))

    def until(self, found, timeout=60):
        """Wait until `found()` of what has arrived; returns it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if answer := found():
                return answer
            time.sleep(0.02)
        raise TimeoutError(f"the event did not come; last {self.events[-3:]}")

    def of(self, kind):
        return [data for _, name, data in list(self.events) if name == kind]

    def close(self):
        self.socket.close()
