"""Checks the gates that a recipe names for domains against the domains of the data."""

from __future__ import annotations

from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.errors import UserError, nearest
from adafilter_dist.models.gating.control_gates import OracleGates

_SHOWN = 10


def require_oracle(
    oracle: OracleGates | None, prepared: Prepared, key: str = "evaluate.oracle"
) -> None:
    """UserError unless ``oracle`` is None, or names a gate for each domain and no other.

    ``key`` is where it stands in the recipe.
    """
    names = prepared.domains
    if oracle is None:
        return
    if not names:
        raise UserError(
            f"{key} names gates for domains, and the pictures in {prepared.folder} have "
            f"none; give data.csv a column domain, or leave {key} out"
        )
    for name in oracle:
        if name not in names:
            raise UserError(
                f"{key}: no domain {name!r} in the data{nearest(name, names)}; there "
                f"are: {', '.join(names[:_SHOWN])}"
            )
    if missing := [name for name in names if name not in oracle]:
        raise UserError(
            f"{key}: no gate for domain {missing[0]!r}; give each domain a number from 0 "
            "(pre-trained filters) to 1 (fine-tuned ones)"
        )
