"""What was done to a run, and what it cost by the run's own account."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tests.cluster.submitted import Run


class Interruptions:
    """What is done to a run, to be told of by what the run itself wrote."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._done: list[tuple[str, float]] = []

    def now(self, what: str) -> None:
        """It is done at this moment."""
        self._done.append((what, time.time()))

    def rows(self) -> list[dict[str, Any]]:
        """One an interruption: steps lost, and the seconds until the next step was taken."""
        trained = [_seconds(row) for row in self._run.rows("metrics.jsonl") if _is_step(row)]
        restarts = self._run.events("start")[1:]
        rows = []
        for (what, at), start in zip(self._done, restarts, strict=True):
            back = min((when for when in trained if when > _seconds(start)), default=at)
            row = {"interruption": what, "steps_lost": start["steps_lost"]}
            rows.append({**row, "seconds": round(back - at)})
        return rows


def _is_step(row: Mapping[str, Any]) -> bool:
    return bool(row["kind"] == "train")


def _seconds(row: Mapping[str, Any]) -> float:
    when = row["time"]
    return when if isinstance(when, float) else datetime.fromisoformat(when).timestamp()
