"""Gates for domains fit the domains of the data, or one line says what does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.evaluate.oracle import require_oracle

DATA: Any = SimpleNamespace(domains=["near", "far"], folder=Path("/data/prepared"))
NONE: Any = SimpleNamespace(domains=[], folder=Path("/data/prepared"))


def test_each_domain_has_its_gate() -> None:
    require_oracle({"far": 1, "near": 0}, DATA)
    require_oracle(None, DATA)
    require_oracle(None, NONE)


@pytest.mark.parametrize(
    ("oracle", "data", "said"),
    [
        ({"near": 0, "farr": 1}, DATA, r"no domain 'farr' in the data \(did you mean 'far'"),
        ({"near": 0}, DATA, "no gate for domain 'far'"),
        ({"near": 0}, NONE, "/data/prepared have none; give data.csv a column domain"),
    ],
)
def test_what_does_not_fit(oracle: dict[str, float], data: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        require_oracle(oracle, data)
