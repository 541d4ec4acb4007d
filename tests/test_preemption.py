"""Signals only set a flag; handlers are put back."""

from __future__ import annotations

import os
import pty
import signal
import sys

import pytest

from adafilter_dist.preemption import stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_sets_the_flag_and_names_itself(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as flag:
        assert not flag.raised
        os.kill(os.getpid(), number)
        assert flag.raised and flag.reason == number.name
    assert signal.getsignal(number) == before


def test_usr2_followed_by_term_is_one_stop() -> None:
    with stop_on_signal() as flag:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.reason == "SIGUSR2"


_WAITS = """
import time
from adafilter_dist.preemption import stop_on_signal
with stop_on_signal() as flag:
    print("ready", flush=True)
    while not flag.raised:
        time.sleep(0.01)
    flag._since -= 2  # as if the first had come two seconds ago
    print("noted " + flag.reason, flush=True)
    while True:
        time.sleep(0.01)
"""


@pytest.mark.timeout(60)
def test_a_second_ctrl_c_at_a_terminal_leaves_at_once() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", _WAITS])
    try:
        said = b""
        for word in (b"ready", b"noted SIGINT"):
            while word not in said:
                said += os.read(terminal, 1024)
            os.write(terminal, b"\x03")
        try:
            while os.read(terminal, 1024):
                pass
        except OSError:
            pass  # the child has closed its end
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert status != 0
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) in (1, 130)
