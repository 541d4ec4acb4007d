"""Calls that may never come back are given up."""

from __future__ import annotations

import threading

from adafilter_dist.distributed.exit_after import within


def test_a_call_that_never_comes_back_is_left_alone() -> None:
    held = threading.Event()
    try:
        assert within(0.01, held.wait) is None
    finally:
        held.set()


def test_what_comes_back_in_time_is_returned_and_errors_are_none() -> None:
    assert within(60.0, lambda: "done") == "done"
    assert within(60.0, lambda: 1 // 0) is None
