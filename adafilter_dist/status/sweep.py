"""sweep.json: the runs that were submitted together, and what differs between them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafilter_dist.errors import UserError
from adafilter_dist.status.model import RunStatus

_ORDER = (
    *("finished", "running", "stalled", "queued", "stopped"),
    *("failed", "killed", "cancelled", "lost", "unknown"),
)


@dataclass(frozen=True)
class Sweep:
    """The swept keys, and each member's folder with its values, in the order submitted."""

    keys: list[str]
    members: list[tuple[Path, dict[str, Any]]]


def read_sweep(folder: Path) -> Sweep | None:
    """The sweep in a folder, None if there is none; UserError if sweep.json is damaged."""
    path = folder / "sweep.json"
    try:
        content = json.loads(path.read_bytes())
        keys = [str(key) for key in content["key"]]
        # A relative path is one from the sweep's folder; an absolute one stays as it is.
        members = [(folder / each["run"], dict(each["values"])) for each in content["members"]]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{path}: is damaged; give the runs themselves: adafilter status RUN ..."
        ) from None
    return Sweep(keys, members)


def shown(value: Any) -> str:
    """A swept value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def best_of(runs: Sequence[RunStatus]) -> int | None:
    """Which of the finished members is the best by its validation accuracy; the first of equals.

    None where a finished one has no validation accuracy: the test set must not choose.
    """
    done = [(number, run) for number, run in enumerate(runs) if run.state == "finished"]
    scores = [(run.val_top1, number) for number, run in done if run.val_top1 is not None]
    if not scores or len(scores) < len(done):
        return None
    return max(scores, key=lambda each: (each[0], -each[1]))[1]


def summary(sweep: Sweep, runs: Sequence[RunStatus]) -> str:
    """How many members stand how, and the best finished one by its validation accuracy."""
    counts = Counter(run.state for run in runs)
    counted = ", ".join(f"{counts[state]} {state}" for state in _ORDER if counts[state])
    line = f"{len(runs)} members: {counted}"
    number = best_of(runs)
    if number is not None:
        best, values = runs[number], sweep.members[number][1]
        what = " ".join(f"{key}={shown(values.get(key))}" for key in sweep.keys)
        line += (
            f"; best of the finished by validation (*): {what}, val top-1 {percent(best.val_top1)}"
        )
        if best.test_top1 is not None:
            line += f", test top-1 {percent(best.test_top1)}"
        line += f" ({best.run})"
    elif counts["finished"]:
        line += (
            "; no best is named: not every finished one has a validation accuracy "
            "(data.val_fraction), and the test set must not choose"
        )
    return line


def percent(share: float | None) -> str:
    """An accuracy as people read it, ``-`` where there is none."""
    return "-" if share is None else f"{100 * share:.1f} %"
