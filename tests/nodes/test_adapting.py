"""A run whose memory ran out asks ComfyUI to give the device back, and never does that in its own thread."""

import threading
from types import SimpleNamespace

import pytest
import torch

from lora_loom.trainer.errors import RunError, StoppedError


@pytest.fixture
def asking(host, monkeypatch):
    """A run on a MODEL that lies on a device until `given_back` is called, and the threads that called for it."""
    adapting = host("runs.memory.adapting")
    place = SimpleNamespace(type="cuda")
    network = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=place)]))
    patcher = SimpleNamespace(model=SimpleNamespace(diffusion_model=network), load_device="cuda:0")
    threads, flags = [], []

    def leave(one):
        threads.append(threading.current_thread())
        place.type = "cpu"

    monkeypatch.setattr(adapting, "leave_in_ram", leave)
    monkeypatch.setattr(adapting, "ask_to_unload", lambda: flags.append(True))
    made = adapting.Adapting(denoiser=None, texts=None, value=None, below=(), sizes=None, stream=None)
    job = SimpleNamespace(should_stop=lambda: False, memory=SimpleNamespace(serve=lambda: False))
    return SimpleNamespace(
        made=made, job=job, patcher=patcher, place=place, threads=threads, flags=flags, module=adapting
    )


def test_the_node_that_waits_does_it(asking):
    run = threading.Thread(target=lambda: asking.made._have_given_back(asking.job, asking.patcher))
    run.start()
    while run.is_alive():
        asking.made.run_errand()
        run.join(0.01)
    assert asking.threads == [threading.current_thread()]
    asking.made.run_errand()
    assert len(asking.threads) == 1


def test_without_one_comfyui_is_asked_and_waited_for(asking, monkeypatch):
    threading.Timer(0.2, lambda: setattr(asking.place, "type", "cpu")).start()
    asking.made._have_given_back(asking.job, asking.patcher)
    assert asking.flags == [True]
    assert not asking.threads
    asking.place.type = "cuda"
    monkeypatch.setattr(asking.module, "PATIENCE_S", 0.1)
    with pytest.raises(RunError, match="did not give the model's device memory back: unload models"):
        asking.made._have_given_back(asking.job, asking.patcher)
    asking.job.should_stop = lambda: True
    with pytest.raises(StoppedError, match="run it again to go on"):
        asking.made._have_given_back(asking.job, asking.patcher)


def test_what_lies_in_ram_is_not_asked_for(asking):
    asking.place.type = "cpu"
    asking.made._have_given_back(asking.job, asking.patcher)
    assert not asking.flags
    assert torch.device(asking.patcher.load_device).type == "cuda"


def test_comfyui_is_asked_as_its_free_route_asks(host, monkeypatch):
    server, flags = host("runs.server"), []
    queue = SimpleNamespace(set_flag=lambda *pair: flags.append(pair))
    monkeypatch.setattr("server.PromptServer.instance", SimpleNamespace(prompt_queue=queue))
    server.ask_to_unload()
    assert flags == [("unload_models", True)]
