"""Whatever ends ComfyUI's process, its runs save first: in children that install what the pack installs."""

import os
import signal
import subprocess
import sys

import pytest

CHILD = """
from concurrent.futures import ThreadPoolExecutor
import importlib.util, os, signal, sys, threading, time
spec = importlib.util.spec_from_file_location("endings", sys.argv[1])
endings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(endings)

class Job:
    name = "cat"
    def __init__(self):
        self.done, self.asked = threading.Event(), threading.Event()
    def stop(self):
        self.asked.set()
    def run(self):
        with ThreadPoolExecutor(1) as pool:  # as a step uses one
            while not self.asked.wait(0.02):
                pool.submit(int).result()
            time.sleep(0.2)
            pool.submit(int).result()
        print("saved", flush=True)
        self.done.set()

def main():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has its children ignore it
    how, active = sys.argv[2:]
    job = Job()
    if active == "active":
        threading.Thread(target=job.run, daemon=True).start()
        endings.ENDINGS.active = lambda: [] if job.done.is_set() else [job]
    endings.ENDINGS.install()
    print("ready", flush=True)
    if how == "exec":
        os.execv(sys.executable, [sys.executable, "-c", "print('restarted')"])
    if how == "end":
        return
    try:
        if how == "SIGINT twice":
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            os.kill(os.getpid(), signal.SIGINT)
        else:
            os.kill(os.getpid(), getattr(signal, how))
        time.sleep(20)
    except KeyboardInterrupt:
        print("Stopped server", flush=True)

main()
"""
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGINT", "SIGINT twice", "exec", "end"])
def test_a_run_saves_before_the_process_ends(host, how):
    file = host("runs.endings").__file__
    done = subprocess.run(
        [sys.executable, "-c", CHILD, file, how, "active"], capture_output=True, text=True, timeout=30, check=False
    )
    assert "saved" in done.stdout.split(), done.stderr
    if how in ("SIGTERM", "SIGHUP"):
        assert done.returncode == -getattr(signal, how), "the signal still does what it does"
    assert ("restarted" in done.stdout) == (how == "exec")


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP"])
def test_without_a_run_a_signal_ends_the_process_at_once(host, how):
    file = host("runs.endings").__file__
    done = subprocess.run(
        [sys.executable, "-c", CHILD, file, how, "none"], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == -getattr(signal, how)
