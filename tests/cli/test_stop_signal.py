"""Every way to end the command line from outside saves first."""

import os
import signal

import pytest

from lora_loom.trainer.cli.console import ENDINGS, JsonHost, StopSignal


@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_a_signal_asks_for_a_stop_once(number, capsys):
    before = signal.getsignal(number)
    stop = StopSignal()
    try:
        host = JsonHost(stop)
        assert not host.should_stop()
        os.kill(os.getpid(), number)
        assert host.should_stop()
        assert "saving a checkpoint" in capsys.readouterr().err
        assert signal.getsignal(number) == before, "the second one ends the process"
    finally:
        stop.restore()


def test_a_closed_terminal_is_among_them():
    assert not hasattr(signal, "SIGHUP") or signal.SIGHUP in ENDINGS
