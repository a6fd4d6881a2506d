"""Who asks a run for device memory, when it answers, and when it takes the memory again."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from lora_loom.trainer.config.run import MemoryConfig
from lora_loom.trainer.runs.run_folder import RunFolder

from .test_jobs import office, until  # noqa: F401 - a fixture

SIZE = 1000


class Stream:
    """A base that holds so many bytes, and notes which threads make it rest and wake."""

    def __init__(self):
        self.held, self.room, self.rested, self.woken = SIZE, SIZE, [], []
        self.device = torch.device("cpu")

    def rest(self):
        freed, self.held = self.held, 0
        if freed:
            self.rested.append(threading.current_thread().name)
        return freed

    def wake(self):
        if self.room < SIZE:
            raise torch.cuda.OutOfMemoryError("tried to allocate 20 GiB")
        self.held = SIZE
        self.woken.append(threading.current_thread().name)


@pytest.fixture
def memory(host):
    made = host("runs.memory.giving").DeviceMemory()
    made._streams = [Stream()]
    return made


@pytest.fixture
def lent(office):  # noqa: F811
    """A function that makes a job whose base is such a stream."""

    def make(name, **options):
        job = office.job(name, **options)
        job.base_stream = Stream()
        job.memory._streams = [job.base_stream]
        return job

    return make


def asked(job):
    """Another thread that asks, and what it was told."""
    told = []
    thread = threading.Thread(target=lambda: told.append(job.memory.ask()), name="ComfyUI")
    thread.start()
    return thread, told


def answer(job):
    thread, told = asked(job)
    thread.join(10)
    return told


def log(job):
    return (job.folder.path / "log.txt").read_text()


def test_a_run_that_has_not_begun_or_has_ended_is_not_waited_for(memory):
    assert memory.ask() == SIZE
    assert memory.held == memory.ask() == 0
    assert memory.take()
    assert memory.held == SIZE
    memory.begin()
    memory.end()
    assert memory.ask() == 0


def test_who_asks_waits_for_the_pass_in_flight_but_not_for_long(memory, host, monkeypatch):
    monkeypatch.setattr(host("runs.memory.giving"), "PATIENCE_S", 0.2)
    memory.begin()
    assert memory.ask() == 0  # the run itself
    told = []
    begun = time.monotonic()
    thread = threading.Thread(target=lambda: told.extend([memory.ask(), memory.ask()]))
    thread.start()
    thread.join(10)
    assert told == [0, 0]
    assert 0.2 <= time.monotonic() - begun < 0.39  # the second one does not wait again
    assert memory.serve()
    assert memory.held == 0
    assert not memory.serve()


def test_it_is_taken_again_only_where_there_is_room_for_a_step_too(memory):
    memory.activations, memory.room = 500, lambda: SIZE + 499
    memory.ask()
    assert not memory.take()
    memory.room = lambda: SIZE + 500
    assert memory.take()
    memory.ask()
    memory._streams[0].room = 0
    assert not memory.take()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        memory.take(is_last_try=True)
    assert memory.held == 0


def test_a_run_that_holds_gives_at_once_and_takes_when_the_queue_is_idle(office, lent):  # noqa: F811
    job = lent("held", steps=100_000)
    office.busy.on = True
    office.registry.submit(job)
    until(lambda: job.state == "yielding")
    assert answer(job) == [SIZE]
    assert job.base_stream.rested == ["lora-loom"]
    time.sleep(0.2)
    assert job.base_stream.held == 0
    office.busy.on = False
    until(lambda: job.base_stream.held == SIZE)
    step = job.at
    until(lambda: job.at > step)
    assert "ComfyUI needs memory: 1,000 bytes of the base" in log(job)
    assert "the base is on the device again: 1,000 bytes" in log(job)


def test_a_run_in_a_step_gives_between_its_passes_and_goes_on(office, lent):  # noqa: F811
    """As at /free, which ComfyUI serves between two prompts."""
    job = lent("training", steps=100_000, passes=3)
    office.registry.submit(job)
    until(lambda: job.at >= 1)
    assert answer(job) == [SIZE]
    until(lambda: job.base_stream.woken == ["lora-loom"])
    assert job.base_stream.rested == ["lora-loom"]


def test_a_paused_run_gives_and_takes_when_it_goes_on(office, lent):  # noqa: F811
    job = lent("paused", steps=100_000)
    office.registry.submit(job)
    until(lambda: job.at >= 1)
    job.pause()
    until(lambda: job.state == "paused")
    begun = time.monotonic()
    assert answer(job) == [SIZE]
    assert time.monotonic() - begun < 0.4  # it is woken for that
    time.sleep(0.1)
    assert (job.state, job.base_stream.held) == ("paused", 0)
    job.resume()
    until(lambda: job.base_stream.held == SIZE)


def test_a_queued_run_that_gave_has_it_before_its_first_step(office, lent):  # noqa: F811
    held = []
    first = lent("first", steps=100_000)
    job = lent("second", work=lambda step: held.append(job.base_stream.held))
    office.registry.submit(first)
    office.registry.submit(job)
    assert answer(job) == [SIZE]
    assert job.base_stream.rested == ["ComfyUI"]
    first.stop()
    assert job.done.wait(10)
    assert held == [SIZE] * 3


def test_an_idle_host_without_room_is_asked_to_unload(office, lent):  # noqa: F811
    unloaded = []
    job = lent("crowded", steps=100_000)
    office.registry.unload = lambda: unloaded.append(True)
    office.busy.on = True
    office.registry.submit(job)
    until(lambda: job.state == "yielding")
    job.base_stream.room = 0
    answer(job)
    office.busy.on = False
    until(lambda: unloaded)
    thread, told = asked(job)  # unloading asks the run too, which has nothing any more
    thread.join(10)
    assert told == [0]
    step = job.at
    job.base_stream.room = SIZE
    until(lambda: job.at > step)
    assert unloaded == [True]


def test_where_there_is_no_room_even_then_the_run_fails_and_says_so(office, lent, host, monkeypatch):  # noqa: F811
    monkeypatch.setattr(host("runs.turns"), "UNLOAD_S", 0.1)
    job = lent("full", steps=100_000)
    office.registry.submit(job)
    until(lambda: job.at >= 1)
    job.base_stream.room = 0
    answer(job)
    assert job.done.wait(10)
    assert job.state == "failed"
    assert "tried to allocate 20 GiB" in str(job.error)


def test_a_turn_beside_an_endless_queue_ends_where_a_prompt_asks(office, lent, host, monkeypatch):  # noqa: F811
    monkeypatch.setattr(host("runs.turns"), "ENDLESS_S", 0.05)
    monkeypatch.setattr(host("runs.turns"), "TURN_SHARE", 1e6)
    job, prompts = lent("turn", steps=100_000), [0]

    def begun():
        prompts[0] += 1
        return prompts[0]

    office.registry.prompts = begun
    office.busy.on = True
    office.registry.submit(job)
    until(lambda: job.at >= 2)  # it takes its turn, an endless one
    monkeypatch.setattr(host("runs.turns"), "ENDLESS_S", 60.0)
    assert answer(job) == [SIZE]
    until(lambda: job.state == "yielding")
    assert job.base_stream.held == 0


def test_a_stop_does_not_wait_for_room(office, lent):  # noqa: F811
    job = lent("stopped", steps=100_000)
    office.registry.submit(job)
    until(lambda: job.at >= 1)
    job.base_stream.room = 0
    answer(job)
    job.stop()
    assert job.done.wait(5)
    assert job.state == "stopped"


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_under_dynamic_vram_the_copy_on_the_device_is_given_back_and_the_weights_stay_where_they_are(host, device):
    """On torch's meta device, whose tensors are copies without numbers; on a CPU there is no copy to give."""
    session = host("runs.session")
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ModuleList([Block(), Block()]))
    network.requires_grad_(False)
    kept = {name: weight for name, weight in network.named_parameters() if "1." in name and name.endswith("weight")}
    denoiser = SimpleNamespace(module=network, settings=SimpleNamespace(blocks=()), compute_dtype=torch.float32)
    patcher = SimpleNamespace(load_device=device, is_dynamic=lambda: True)
    log = []
    host("runs.memory.weights").prepare_weights(denoiser, patcher, session.default_memory(), None, log.append)
    assert log[0].startswith(f"dynamic VRAM: training holds its own copy on {device}, ")
    assert {weight.device.type for weight in network.parameters()} == {device}
    memory = host("runs.memory.giving").DeviceMemory()
    assert memory.watch(network) == (device == "meta")
    assert memory.ask() == memory._ever_given == (4 * 8 * 8 * 4 if device == "meta" else 0)
    weights = dict(network.named_parameters())
    assert all(weights[name] is weight for name, weight in kept.items())
    assert memory.take()
    assert {weight.device.type for weight in network.parameters()} == {device}


