"""Signals only set a flag; handlers are put back."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from adafilter_dist.training.preemption import TIME_LIMIT, StopFlag, stop_on_signal


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


def test_the_flag_rises_by_itself_when_there_is_just_enough_time_left_to_stop() -> None:
    flag = StopFlag()
    assert not flag.raised  # no limit, no end
    flag.ends_at, flag.needs = time.time() + 100, 40
    assert not flag.raised and not flag.reason
    flag.needs = 70  # half as much again, and ten seconds, are more than is left
    assert flag.raised and flag.reason == TIME_LIMIT
    flag.needs = 0
    assert flag.raised  # once risen, it stays

    flag = StopFlag()
    flag.ends_at = time.time() + 9
    assert flag.raised  # whatever it takes, ten seconds are needed
    flag = StopFlag()
    flag.ends_at = time.time() - 3600
    assert flag.raised and flag.reason == TIME_LIMIT


def test_a_signal_ahead_of_the_limit_stays_the_reason() -> None:
    with stop_on_signal() as flag:
        os.kill(os.getpid(), signal.SIGUSR2)
        flag.ends_at = time.time()
        assert flag.raised and flag.reason == "SIGUSR2"


def test_a_signal_after_the_flag_rose_by_itself_is_the_same_stop() -> None:
    with stop_on_signal() as flag:
        flag.ends_at = time.time()
        assert flag.raised
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert flag.reason == TIME_LIMIT


def test_a_flag_from_outside_is_the_one_that_is_set() -> None:
    mine = StopFlag()
    with stop_on_signal(mine) as flag, stop_on_signal(mine):
        assert flag is mine
        os.kill(os.getpid(), signal.SIGTERM)
    assert mine.reason == "SIGTERM"


_WAITS = """
import time
from adafilter_dist.training.preemption import stop_on_signal
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
    terminal, theirs = pty.openpty()
    # A session of its own, whose terminal is this one: Ctrl-C typed there is a signal.
    words = ["setsid", "--ctty", sys.executable, "-c", _WAITS]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
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
        status = process.wait()
    finally:
        os.close(terminal)
        process.kill()
    assert status in (1, 130, -signal.SIGINT)


def test_the_first_signal_is_answered_at_once_and_by_the_first_rank_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stop_on_signal() as flag:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert flag.reason == "SIGUSR2"
        assert capfd.readouterr().err.startswith("SIGUSR2: stopping after a few steps, once saved")
        os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == ""
    monkeypatch.setenv("RANK", "1")
    with stop_on_signal():
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""


_DONE = """\
import os, signal
from adafilter_dist.training.preemption import stop_on_signal
signal.signal(signal.SIGUSR2, lambda *_: print("somebody else's"))
with stop_on_signal(last=True):
    pass
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
    os.kill(os.getpid(), number)
print("done")
"""


def test_a_process_whose_work_is_done_is_not_killed_by_a_late_signal() -> None:
    done = subprocess.run([sys.executable, "-c", _DONE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")
