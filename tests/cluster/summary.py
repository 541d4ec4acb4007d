"""A pytest plugin: what ran on a real SLURM cluster, what did not and why, and what it showed.

Tests marked ``cluster`` are listed at the end. A test gives a row to the second table by the
fixture ``table`` (tests/cluster/conftest.py). Rows travel in reports, from xdist's processes too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

MARKED = "on the cluster"
ROW = "cluster row"
FACTS = "cluster facts"
_WORDS = {"passed": "ran", "failed": "FAILED"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every report of such a test say that it is one."""
    for item in items:
        if item.get_closest_marker("cluster") is not None:
            item.user_properties.append((MARKED, True))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The two tables; nothing where no test of the cluster was wanted."""
    reports = [
        report
        for several in terminalreporter.stats.values()
        for report in several
        if isinstance(report, pytest.TestReport) and (MARKED, True) in report.user_properties
    ]
    outcomes: dict[str, list[str]] = {}
    reasons: dict[str, int] = {}
    for report in reports:
        if report.skipped:
            # A skip's longrepr is (file, line, reason).
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            reason = str(text).removeprefix("Skipped: ")
            reasons[reason] = reasons.get(reason, 0) + 1
            outcomes[report.nodeid] = ["skipped", "", report.nodeid]
        elif report.when == "call" or report.failed:
            words = [_WORDS[report.outcome], f"{report.duration:.1f} s", report.nodeid]
            outcomes[report.nodeid] = words
    if not outcomes:
        return
    terminalreporter.section("on a real SLURM cluster")
    facts = {str(value) for value in _properties(reports, FACTS)}
    for line in sorted(facts):
        terminalreporter.write_line(line)
    for line in aligned(sorted(outcomes.values(), key=lambda words: words[2])):
        terminalreporter.write_line(line)
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} skipped: {reason}")
    rows: list[dict[str, str | float]] = _properties(reports, ROW)
    if rows:
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[str(row.get(name, "")) for name in names] for row in rows]
        terminalreporter.section("interruptions")
        for line in aligned([[name.replace("_", " ") for name in names], *cells]):
            terminalreporter.write_line(line)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines whose columns begin below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return [line.rstrip() for line in padded]


def _properties(reports: Iterable[pytest.TestReport], wanted: str) -> list[Any]:
    return [
        value
        for report in reports
        if report.when == "call"
        for name, value in report.user_properties
        if name == wanted
    ]
