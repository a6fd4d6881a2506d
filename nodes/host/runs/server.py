"""ComfyUI's server as the jobs see it: is it busy, tell the browser something, free memory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .endings import ENDINGS
from .queue import Registry

logger = logging.getLogger("lora_loom")


def is_busy() -> bool:
    """Whether the executor runs a prompt right now."""
    from server import PromptServer

    instance = getattr(PromptServer, "instance", None)
    if instance is None or not hasattr(instance, "prompt_queue"):
        return False
    return bool(instance.prompt_queue.currently_running)


def emit(event: str, data: dict[str, Any]) -> None:
    """Send an event to every browser; thread-safe. Without a server (tests) it goes nowhere."""
    from server import PromptServer

    instance = getattr(PromptServer, "instance", None)
    if instance is not None:
        with suppress(RuntimeError):  # its event loop has ended; a run that saves now goes on
            instance.send_sync(event, data)


def free_memory() -> None:
    """Give cached GPU memory back, so that the prompt that runs now can have it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


async def post_prompt(prompt: dict[str, Any]) -> str:
    """Queue a prompt as a browser would; returns the server's refusal, or nothing."""
    import aiohttp
    from server import PromptServer

    instance = PromptServer.instance
    scheme = "https" if _has_tls() else "http"
    url = f"{scheme}://127.0.0.1:{instance.port}/prompt"
    async with aiohttp.ClientSession() as client, client.post(url, json={"prompt": prompt}, ssl=False) as answer:
        if answer.status == 200:
            return ""
        return f"ComfyUI refused the graph that started the run: {await answer.text()}"


def _has_tls() -> bool:
    from comfy.cli_args import args

    return bool(getattr(args, "tls_keyfile", None))


def ask_to_unload() -> None:
    """Have ComfyUI give back the device memory of all models when no prompt runs, in its own thread."""
    from server import PromptServer

    queue = getattr(getattr(PromptServer, "instance", None), "prompt_queue", None)
    if queue is not None:
        queue.set_flag("unload_models", True)


@contextmanager
def quiet() -> Iterator[bool]:
    """No prompt begins within this block; gives whether none runs already."""
    from server import PromptServer

    queue = getattr(getattr(PromptServer, "instance", None), "prompt_queue", None)
    if queue is None:
        yield True
        return
    with queue.mutex:
        yield not queue.currently_running


def prompts_begun() -> int:
    """How many prompts ComfyUI has begun."""
    from server import PromptServer

    queue = getattr(getattr(PromptServer, "instance", None), "prompt_queue", None)
    return int(getattr(queue, "task_counter", 0))


REGISTRY = Registry(
    busy=is_busy, emit=emit, free_memory=free_memory, quiet=quiet, prompts=prompts_begun, unload=ask_to_unload
)
"""All runs of this process."""
ENDINGS.active = REGISTRY.all_active
