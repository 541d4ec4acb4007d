"""The 95 % interval of an accuracy on one set of pictures."""

from __future__ import annotations

import math

Z = 1.959964
"""The normal distribution holds 95 % within so many standard deviations."""


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, ``right`` of ``n``; ValueError without pictures.

    Wilson, Journal of the American Statistical Association 22, 1927. It stays within 0 to 1, and
    is no point where all or none are right.
    """
    if n < 1:
        raise ValueError("a share needs at least one picture")
    p, spread = right / n, Z * Z / n
    middle = (p + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)
