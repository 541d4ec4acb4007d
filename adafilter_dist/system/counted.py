"""How many of a thing there are, in words."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """``1 restart``, ``2,000 restarts``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
