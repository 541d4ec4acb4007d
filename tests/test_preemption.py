"""Signals only set a flag; handlers are put back."""

from __future__ import annotations

import os
import signal

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
