"""A process of its own for what must be set before triton is imported, and for nothing else."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


class Worker:
    """Runs functions one by one in a fresh process with other environment variables."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._pool = ProcessPoolExecutor(
            1, get_context("spawn"), initializer=_set, initargs=(environment,)
        )

    def run(self, function: Callable[..., None], *given: object) -> None:
        """Fails with the traceback where `function` (of a module's top level) does."""
        failure = self._pool.submit(_guarded, function, given).result()
        assert failure is None, failure

    def close(self) -> None:
        self._pool.shutdown()


def _set(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def _guarded(function: Callable[..., None], given: tuple[object, ...]) -> str | None:
    # As text: not every exception of triton survives pickling.
    try:
        function(*given)
    except Exception:
        return traceback.format_exc()
    return None
