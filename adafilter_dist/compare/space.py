"""The search space of a contender: which keys its trials try, and between which bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

_DIGITS = 4


@dataclass(frozen=True)
class Dimension:
    """One key of the recipe, tried between two bounds; ``scale``: evenly in the value or its log.

    ``adamw``: the bounds under ``optim.name=adamw``, where they are others.
    """

    key: str
    low: float
    high: float
    scale: Literal["log", "linear"] = "log"
    adamw: tuple[float, float] | None = None

    def for_optimizer(self, name: str) -> Dimension:
        """The dimension with the bounds that hold under this optimizer."""
        low, high = self.adamw if name == "adamw" and self.adamw else (self.low, self.high)
        return Dimension(self.key, low, high, self.scale)

    def at(self, share: float) -> float:
        """The value at ``share`` (0 to 1) of the way, in four digits."""
        if self.scale == "log":
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + share * (high - low))
        else:
            value = self.low + share * (self.high - self.low)
        return float(f"{value:.{_DIGITS}g}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for :meth:`from_dict`."""
        return {"key": self.key, "low": self.low, "high": self.high, "scale": self.scale}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Dimension:
        """The dimension that :meth:`to_dict` wrote."""
        return cls(row["key"], float(row["low"]), float(row["high"]), row["scale"])
