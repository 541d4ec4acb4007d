"""95 % intervals of accuracies on one set of pictures, and how numbers are written."""

from __future__ import annotations

import math

_Z = 1.959964


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, ``right`` of ``n``; ValueError without pictures.

    Wilson, Journal of the American Statistical Association 22, 1927. It stays within 0 to 1, and
    is no point where all or none are right.
    """
    if n < 1:
        raise ValueError("a share needs at least one picture")
    p, spread = right / n, _Z * _Z / n
    middle = (p + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def percent(share: float) -> str:
    """``63.4 %``."""
    return f"{100 * share:.1f} %"


def between(low: float, high: float) -> str:
    """``61.2 to 65.4 %``."""
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def points(low: float, high: float) -> str:
    """An interval of a difference in points: ``-0.4 to +1.3``."""
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def span(seconds: float) -> str:
    """``42 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
