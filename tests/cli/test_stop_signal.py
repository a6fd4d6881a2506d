"""Every way to end the command line from outside saves first."""

import errno
import io
import os
import signal
import sys
import types

import pytest

from lora_loom.trainer.__main__ import run
from lora_loom.trainer.cli.common import command_host, report
from lora_loom.trainer.cli.console import ENDINGS, HANG_UP, JsonHost, StopSignal
from lora_loom.trainer.runs.headless import run_folder, train
from tests.conftest import make_config


@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_a_signal_asks_for_a_stop_also_twice(number, capsys):
    before = signal.getsignal(number)
    stop = StopSignal()
    try:
        host = JsonHost(stop)
        assert not host.should_stop()
        os.kill(os.getpid(), number)
        assert host.should_stop()
        assert "saving a checkpoint" in capsys.readouterr().err
        ours = signal.getsignal(number)
        assert ours != before, "the second one does not end the process"
        os.kill(os.getpid(), number)
        if number == HANG_UP:
            assert signal.getsignal(number) == ours, "a closed terminal is told of more than once"
        else:
            assert "press once more" in capsys.readouterr().err
            assert signal.getsignal(number) == before
    finally:
        stop.restore()


class Closed(io.StringIO):
    """A terminal that was closed."""

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")

    def flush(self):
        self.write("")


def test_a_terminal_that_was_closed_ends_nothing(tmp_path, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Closed())
    config = make_config("sd3", tmp_path, training={"steps": 2, "batch_size": 1})
    for as_json in (True, False):
        with command_host(as_json, run_folder(config)) as host:
            assert train(config, host).state == "finished"
        report(as_json, "done")


def test_a_closed_terminal_is_among_them():
    assert not hasattr(signal, "SIGHUP") or signal.SIGHUP in ENDINGS


class Interrupted(types.ModuleType):
    """Commands during whose import somebody pressed Ctrl-C."""

    def __getattr__(self, name):
        raise KeyboardInterrupt


def test_ctrl_c_while_the_commands_are_imported_is_no_traceback(monkeypatch):
    monkeypatch.setitem(sys.modules, "lora_loom.trainer.cli.main", Interrupted("main"))
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 130
