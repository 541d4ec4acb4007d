"""results.md and results.csv: every number with how many seeds it is of."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from adafilter_dist.compare.conclusion import conclusion, p_text
from adafilter_dist.compare.rows import ContenderResult, Cost, Results
from adafilter_dist.compare.statistics import Estimate
from adafilter_dist.compare.tuning_summary import TuningSummary

_NONE = "-"
_READING = """\
Accuracies are top-1 on the test set in percent, with the 95 % interval of their mean over seeds
(Student's t). Differences are paired by seed and test picture, in points, with the 95 % interval
over seeds and pictures; p is two-sided and corrected for the number of contenders (Holm). The rank
is by mean accuracy, its interval holds for all contenders together. n counts seeds. How all of it
is computed, and how often the intervals contain the truth, is in docs/compare.md."""


def markdown(results: Results, *, figure: bool = False) -> str:
    """The conclusion, tables of accuracies, costs and tuning, and what is missing."""
    rows = results.contenders
    seeds = f"seed{'s' * (len(results.seeds) > 1)} {', '.join(map(str, results.seeds))}"
    pictures = f"{results.pictures:,} test pictures" if results.pictures else "no run finished"
    if results.pictures and not results.same_pictures:
        pictures += ", others for each seed"
    parts = [f"# {results.name}: comparison", conclusion(results), f"{seeds}; {pictures}."]
    if figure:
        parts.append("![accuracies and differences](results.svg)")
    parts += [_accuracies(results)]
    parts += [f"{each.title}: minus {each.reference}." for each in rows if each.reference]
    parts += [_READING]
    parts += [table for table in (_costs(results), _tuning(results)) if table]
    missing = [f"- {each.title}: {why}" for each in results.contenders for why in each.problems]
    if missing:
        parts += ["## Missing", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def percent(estimate: Estimate | None, sign: str = "") -> str:
    """A share as percent with its interval."""
    if estimate is None:
        return _NONE
    value = f"{100 * estimate.value:{sign}.1f}"
    if estimate.low is None or estimate.high is None:
        return f"{value} (one seed)"
    if not sign:
        return f"{value} ± {100 * (estimate.high - estimate.value):.1f}"
    return f"{value} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def _accuracies(results: Results) -> str:
    rows = []
    for each in results.contenders:
        base = each.name == results.base
        rank = _NONE
        if each.rank is not None:
            rank = f"{each.rank.value:g} [{each.rank.low}, {each.rank.high}]"
            if len(results.rank_seeds) < len(results.seeds):
                rank += f" (n {len(results.rank_seeds)})"
        difference = "base" if base else percent(each.difference, "+")
        compared = each.difference.seeds if each.difference else 0
        if each.accuracy and each.difference and compared < each.accuracy.seeds:
            difference += f" (n {compared})"
        p = _NONE if each.p is None else p_text(each.p)
        rows.append(
            [
                f"**{each.title}**" if each.differs else each.title,
                percent(each.accuracy),
                f"{len(each.by_seed)}",
                difference,
                p,
                rank,
                _NONE if each.loss is None else f"{each.loss.value:.3f}",
            ]
        )
    base_title = results.contender(results.base).title
    head = ["", "accuracy", "n", f"minus {base_title}", "p", "rank", "loss"]
    return _table(head, rows)


def _costs(results: Results) -> str:
    rows = []
    for each in results.contenders:
        cost = each.cost
        if cost is not None:
            memory = None if cost.peak_memory is None else cost.peak_memory / 2**20
            trained = cost.trained_parameters
            rows.append(
                [
                    each.title,
                    _cost(cost, "step_seconds", _scaled(cost.step_seconds, 1000), ".1f"),
                    _cost(cost, "step_cpu_seconds", _scaled(cost.step_cpu_seconds, 1000), ".1f"),
                    _cost(cost, "peak_memory", memory, ",.0f"),
                    _cost(cost, "trained_parameters", trained, ",.0f"),
                    f"{cost.runs}",
                ]
            )
    if not rows:
        return ""
    head = ["", "ms a step", "CPU ms a step", "peak memory, MiB", "trained parameters", "n"]
    of = {each.cost.memory_of for each in results.contenders if each.cost}
    base = results.contender(results.base).title
    title = f"## Cost\n\nIn brackets relative to {base}; memory of the {' or '.join(sorted(of))}."
    return f"{title}\n\n{_table(head, rows)}"


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _cost(cost: Cost, name: str, value: float | None, form: str) -> str:
    if value is None:
        return _NONE
    relative = cost.relative.get(name)
    return f"{value:{form}}" + ("" if relative is None else f" ({relative:.2f}x)")


def _tuning(results: Results) -> str:
    rows, edges = [], []
    for each in results.contenders:
        tuning = each.tuning
        if tuning is None:
            continue
        chosen = ", ".join(f"{key}={value:g}" for key, value in tuning.chosen.items())
        rows.append(
            [
                each.title,
                f"`{chosen}`" if chosen else _NONE,
                f"{100 * tuning.best:.1f}",
                f"{100 * tuning.median:.1f}",
                f"{100 * tuning.worst:.1f}",
                f"{tuning.near} of {tuning.finished}",
                f"{tuning.finished} of {tuning.planned}",
            ]
        )
        edges += [f"- {each.title}: {edge}; better values may lie beyond" for edge in tuning.edges]
    if not rows:
        return ""
    head = ["", "chosen", "best trial", "median", "worst", "within 1 point", "trials"]
    text = "## Tuning\n\nValidation accuracies of the trials, in percent."
    text += f"\n\n{_table(head, rows)}"
    return f"{text}\n\nAt the edge of what was tried:\n\n{chr(10).join(edges)}" if edges else text


def csv_text(results: Results) -> str:
    """One row a contender; accuracies as shares, empty cells for what is not known."""
    text = io.StringIO()
    rows = [_flat(each, results) for each in results.contenders]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(each: ContenderResult, results: Results) -> dict[str, Any]:
    row: dict[str, Any] = {"name": each.name, "title": each.title, "base": results.base}
    for name in ("accuracy", "difference", "loss"):
        estimate: Estimate | None = getattr(each, name)
        columns = ("value", "low", "high", "error", "df", "p", "seeds", "pictures")
        known = {} if estimate is None else estimate.to_dict()
        for column in columns:
            row[f"{name}_{column}"] = known.get(column)
    row["difference_p_corrected"] = each.p
    low, high = each.bootstrap or (None, None)
    row |= {"difference_bootstrap_low": low, "difference_bootstrap_high": high}
    rank = {} if each.rank is None else each.rank.to_dict()
    row |= {f"rank_{name}": rank.get(name) for name in ("value", "low", "high")}
    for name in ("step_seconds", "step_cpu_seconds", "peak_memory", "trained_parameters"):
        row[name] = None if each.cost is None else getattr(each.cost, name)
        row[f"{name}_relative"] = None if each.cost is None else each.cost.relative.get(name)
    tuning = each.tuning
    numbers = [one.name for one in fields(TuningSummary) if one.type in ("int", "float")]
    row |= {f"tuning_{name}": tuning and getattr(tuning, name) for name in numbers}
    row["tuning_chosen"] = (
        None if tuning is None else " ".join(f"{k}={v:g}" for k, v in tuning.chosen.items())
    )
    row["tuning_edges"] = None if tuning is None else "; ".join(tuning.edges)
    row["problems"] = "; ".join(each.problems)
    return row