@pytest.mark.parametrize("streamed", [True, False])
def test_a_run_is_listed_once_it_is_queued_and_only_if_it_can_give(host, monkeypatch, tmp_path, streamed):
    actions, order = host("runs.actions"), []
    network = torch.nn.Module()
    if streamed:
        network.base_stream = Stream()
    folder = RunFolder(tmp_path / "runs" / "listed")
    plan = SimpleNamespace(
        training=SimpleNamespace(steps=1), memory=MemoryConfig(), config=dict, fixed=dict, validation=None
    )
    session = SimpleNamespace(
        denoiser=SimpleNamespace(module=network),
        backend=SimpleNamespace(about={"memory_plan": {"parts": {"activations": 7}}}),
        folder=folder,
        plan=plan,
        samples=None,
        modules=[],
    )
    monkeypatch.setattr(actions, "make_session", lambda *given: session)
    monkeypatch.setattr(actions, "SharedBase", lambda *given: object())
    monkeypatch.setattr(actions, "Bar", lambda: SimpleNamespace(update=None))
    monkeypatch.setattr(actions, "keep_graph", lambda *given: None)
    monkeypatch.setattr(actions, "others_of", lambda request: [])
    monkeypatch.setattr(actions, "preview_of", lambda request: None)
    monkeypatch.setattr(actions.REGISTRY, "submit", lambda job: order.append("queued") or job)
    monkeypatch.setattr(actions, "lend", lambda memory, *given: order.append(("listed", memory.activations, given[0] is network)))  # fmt: skip
    request = SimpleNamespace(memory=SimpleNamespace(yield_max_s=0.0))
    patcher = SimpleNamespace(load_device="cpu")
    actions._submit(request, plan, patcher, None, folder, (), None, "1", [])
    assert order == (["queued", ("listed", 7, True)] if streamed else ["queued"])
