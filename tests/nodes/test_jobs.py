"""The registry: who holds while the host is busy, who may go on, what is asked of a job and what it leaves behind."""

import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from lora_loom.trainer.errors import DivergedError, StoppedError
from lora_loom.trainer.runs.run_folder import RunFolder
from lora_loom.trainer.types import StepResult


class Bundle(SimpleNamespace):
    """One that a weak reference can point to."""


class Busy:
    """The host's queue, as a switch; counts how often it was asked."""

    def __init__(self):
        self.on, self.asked = False, 0

    def __call__(self):
        self.asked += 1
        return self.on


def until(condition, timeout=10):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


@pytest.fixture
def office(host, tmp_path, monkeypatch):
    """Registry, its switch, its events, and a function that makes a job of `steps` sham steps."""
    jobs = host("runs.queue")
    busy, events = Busy(), []
    registry = jobs.Registry(busy=busy, emit=lambda kind, data: events.append((kind, data)))

    def execute(session, told):
        told.folder.update(state="running")
        for step in range(1, told.total + 1):
            if told.should_stop():
                return SimpleNamespace(state="stopped")
            session.work(step)
            for _ in range(session.passes):
                told.passes += 1
                time.sleep(0.001)
                told.stopped_between_passes = told.between_passes()
                if told.stopped_between_passes:
                    break
            result = StepResult(step=step, loss=1.0, learning_rate=0.1, grad_norm=1.0, seconds=0.01)
            told.step(result, told.total)
            while told.between_steps():
                told.saves.append(step) if told.should_save() else None
                told.samples.append(step) if told.should_sample() else None
        return SimpleNamespace(state="finished")

    monkeypatch.setattr(jobs, "execute", execute)

    def job(name, steps=3, work=lambda step: time.sleep(0.005), samples=None, passes=0, **options):
        folder = RunFolder(tmp_path / "runs" / name)
        folder.start({"training": {"steps": steps}}, {}, {})
        plan = SimpleNamespace(training=SimpleNamespace(steps=steps))
        session = Bundle(folder=folder, plan=plan, samples=samples, work=work, passes=passes)
        made = jobs.Job(session, registry, **options)
        made.saves, made.samples, made.passes, made.stopped_between_passes = [], [], 0, False
        return made

    yield SimpleNamespace(registry=registry, busy=busy, events=events, job=job)
    for left in registry.jobs.values():
        left.stop()
        left.done.wait(10)


def test_jobs_run_one_at_a_time_in_order(office):
    order, running = [], []

    def work(name):
        def one(step):
            running.append(name)
            assert running == [name], "two at once"
            order.append(name)
            running.remove(name)

        return one

    jobs = [office.registry.submit(office.job(name, work=work(name))) for name in ("a", "b", "c")]
    for job in jobs:
        assert job.done.wait(10)
    assert order == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert [job.state for job in jobs] == ["finished"] * 3


def refuse(step):
    raise DivergedError("the loss is no number")


@pytest.mark.parametrize("way", ["finished", "failed", "refused", "withdrawn"])
def test_an_ended_job_lets_its_session_go(office, way):
    """The shadow of the network, the samples' decoder and the batches: nothing keeps them, though the job stays listed."""
    failing = {"failed": lambda step: 1 / 0, "refused": refuse}.get(way)
    if way == "withdrawn":
        office.registry.submit(office.job("front", steps=10_000))
    job = office.job("large", samples=object(), **({"work": failing} if failing else {}))
    job.base = Bundle()
    held = [weakref.ref(job._session), weakref.ref(job.base)]
    office.registry.submit(job)
    if way == "withdrawn":
        job.stop()
    assert job.done.wait(10)
    if way == "refused":
        with pytest.raises(DivergedError, match="no number"):
            job.raise_error()
    until(lambda: not any(ref() for ref in held))
    assert (office.registry.jobs["large"], job.can_sample, job.total) == (job, True, 3)


def test_a_job_holds_while_the_host_is_busy_unless_a_loom_node_waits(office):
    office.busy.on = True
    job = office.registry.submit(office.job("held", steps=200))
    until(lambda: job.state == "yielding")
    at, asked = job.at, office.busy.asked
    until(lambda: office.busy.asked > asked + 3)
    assert (job.at, job.state) == (at, "yielding")
    with office.registry.waiting():
        until(lambda: job.at > at)
    until(lambda: job.state == "yielding")
    office.busy.on = False
    assert job.done.wait(10)
    assert job.state == "finished"


