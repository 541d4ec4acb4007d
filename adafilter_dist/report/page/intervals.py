"""How shares, intervals and times are written."""

from __future__ import annotations


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
