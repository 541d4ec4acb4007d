"""Names of contenders that are averaged from finished runs: CONTENDER+KIND."""

from __future__ import annotations

from adafilter_dist.errors import UserError, nearest

AVERAGE_KINDS = {"wise_ft": "WiSE-FT", "soup": "greedy soup", "uniform_soup": "uniform soup"}
"""What CONTENDER+KIND may be averaged to, with their titles."""


def split_average(name: str) -> tuple[str, str]:
    """(contender, kind) of CONTENDER+KIND; UserError where the kind is not known."""
    contender, _, kind = name.partition("+")
    if kind not in AVERAGE_KINDS:
        known = ", ".join(AVERAGE_KINDS)
        raise UserError(
            f"{name}: no average of this kind{nearest(kind, AVERAGE_KINDS)}; there are: {known}"
        )
    return contender, kind