def test_a_step_in_flight_is_finished(office):
    begun, may_end = threading.Event(), threading.Event()

    def work(step):
        begun.set()
        may_end.wait(10)

    job = office.registry.submit(office.job("flight", steps=2, work=work))
    begun.wait(10)
    office.busy.on = True
    job.stop()
    assert job.state == "running"
    may_end.set()
    assert job.done.wait(10)
    assert (job.state, job.at) == ("stopped", 1)


def test_after_yield_max_s_it_takes_a_step_all_the_same(office):
    office.busy.on = True
    job = office.registry.submit(office.job("endless", steps=4, yield_max_s=0.05))
    assert job.done.wait(10)
    assert job.state == "finished"


def test_within_a_step_it_holds_between_passes_and_a_stop_ends_that(office):
    """Micro-batches, measured images and sampling steps: the host waits for one of them, not for all."""
    job = office.registry.submit(office.job("passes", steps=1, passes=10_000, work=lambda step: None))
    until(lambda: job.passes >= 1)
    office.busy.on = True
    until(lambda: job.state == "yielding")
    at, asked = job.passes, office.busy.asked
    until(lambda: office.busy.asked > asked + 3)
    assert (job.passes, job.at) == (at, 0)
    office.busy.on = False
    until(lambda: job.passes > at)
    office.busy.on = True
    until(lambda: job.state == "yielding")
    job.stop()
    assert job.done.wait(10)
    assert job.stopped_between_passes


def test_a_pause_begins_within_a_step_and_a_save_asked_for_meanwhile_is_served_at_its_end(office):
    job = office.registry.submit(office.job("paused-inside", steps=2, passes=50, work=lambda step: None))
    job.pause()
    until(lambda: job.state == "paused")
    assert job.at == 0
    job.save()
    until(lambda: job.saves == [1])
    until(lambda: job.state == "paused")
    job.resume()
    assert job.done.wait(10)
    assert job.state == "finished"


def test_prompts_without_end_leave_a_turn_and_one_long_prompt_is_not_disturbed(office, host, monkeypatch):
    """Also with yield_max_s = 0, which saved workflows hold."""
    monkeypatch.setattr(host("runs.turns"), "ENDLESS_S", 0.1)
    begun = [0]
    office.registry.prompts = lambda: begun[0]
    office.busy.on = True
    job = office.registry.submit(office.job("starved", steps=1000))
    until(lambda: job.state == "yielding")
    at = job.at
    time.sleep(0.4)
    assert job.at == at  # one prompt, however long
    for _ in range(3):
        at, begun[0] = job.at, begun[0] + 1
        until(lambda at=at: job.at > at)
        until(lambda: job.state == "yielding")
        time.sleep(0.15)


def test_two_waits_are_counted(office):
    office.busy.on = True
    with office.registry.waiting():
        with office.registry.waiting():
            assert not office.registry.must_yield()
        assert not office.registry.must_yield()
    assert office.registry.must_yield()


def test_a_wait_that_is_cancelled_lets_jobs_yield_again(office):
    office.busy.on = True
    with pytest.raises(KeyboardInterrupt), office.registry.waiting():
        raise KeyboardInterrupt
    assert office.registry.must_yield()


def test_pause_serves_saves_and_samples_and_stop_ends_it(office):
    job = office.registry.submit(office.job("paused", steps=1000, samples=object()))
    until(lambda: job.at >= 1)
    job.pause()
    until(lambda: job.state == "paused")
    at = job.at
    job.save()
    until(lambda: job.saves)
    job.sample()
    until(lambda: job.samples)
    assert (job.saves, job.samples, job.at) == ([at], [at], at)
    until(lambda: job.state == "paused")
    job.stop()
    assert job.done.wait(10)
    assert (job.state, job.at) == ("stopped", at)


def test_a_name_that_is_active_is_attached_to(office):
    first, second, again = (office.job("same", steps=steps) for steps in (1000, 1000, 3))
    office.registry.submit(first)
    assert office.registry.submit(second) is first
    first.stop()
    first.done.wait(10)
    assert office.registry.submit(again) is again


def test_a_queued_job_is_withdrawn_at_once(office):
    front = office.registry.submit(office.job("front", steps=1000))
    behind = office.registry.submit(office.job("behind"))
    until(lambda: front.at >= 1)
    behind.stop()
    assert (behind.done.is_set(), behind.state, behind.at) == (True, "stopped", 0)
    assert front.state == "running"


