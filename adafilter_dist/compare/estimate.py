"""What a comparison will take: runs, hours and disk, from what has run so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean

from adafilter_dist.compare.plan import Plan, final_run
from adafilter_dist.compare.runs import PlannedRun, all_runs, final_recipe, standing
from adafilter_dist.errors import UserError
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.json_files import number, text


@dataclass(frozen=True)
class Estimate:
    """``runs`` in all and ``left`` of them; ``seconds`` that these take one after the other.

    ``seconds`` and ``disk``, bytes of all runs when they are over, are None where nothing is known.
    ``measured``: how many runs that is known from.
    """

    runs: int
    left: int
    seconds: float | None
    disk: float | None
    measured: int


def estimate(plan: Plan, folder: Path) -> Estimate:
    """From the runs of this comparison that are over, or at least measure their steps."""
    runs = list(all_runs(plan, folder))
    left = [run for run in runs if standing(run) == "open"]
    known = {run: took for run in runs if (took := seconds_of(run)) is not None}
    sizes = [size_of(run.path) for run in runs if run not in left]
    seconds = None
    if known:
        # A contender's own runs count for it; one without takes as long as the others' mean.
        own = {run.contender: _mean_of(known, run.contender) for run in left}
        seconds = sum(own[run.contender] for run in left)
    disk = mean(sizes) * len(runs) if sizes else None
    return Estimate(len(runs), len(left), seconds, disk, len(known))


def planned_disk(plan: Plan, folder: Path, workers: int) -> float | None:
    """Bytes before anything has run: what all runs leave behind, and what those at work have.

    Builds the network of each contender; None where data or weights are missing. UserError with
    the mistakes of all contenders that cannot take the network.
    """
    from adafilter_dist.launch.checks import planned_space, require_network

    total, most, missing = 0, 0, False
    mistakes = list[str]()
    for each in plan.contenders:
        recipe = final_recipe(plan, folder, each.name, plan.seeds[0], {})
        try:
            left, at_work = planned_space(recipe, final_run(folder, each.name, plan.seeds[0]))
            total += left * (plan.tune + len(plan.seeds))
            most = max(most, at_work)
        except UserError:
            # Data and weights may come later; that the method takes the network is known now.
            missing = True
            try:
                require_network(recipe)
            except UserError as error:
                mistakes += [f"{each.name}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return None if missing else total + workers * most


def _mean_of(known: dict[PlannedRun, float], contender: str) -> float:
    own = [took for run, took in known.items() if run.contender == contender]
    return mean(own or known.values())


def seconds_of(run: PlannedRun) -> float | None:
    """Seconds that a run took over its attempts, or will take as its steps go; None if unknown."""
    files = RunFiles(run.path)
    if standing(run) == "open":
        status = files.read_status()
        step, total = number(status, "step_seconds"), number(status, "total_steps")
        return step * total if step and total else None
    took, began = 0.0, None
    for row in files.read_events():
        when = _time(text(row, "time"))
        if row.get("kind") == "start":
            began = when
        elif row.get("kind") in ("finished", "stopped") and began is not None and when is not None:
            took, began = took + when - began, None
    return took or None


def _time(stamp: str | None) -> float | None:
    try:
        return datetime.fromisoformat(stamp or "").timestamp()
    except ValueError:
        return None


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in _files(folder))


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
