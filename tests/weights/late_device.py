"""A stand-in for torch.cuda on a machine without a GPU: streams that run late, in any order that events allow.

What is launched on a stream is done when the device comes to it, which may be long after; only waiting for an event makes that certain. So
whoever fills a buffer that is still to be read, or reads one that is still to be filled, computes with wrong numbers here as on a GPU.
"""

import threading
from collections import deque
from contextlib import contextmanager

import torch


class Ticket:
    """One record of an event."""

    def __init__(self):
        self.is_done = False


class Stream:
    """What was launched, in order: work, records of events, and waits for them."""

    def __init__(self, device):
        self.device, self.queue = device, deque()

    def push(self, kind, what):
        with self.device.lock:
            self.queue.append((kind, what))
        self.device.pass_time()

    def wait_event(self, event):
        if event.ticket is not None:
            self.push("wait", event.ticket)

    def synchronize(self):
        end = Event(self.device)
        end.record(self)
        end.synchronize()

    def advance(self):
        """Do the next thing; returns False where there is none, or it has to wait."""
        if not self.queue:
            return False
        kind, what = self.queue[0]
        if kind == "wait" and not what.is_done:
            return False
        self.queue.popleft()
        if kind == "work":
            what()
        elif kind == "record":
            what.is_done = True
        return True


class Event:
    def __init__(self, device):
        self.device, self.ticket = device, None

    def record(self, stream):
        self.ticket = Ticket()
        stream.push("record", self.ticket)

    def synchronize(self):
        if self.ticket is not None:
            self.device.run_until(lambda: self.ticket.is_done)


class LateDevice:
    """`choose` says how much the device does at each launch: a function of nothing that returns a number of steps."""

    def __init__(self, choose):
        self.choose, self.lock = choose, threading.RLock()
        self.streams, self.here = [], threading.local()
        self.compute = self.stream()

    def stream(self, *_):
        self.streams.append(made := Stream(self))
        return made

    def current(self, *_):
        return getattr(self.here, "stream", self.compute)

    @contextmanager
    def on(self, stream):
        before, self.here.stream = self.current(), stream
        try:
            yield
        finally:
            self.here.stream = before

    def pass_time(self):
        with self.lock:
            for _ in range(self.choose()):
                any(stream.advance() for stream in self.streams)

    def run_until(self, is_over):
        with self.lock:
            while not is_over():
                assert any(stream.advance() for stream in reversed(self.streams)), "the streams wait for each other"

    def finish(self):
        with self.lock:
            while any(stream.advance() for stream in self.streams):
                pass
            assert not any(stream.queue for stream in self.streams), "a stream waits for what nobody records"

    def install(self, monkeypatch, module):
        """In the place of what `module` uses of torch.cuda."""
        monkeypatch.setattr(torch.cuda, "Stream", self.stream)
        monkeypatch.setattr(torch.cuda, "Event", lambda: Event(self))
        monkeypatch.setattr(torch.cuda, "current_stream", self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        launch = lambda target, source: self.current().push("work", lambda: target.copy_(source))  # noqa: E731
        monkeypatch.setattr(module, "_launch", launch)
        return self
