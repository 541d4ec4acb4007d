"""``adafilter status``: how runs stand, from their folders alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from adafilter_dist.errors import UserError
from adafilter_dist.status import RunStatus, ago, find_runs, is_run, read_run

HELP = "how runs stand: state, step, metric, restarts, steps lost"
_HEAD = ("RUN", "STATE", "STEP", "EPOCH", "METRIC", "IMAGES/S", "RESTARTS", "LOST", "HEARTBEAT", "")


def run(words: list[str]) -> int:
    """Parse ``[RUN | ROOT ...] [--json]`` and print a line a run, or one run in full."""
    parser = argparse.ArgumentParser(
        prog="adafilter status",
        description=f"{HELP}. A line a run; a single RUN is shown in full.",
    )
    parser.add_argument(
        "paths", nargs="*", metavar="RUN | ROOT", help="runs and folders of runs; default ./runs"
    )
    parser.add_argument("--json", action="store_true", help="a JSON list with one object a run")
    options = parser.parse_args(words)
    paths = [Path(path).expanduser() for path in options.paths or ["runs"]]
    found = [read_run(folder) for folder in _all_runs(paths)]
    if options.json:
        print(json.dumps([asdict(status) for status in found], indent=2, allow_nan=False))
    elif len(paths) == 1 and is_run(paths[0]):
        print(_in_full(found[0]))
    else:
        print(_aligned([_HEAD, *map(_cells, found)]))
    return 0


def _all_runs(paths: Sequence[Path]) -> list[Path]:
    """Each run once, in the order given; UserError with a line for each path without one."""
    found: dict[Path, None] = {}
    mistakes = []
    for path in paths:
        try:
            found |= dict.fromkeys(find_runs(path))
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(mistakes))
    return list(found)


def _cells(status: RunStatus) -> list[str]:
    said = status.resume if status.state == "killed" else status.reason
    return [
        status.run,
        status.state,
        _of(status.step, status.total_steps),
        _epoch(status),
        _metric(status),
        f"{status.images_per_second:,.0f}" if status.images_per_second is not None else "-",
        str(status.restarts),
        str(status.steps_lost),
        ago(status.heartbeat_age) if status.heartbeat_age is not None else "-",
        "; ".join(part for part in (said, *status.problems) if part),
    ]


def _of(value: int | None, total: int | None) -> str:
    if value is None:
        return "-"
    return f"{value}/{total}" if total is not None else str(value)


def _epoch(status: RunStatus) -> str:
    if status.epoch is None:
        return "-"
    return _of(min(status.epoch + 1, status.epochs or status.epoch + 1), status.epochs)


def _metric(status: RunStatus) -> str:
    if status.metric is None or status.value is None:
        return "-"
    shown = f"{status.value:.3f}" if status.metric == "loss" else f"{100 * status.value:.1f} %"
    return f"{status.metric} {shown}"


def _aligned(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    # Not a table of rich's: it would be cut to the width of a terminal where there is none.
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        (indent + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True))).rstrip()
        for row in rows
    )


def _in_full(status: RunStatus) -> str:
    speed = []
    if status.images_per_second is not None:
        speed.append(f"{status.images_per_second:,.0f} images/s")
    if status.step_seconds is not None:
        speed.append(f"{status.step_seconds:.3g} s a step")
    if status.world_size is not None:
        speed.append(f"{status.world_size} process{'es' if status.world_size > 1 else ''}")
    heartbeat = "-"
    if status.heartbeat_age is not None:
        heartbeat = f"{ago(status.heartbeat_age)} ago" + (
            f", while {status.phase}" if status.phase else ""
        )
    facts = [
        ("state", f"{status.state}: {status.reason}" if status.reason else status.state),
        ("step", _of(status.step, status.total_steps)),
        ("epoch", _epoch(status)),
        ("metric", _metric(status)),
        ("speed", ", ".join(speed) or "-"),
        ("heartbeat", heartbeat),
        ("host", status.host or "-"),
        ("restarts", f"{status.restarts}, {status.steps_lost} steps lost"),
        *(("problem", problem) for problem in status.problems),
    ]
    if status.resume:
        facts.append(("resume", status.resume))
    parts = [status.run, _aligned(facts, "  ")]
    if status.attempts:
        rows = [("ATTEMPT", "HOST", "START (UTC)", "END (UTC)", "FROM STEP", "LOST", "")]
        rows += [
            (
                str(attempt.number),
                attempt.host or "-",
                _when(attempt.start),
                _when(attempt.end),
                _of(attempt.first_step, None),
                _of(attempt.steps_lost, None),
                attempt.how,
            )
            for attempt in status.attempts
        ]
        parts.append(_aligned(rows, "  "))
    if status.checkpoints:
        saved = [("CHECKPOINT", "STEP", "MB")]
        saved += [(c.folder, str(c.step), f"{c.size / 1e6:,.1f}") for c in status.checkpoints]
        parts.append(_aligned(saved, "  "))
    return "\n\n".join(parts)


def _when(iso: str | None) -> str:
    return iso[:19].replace("T", " ") if iso else "-"