def test_any_exception_of_the_thread_is_kept_told_and_raised_where_it_is_waited_for(office):
    def work(step):
        raise ZeroDivisionError("of all things")

    job = office.registry.submit(office.job("broken", work=work))
    after = office.registry.submit(office.job("after"))
    assert job.done.wait(10)
    assert job.state == "failed"
    with pytest.raises(Exception, match="ZeroDivisionError: of all things"):
        job.raise_error()
    assert "Traceback" in (job.folder.path / "log.txt").read_text()
    assert job.folder.read()["state"] == "failed"
    states = [data["state"] for kind, data in office.events if kind == "lora_loom.run" and data["name"] == "broken"]
    assert states[-1] == "failed"
    assert after.done.wait(10)  # the next one is not held up by it
    assert after.state == "finished"


def test_a_stop_before_the_first_step_is_no_failure(office):
    def stopped(step):
        raise StoppedError("stopped before the first step")

    job = office.registry.submit(office.job("a", work=stopped))
    assert job.done.wait(10)
    assert (job.state, job.error, job.folder.read()["state"]) == ("stopped", None, "stopped")


def test_a_disk_that_takes_nothing_more_fails_the_run_and_holds_up_no_other(office, monkeypatch):
    def no_space(*arguments, **changes):
        raise OSError(28, "No space left on device")

    broken = office.job("full", work=no_space)
    monkeypatch.setattr(type(broken.folder), "log", no_space)
    office.registry.submit(broken)
    assert broken.done.wait(10)
    assert broken.state == "failed"
    with pytest.raises(Exception, match="No space left"):
        broken.raise_error()
    after = office.registry.submit(office.job("after-full"))
    assert after.done.wait(10)
    assert after.state == "finished"


def test_sampling_without_prompts_is_refused(office):
    with pytest.raises(Exception, match="LoomValidation"):
        office.job("blind").sample()


def test_step_events_come_at_most_five_times_a_second(office):
    job = office.registry.submit(office.job("quick", steps=100, work=lambda step: time.sleep(0.004)))
    assert job.done.wait(10)
    steps = [data["step"] for kind, data in office.events if kind == "lora_loom.step"]
    assert len(steps) <= 8
    assert steps[-1] == 100


class Base:
    """What a job asks of its shared base, and when."""

    def __init__(self, busy):
        self.busy, self.calls, self.retired = busy, [], []

    def follow(self):
        self.calls.append(self.busy.on)
        self.retired.append(object()) if len(self.calls) == 1 else None
        return "shared" if len(self.calls) == 1 else ""


def test_runs_follow_the_hosts_copy_at_step_boundaries_and_never_beside_a_prompt(office):
    running, queued = office.job("running", steps=40), office.job("queued", steps=1)
    running.base, queued.base = Base(office.busy), Base(office.busy)
    office.busy.on = True
    office.registry.submit(running)
    office.registry.submit(queued)
    until(lambda: running.state == "yielding")
    assert running.base.calls == []
    bases = running.base, queued.base
    office.busy.on = False
    assert queued.done.wait(10)
    for base in bases:
        assert base.calls
        assert not any(base.calls)
        assert base.retired == []
    assert "shared" in (running.folder.path / "log.txt").read_text()


def test_a_paused_run_follows_too(office, host, monkeypatch):
    monkeypatch.setattr(host("runs.queue"), "FOLLOW_S", 0.01)
    job = office.job("paused", steps=1000)
    job.base = Base(office.busy)
    office.registry.submit(job)
    until(lambda: job.at >= 1)
    job.pause()
    until(lambda: job.state == "paused")
    calls = len(job.base.calls)
    until(lambda: len(job.base.calls) > calls + 2)


def test_a_copy_that_is_left_stays_while_a_prompt_begins(office):
    """Its end changes the host's list of models, which has no lock: so it waits for a moment without a prompt."""
    from contextlib import nullcontext

    base = Base(office.busy)
    job = office.job("retired", steps=1000)
    job.base = base
    office.registry.quiet = lambda: nullcontext(False)
    office.registry.submit(job)
    until(lambda: len(base.calls) > 2)
    assert len(base.retired) == 1
    office.registry.quiet = lambda: nullcontext(True)
    until(lambda: not base.retired)
