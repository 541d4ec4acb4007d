"""``adafilter status``: how runs stand, from their folders and, where it answers, from SLURM."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from adafilter_dist.commands.parser import Parser
from adafilter_dist.errors import UserError
from adafilter_dist.slurm.queue import Queue
from adafilter_dist.status import RunStatus, find_runs, is_run, read_runs
from adafilter_dist.status.model import failed_at_once
from adafilter_dist.status.sweep import Sweep, read_sweep
from adafilter_dist.status.table import as_table, in_full, what_counts

HELP = "how runs stand: state, step, metric, restarts, steps lost"
_ASK_EVERY = 10.0  # seconds between questions to SLURM, which has other users
_REDRAW = 5.0


def run(words: list[str]) -> int:
    """Parse ``[RUN | ROOT ...] [--watch [SECONDS]] [--json]``; print a line a run, or one in full.

    With ``--watch`` again and again until Ctrl-C.
    """
    parser = Parser(
        prog="adafilter status",
        description=f"{HELP}. A line a run; a single RUN is shown in full; a sweep by its values.",
        examples=[
            "adafilter status",
            "adafilter status runs/demo/1a2b3c4d",
            "adafilter status runs --watch 10",
        ],
    )
    parser.add_argument(
        "paths", nargs="*", metavar="RUN | ROOT", help="runs and folders of runs; default ./runs"
    )
    parser.add_argument("--json", action="store_true", help="a JSON list with one object a run")
    parser.add_argument(
        "--watch",
        nargs="?",
        const=str(_REDRAW),
        metavar="SECONDS",
        help=f"show it again every so often (default {_REDRAW:.0f}) until Ctrl-C",
    )
    parser.add_argument(
        "--all", action="store_true", help="also runs that failed before their first step"
    )
    options = parser.parse_intermixed_args(words)
    watch: str | None = options.watch
    paths: list[str] = options.paths
    if watch is not None and not _is_number(watch):
        paths, watch = [watch, *paths], str(_REDRAW)  # --watch RUN
    view = _View([Path(path).expanduser() for path in paths or ["runs"]], everything=options.all)
    if watch is None:
        runs = view.read(Queue())
        print(_json(view, runs) if options.json else view.show(runs))
        view.complain()
        return 0
    if options.json:
        raise UserError("--json and --watch exclude each other; call --json again and again")
    if not 0.1 <= float(watch) <= 86400:
        raise UserError(f"--watch {watch}: give seconds, from 0.1 to 86400")
    try:
        _watch(view, float(watch))
    except KeyboardInterrupt:
        print()
    return 0


@dataclass
class _View:
    """What the words name, found anew at each look: single runs, sweeps, folders of runs."""

    paths: Sequence[Path]
    everything: bool = False
    trouble: str = ""
    sweeps: list[Sweep] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def find(self) -> None:
        """Each run once, in the order given; UserError with a line for each path without one."""
        folders: dict[Path, None] = {}
        self.sweeps, mistakes = [], []
        for path in self.paths:
            try:
                sweep = None if is_run(path) else read_sweep(path)
                if sweep is None:
                    folders |= dict.fromkeys(find_runs(path))
                else:
                    self.sweeps.append(sweep)
            except UserError as error:
                mistakes.append(str(error))
        if mistakes:
            raise UserError("\n".join(mistakes))
        self.folders = list(folders)

    def read(self, queue: Queue) -> list[RunStatus]:
        """All runs, those of sweeps first."""
        self.find()
        members = [folder for sweep in self.sweeps for folder, _ in sweep.members]
        runs = read_runs([*members, *self.folders], queue)
        self.trouble = f"SLURM was not asked: {queue.trouble}" if queue.trouble else ""
        return runs

    def parts(self, runs: Sequence[RunStatus]) -> list[tuple[Sweep | None, Sequence[RunStatus]]]:
        """The runs of each sweep, then the others."""
        parts: list[tuple[Sweep | None, Sequence[RunStatus]]] = []
        for sweep in self.sweeps:
            parts.append((sweep, runs[: len(sweep.members)]))
            runs = runs[len(sweep.members) :]
        return [*parts, (None, runs)] if runs else parts

    def show(self, runs: Sequence[RunStatus]) -> str:
        """One run in full, or tables."""
        if len(self.paths) == 1 and not self.sweeps and is_run(self.paths[0]):
            return in_full(runs[0])
        tables = []
        for sweep, part in self.parts(runs):
            hidden = [run for run in part if sweep is None and self._is_hidden(run)]
            visible = [run for run in part if run not in hidden]
            lines = [as_table(visible, sweep)] if visible else []
            if hidden:
                lines.append(
                    f"{len(hidden)} failed before {'its' if len(hidden) == 1 else 'their'} first "
                    "step: --all shows, adafilter rm RUN removes"
                )
            tables.append("\n".join(lines))
        return "\n\n".join(tables)

    def _is_hidden(self, run: RunStatus) -> bool:
        """Whether it is left out of tables: not where it is asked for by name."""
        return not self.everything and Path(run.run) not in self.paths and failed_at_once(run)

    def complain(self) -> None:
        """Say once more than the runs what could not be found out."""
        if self.trouble:
            print(self.trouble, file=sys.stderr)


def _json(view: _View, runs: Sequence[RunStatus]) -> str:
    rows = []
    for sweep, part in view.parts(runs):
        for number, status in enumerate(part):
            values = {"values": sweep.members[number][1]} if sweep else {}
            rows.append(asdict(status) | values)
    return json.dumps(rows, indent=2, allow_nan=False)


def _watch(view: _View, seconds: float) -> None:
    """At a terminal the same lines drawn anew, elsewhere printed again where they changed."""
    queue = Queue(every=_ASK_EVERY)
    runs = view.read(queue)  # a mistake in the words is said before anything is drawn
    if not sys.stdout.isatty():
        before = None
        while True:
            now = (what_counts(runs), view.trouble)
            if now != before:
                print(view.show(runs), *filter(None, [view.trouble]), "", sep="\n", flush=True)
            before = now
            time.sleep(seconds)
            runs = view.read(queue)
    from rich.live import Live  # late: without --watch nobody waits for it
    from rich.text import Text

    with Live(auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            told = "\n".join(filter(None, [view.show(runs), view.trouble]))
            live.update(Text(told, no_wrap=True, overflow="ellipsis"), refresh=True)
            time.sleep(seconds)
            runs = view.read(queue)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
