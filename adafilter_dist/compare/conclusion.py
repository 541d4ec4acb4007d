"""The first sentence of a comparison: what came out, or that nothing did."""

from __future__ import annotations

from collections.abc import Sequence

from adafilter_dist.compare.rows import ContenderResult, Results
from adafilter_dist.compare.statistics import LEVEL, Estimate


def conclusion(results: Results) -> str:
    """What came out, in a few plain sentences."""
    base = results.contender(results.base)
    others = [each for each in results.contenders if each.name != results.base]
    judged = [each for each in others if each.p is not None]
    so_far = ""
    if results.missing:
        so_far = f"So far, with {results.missing} of {results.planned} runs missing: "
    if not others:
        text = f"only {base.title} was run, with nothing to compare it with."
    elif base.accuracy is None:
        text = f"nothing can be said, because no run of {base.title} is finished."
    elif not judged:
        text = (
            f"nothing can be said of differences to {base.title}, because they need two seeds that "
            "both have finished."
        )
    else:
        text = _judge(judged, base)
        if unknown := [each.title for each in others if each.p is None]:
            text += f" Fewer than two seeds to judge by: {', '.join(unknown)}."
    text = so_far + text
    return text[0].upper() + text[1:]


def _judge(judged: Sequence[ContenderResult], base: ContenderResult) -> str:
    number = len(judged)
    how = f"p < {1 - LEVEL:g} after Holm's correction for {number} comparison{'s' * (number > 1)}"
    sides = []
    for side, sign in (("above", 1), ("below", -1)):
        names = [
            f"{each.title} ({points(each.difference)}, {_p(each)})"
            for each in judged
            if each.differs and each.difference and sign * each.difference.value > 0
        ]
        if names:
            sides.append(f"{side} {base.title}: {'; '.join(names)}.")
    if not sides:
        if number == 1:
            return f"{judged[0].title} does not differ from {base.title} ({how})."
        return f"none of the {number} other methods differs from {base.title} ({how})."
    sides = [sides[0], *(side[0].upper() + side[1:] for side in sides[1:])]
    rest = [each.title for each in judged if not each.differs]
    same = [f"Not told apart from it: {', '.join(rest)}."] if rest else []
    return " ".join([*sides, *same, f"Above and below mean {how}."])


def _p(each: ContenderResult) -> str:
    text = p_text(each.p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def points(estimate: Estimate | None) -> str:
    """A difference in points with its interval."""
    assert estimate is not None and estimate.low is not None and estimate.high is not None
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def p_text(value: float | None) -> str:
    """A p-value in two digits."""
    assert value is not None
    return f"{value:.2g}" if value >= 0.0001 else "< 0.0001"
