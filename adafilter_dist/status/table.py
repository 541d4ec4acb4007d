"""Runs as text: a line each, or one in full."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from adafilter_dist.status.model import RunStatus, ago
from adafilter_dist.status.sweep import Sweep, best_of, percent, shown, summary
from adafilter_dist.system.counted import counted
from adafilter_dist.system.json_files import text

_HEAD = (
    *("STATE", "STEP", "EPOCH", "METRIC", "IMAGES/S", "RESTARTS", "LOST"),
    *("NODES", "JOB", "HEARTBEAT", ""),
)


def as_table(runs: Sequence[RunStatus], sweep: Sweep | None = None) -> str:
    """A line a run; those of a sweep by what was swept, with a line about all of them."""
    if sweep is None:
        return aligned([("RUN", *_HEAD), *((run.run, *_cells(run)) for run in runs)])
    # Both accuracies in columns of their own, so that it shows which one picks the best.
    place, best = _HEAD.index("METRIC"), best_of(runs)
    head = [*_HEAD[:place], "VAL TOP-1", "TEST TOP-1", *_HEAD[place + 1 :]]
    rows = [(*sweep.keys, *head)]
    for number, (run, (_, values)) in enumerate(zip(runs, sweep.members, strict=True)):
        cells = _cells(run)
        scores = [percent(run.val_top1) + (" *" if number == best else ""), percent(run.test_top1)]
        cells[place : place + 1] = scores
        rows.append((*(shown(values.get(key)) for key in sweep.keys), *cells))
    return f"{aligned(rows)}\n{summary(sweep, runs)}"


def what_counts(runs: Sequence[RunStatus]) -> list[list[str]]:
    """What the table says, but for spans of time, which are others at every look."""
    still = [replace(run, heartbeat_age=None, starts_in=None) for run in runs]
    return [_cells(replace(run, reason="") if run.state == "stalled" else run) for run in still]


def _cells(status: RunStatus) -> list[str]:
    message = _reason(status)
    if status.failure is not None:
        message = f"{_who(status)}: {status.failure.error[-1]}" if status.failure.error else message
    if status.state == "killed":
        message = "; ".join(
            part for part in (message if status.failure else "", status.resume) if part
        )
    return [
        status.state,
        _of(status.step, status.total_steps),
        _epoch(status),
        _metric(status),
        f"{status.images_per_second:,.0f}" if status.images_per_second is not None else "-",
        str(status.restarts),
        str(status.steps_lost),
        _nodes(status.nodes),
        status.job or "-",
        ago(status.heartbeat_age) if status.heartbeat_age is not None else "-",
        "; ".join(part for part in (message, *status.problems) if part),
    ]


def _reason(status: RunStatus) -> str:
    start = ""
    if status.starts_in is not None:
        start = f"expected to start in {ago(status.starts_in)}"
    return ", ".join(part for part in (status.reason, start) if part)


def _who(status: RunStatus) -> str:
    failure = status.failure
    if failure is None or failure.rank is None:
        return f"job {status.job}"
    return f"rank {failure.rank}" + (f" on {failure.host}" if failure.host else "")


def _nodes(nodes: Sequence[str]) -> str:
    if len(nodes) <= 2:
        return ",".join(nodes) or "-"
    return f"{nodes[0]} +{len(nodes) - 1}"


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
    figure = f"{status.value:.3f}" if status.metric == "loss" else f"{100 * status.value:.1f} %"
    return f"{status.metric} {figure}"


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows of as many cells each, in columns."""
    # Not a table of rich's: it would be cut to the width of a terminal where there is none.
    rows = [[" ".join((text({"_": c}, "_") or "").split()) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        (indent + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True))).rstrip()
        for row in rows
    )


def in_full(status: RunStatus) -> str:
    """All about one run, its attempts and checkpoints in tables."""
    parts = [status.run, aligned(_facts(status), "  ")]
    if status.failure is not None:
        parts.append(_failed(status))
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
        parts.append(aligned(rows, "  "))
    if status.checkpoints:
        saved = [("CHECKPOINT", "STEP", "MB")]
        saved += [(c.folder, str(c.step), f"{c.size / 1e6:,.1f}") for c in status.checkpoints]
        parts.append(aligned(saved, "  "))
    return "\n\n".join(parts)


def _facts(status: RunStatus) -> list[tuple[str, str]]:
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
    reason = _reason(status)
    facts = [
        ("state", f"{status.state}: {reason}" if reason else status.state),
        ("step", _of(status.step, status.total_steps)),
        ("epoch", _epoch(status)),
        ("metric", _metric(status)),
        ("speed", ", ".join(speed) or "-"),
        ("heartbeat", heartbeat),
        ("nodes", ", ".join(status.nodes) or "-"),
        ("restarts", f"{status.restarts}, {counted(status.steps_lost, 'step')} lost"),
        *(("problem", problem) for problem in status.problems),
    ]
    if status.job:
        facts.insert(1, ("job", f"{status.job}, {status.slurm}" if status.slurm else status.job))
    if status.resume:
        facts.append(("resume", status.resume))
    return facts


def _failed(status: RunStatus) -> str:
    """The first rank's last lines, and where there is more."""
    failure = status.failure
    assert failure is not None
    rank = failure.rank or 0
    head = f"  {_who(status)}" + (" failed first:" if failure.rank is not None else " said last:")
    more = f"  more of it: adafilter logs {shlex.quote(status.run)} --rank {rank}"
    return "\n".join([head, *(f"    {line}" for line in failure.error), more])


def _when(iso: str | None) -> str:
    return iso[:19].replace("T", " ") if iso else "-"
