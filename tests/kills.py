"""Points at which a process may be killed: before every operation on a file below a folder, and in the middle of every write.

`Snapshots` copies the folder at each of them, which is what kill -9 at that moment leaves (the kernel keeps what was written).
`KillAt` is a real SIGKILL at the n-th one. What is done at the points is the same code, so both see the same ones.
"""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import sys
import traceback
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

OPERATIONS = ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink")
"""Of the module os: pathlib and shutil come down to them."""


class HalfWritten:
    """A file whose every write is done in two halves with a point between them."""

    def __init__(self, file, point):
        self.file, self.point = file, point

    def write(self, content):
        self.point("write")
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.point("half a write")
        return self.file.write(content[len(content) // 2 :])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


@contextmanager
def installed(root, point):
    """`point(operation)` is called before every operation that changes something below `root`."""
    opened = Path.open

    def open_file(path, mode="r", *args, **kwargs):
        if "r" in mode or root not in path.parents:
            return opened(path, mode, *args, **kwargs)
        point(f"open {mode}")
        return HalfWritten(opened(path, mode, *args, **kwargs), point)

    # Python 3.10 keeps references to the functions of os.
    places = [os] if sys.version_info >= (3, 11) else [os, pathlib._NormalAccessor]
    with ExitStack() as stack:
        for place in places:
            for name in OPERATIONS:
                if hasattr(place, name):
                    stack.enter_context(patch.object(place, name, _before(name, getattr(os, name), point)))
        stack.enter_context(patch.object(Path, "open", open_file))
        yield


def _before(name, real, point):
    def operation(*args, **kwargs):
        point(name)
        return real(*args, **kwargs)

    return operation if sys.version_info >= (3, 11) else staticmethod(operation)


class Snapshots:
    """Copies `root` at every point while `recording`; `states` are the distinct copies, `seen` the operations."""

    def __init__(self, root, copies, *, recording=True):
        self.root, self.copies = root, copies
        self.recording, self.seen, self.states = recording, [], {}

    def __call__(self, operation):
        if not self.recording:
            return
        self.recording = False  # copying is no part of what is watched
        # What a temporary file holds is read by nobody; that it is there matters.
        state = {name: b"" if ".tmp" in name else content for name, content in contents(self.root).items()}
        key = hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()
        if key not in self.states:
            self.states[key] = self.copies / str(len(self.states))
            shutil.copytree(self.root, self.states[key])
        self.seen.append(operation)
        self.recording = True


class KillAt:
    """kill -9 of this process at the n-th point, the first being 1."""

    def __init__(self, number):
        self.left = number

    def __call__(self, operation):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(act, *arguments):
    """Do it in a process forked from this one, which has everything imported and loaded; returns its exit code."""
    child = os.fork()
    if child == 0:
        try:
            act(*arguments)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever happened, the child must not go on as a test run
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def put_back(state, root):
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(state, root)


def check_every_point(root, copies, act, comparable, window=None):
    """Watch `act` once, then do it again from every distinct state that a kill could leave: the outcome is the same.

    `window(points)` returns what to do instead of `act` when watching, to watch a part of it alone. Everything is done in
    children of this process. Returns ({operation: times}, number of distinct states).
    """

    def watched():
        points = Snapshots(root, copies, recording=window is None)
        with installed(root, points):
            (window(points) if window else act)()
        points.recording = False
        (copies / "seen.json").write_text(json.dumps([*points.seen]))

    copies.mkdir()
    assert in_child(watched) == 0
    expected, seen = comparable(root), Counter(json.loads((copies / "seen.json").read_text()))
    states = [path for path in copies.iterdir() if path.is_dir()]
    for state in states:
        put_back(state, root)
        assert in_child(act) == 0, f"it cannot be done again after a kill at {state.name}"
        assert comparable(root) == expected, f"killed at {state.name}"
        left = [path.name for path in root.rglob("*.tmp")]
        assert not left, f"left behind after a kill at {state.name}"
    return seen, len(states)
