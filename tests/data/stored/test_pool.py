from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from adafilter_dist.data.stored.pool import WorkerPool


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("adafilter-data")]


def test_results_in_order_and_bounded_reading_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    with WorkerPool(3) as pool:
        for number, square in enumerate(pool.map(lambda n: n * n, items(), ahead=5)):
            assert square == number * number
            assert len(taken) <= number + 6
    assert len(taken) == 50
    assert threads() == []


def test_an_error_arrives_at_its_place() -> None:
    def work(number: int) -> int:
        if number == 7:
            raise ValueError("seven")
        return number

    done: list[int] = []
    with pytest.raises(ValueError, match="seven"), WorkerPool(2) as pool:
        for number in pool.map(work, range(100), ahead=4):
            done.append(number)
    assert done == list(range(7))
    assert threads() == []


def test_leaving_early_drops_what_has_not_begun() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number:
            gate.wait(0.02)

    with WorkerPool(1) as pool:
        results = pool.map(work, range(1000), ahead=10)
        next(results)
    assert len(begun) < 11
    assert threads() == []
