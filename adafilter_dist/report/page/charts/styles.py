"""Colours, dashes and sizes that the kinds of charts share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

SERIES = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [1, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond")
ROW = 15  # pixels of a row of a heat map
ROW_OF_INTERVALS = 32
NAME_PIXELS = 240  # of the name of a layer or a class: DenseNet's layers have 39 letters
NAME_WIDTH = {"expr": f"windowSize()[0] < 700 ? 120 : {NAME_PIXELS}"}  # a phone has less room


def dashes(number: int) -> list[list[int]]:
    """Dashes that differ where colours are the same again."""
    return [DASHES[(i + i // len(SERIES)) % len(DASHES)] for i in range(number)]


def cycled(items: Sequence[Any], number: int) -> Iterable[Any]:
    """``number`` of the items, from the first again after the last."""
    return (items[i % len(items)] for i in range(number))
