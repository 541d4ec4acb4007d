"""What was run: the recipe beside its defaults, versions and machines, attempts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import yaml
from pydantic import BaseModel

from adafilter_dist.recipe import Recipe, dump_recipe
from adafilter_dist.recipe.identity import flat
from adafilter_dist.recipe.word import as_word
from adafilter_dist.report.page.blocks import Cell, Column, Section, Table, Text
from adafilter_dist.report.page.run_record import RunRecord
from adafilter_dist.run.attempts import Attempt
from adafilter_dist.system.counted import counted

_ENVIRONMENT = {
    "adafilter_dist": "adafilter-dist",
    "python": "Python",
    "torch": "PyTorch",
    "device": "device",
    "cpu_capability": "CPU kernels",
    "cudnn": "cuDNN",
    "nccl": "NCCL",
    "world_size": "processes",
    "threads": "threads a process",
    "engine": "engine",
    "kernels": "kernels of gated layers",
    "compile": "compiled",
    "loader": "loader",
}
_SAYS_NOTHING = ("run_dir", "name")


def what_was_run(run: RunRecord) -> Section:
    """The section on recipe, versions, machines and attempts."""
    return Section(
        "run",
        "What was run",
        [_changed_keys(run.recipe), _environment(run), _attempts(run), _recipe(run.recipe)],
        lead=f"Run folder {run.folder}; on {', '.join(_hosts([run])) or 'a machine not known'}.",
    )


def _recipe(recipe: Recipe) -> Text:
    return Text("The whole recipe (recipe.yaml)", dump_recipe(recipe))


def _hosts(runs: Sequence[RunRecord]) -> list[str]:
    return list(dict.fromkeys(a.host for run in runs for a in run.attempts if a.host))


def changed_keys(section: BaseModel, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(key, value, default) for each key of a recipe that is not at its default.

    A key without a default has None there. Values are plain JSON types.
    """
    changed: list[tuple[str, Any, Any]] = []
    plain = section.model_dump(mode="json")
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        key = f"{prefix}{name}"
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            changed += changed_keys(value, f"{key}.")
            # Of another class of section than the default's, the name is that class's own default.
            before, now = getattr(default, "name", None), getattr(value, "name", None)
            if type(value) is not type(default) and default is not None and before != now:
                changed.append((f"{key}.name", now, before))
        elif info.is_required() or value != default:
            if isinstance(default, BaseModel):
                default = default.model_dump(mode="json")
            if isinstance(default, tuple):
                default = list(default)
            changed.append((key, plain[name], default))
    return changed


def _changed_keys(recipe: Recipe) -> Table:
    rows = [
        [key, as_word(value), "" if default is None else as_word(_plain(default))]
        for key, value, default in changed_keys(recipe)
        if key not in _SAYS_NOTHING
    ]
    return Table(
        "recipe-changes",
        "Keys of the recipe that are not at their defaults",
        [Column("key"), Column("this run"), Column("default")],
        rows,
        shown=40,
    )


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | list | dict) else str(value)


def _environment(run: RunRecord) -> Table:
    rows = [
        [title, str(run.environment[key])]
        for key, title in _ENVIRONMENT.items()
        if run.environment.get(key) is not None
    ]
    return Table("environment", "Versions and machine", [Column("what"), Column("which")], rows)


def environment_table(runs: Sequence[RunRecord], names: Sequence[str]) -> Table:
    """Versions and machines of several runs, a column for each."""
    rows = [
        [title, *(str(run.environment.get(key, "")) for run in runs)]
        for key, title in _ENVIRONMENT.items()
        if any(run.environment.get(key) is not None for run in runs)
    ]
    rows.append(["machines", *(", ".join(_hosts([run])) for run in runs)])
    rows.append(["restarts", *(str(max(0, len(run.attempts) - 1)) for run in runs)])
    columns = [Column("what"), *(Column(name) for name in names)]
    return Table("environment", "Versions and machines", columns, rows)


def _attempts(run: RunRecord) -> Table:
    rows: list[list[Cell | str]] = []
    times = run.attempt_times()
    for attempt in run.attempts:
        lost = attempt.steps_lost or 0
        first = attempt.first_step
        start, end = times.get(attempt.number, (None, None))
        rows.append(
            [
                Cell(str(attempt.number), attempt.number),
                _time(start),
                _time(end),
                attempt.host or "",
                attempt.job or "",
                Cell("" if first is None else f"{first:,}", first),
                Cell(f"{lost:,}", lost),
                _ending(attempt, run),
            ]
        )
    lost = sum(attempt.steps_lost or 0 for attempt in run.attempts)
    return Table(
        "attempts",
        "Attempts",
        [
            Column("attempt", True),
            *(Column("began (UTC)"), Column("last sign of life"), Column("machine"), Column("job")),
            *(Column("from step", True), Column("steps lost before it", True)),
            Column("how it ended"),
        ],
        rows,
        caption=f"{counted(max(0, len(rows) - 1), 'restart')}, {counted(lost, 'step')} lost: "
        "computed, and not saved before the attempt ended.",
    )


def _ending(attempt: Attempt, run: RunRecord) -> str:
    """How the attempt ended; the page at a run's end is made while the attempt is running."""
    if attempt.how != "running":
        return attempt.how
    done = "trained and tested; " if run.numbers.get("evaluation") else ""
    return f"{done}running when this page was made"


def _time(time: datetime | None) -> str:
    return "" if time is None else time.strftime("%Y-%m-%d %H:%M:%S")


def recipe_differences(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Table]:
    """The keys in which recipes differ, a column for each run; apart those that only some have."""
    trees = [flat(yaml.safe_load(dump_recipe(run.recipe))) for run in runs]
    shared: list[list[Cell | str]] = []
    others: list[list[Cell | str]] = []
    for key in dict.fromkeys(key for tree in trees for key in tree):
        values = [as_word(tree[key]) if key in tree else "" for tree in trees]
        if key in _SAYS_NOTHING or len(set(values)) == 1:
            continue
        everywhere = all(key in tree for tree in trees)
        (shared if everywhere else others).append([key, *values])
    columns = [Column("key"), *(Column(name) for name in names)]
    title = "Keys in which the recipes differ"
    none = "" if shared else "There are none."
    tables = [Table("recipe-differences", title, columns, shared, caption=none, shown=60)]
    if others:
        title = "Keys that only some of the recipes have, as those of a method"
        tables.append(Table("recipe-others", title, columns, others, folded=True, shown=100))
    return tables
