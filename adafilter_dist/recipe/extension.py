"""More epochs for a run that has begun, and what becomes of its learning-rate schedule."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafilter_dist.errors import resume_line
from adafilter_dist.recipe.schema import Recipe

# Judged together: what more epochs mean depends on the schedule's length.
LENGTH = ("train.epochs", "optim.schedule_epochs")


@dataclass(frozen=True)
class Change:
    """One key that differs and is part of the numbers."""

    key: str
    values: str
    free: bool = False
    advice: str = ""  # added to the line that refuses it
    effect: str = ""  # added to the notice when it is let through


def resolve_length(old: Recipe, new: Recipe, run: Path | str) -> tuple[Recipe, list[Change]]:
    """``new`` with ``schedule_on_extend`` put into effect, and how its length differs.

    More epochs are free where the rate does not depend on them, or where ``schedule_on_extend``
    says what the rate becomes; fewer only under a schedule that has no length.
    """
    before, after = old.train.epochs, new.train.epochs
    kept = with_optim(new, schedule_epochs=_schedule_epochs(old, new), schedule_on_extend=None)
    # Another kind of schedule is a change of its own, beside which its length says nothing.
    moved = old.optim.schedule == new.optim.schedule and _span(old) != _span(kept)
    outright = _outright(old, new)
    differences = []
    if after > before:
        free = not moved or outright or new.optim.schedule_on_extend is not None
        advice, effect = _how_to_extend(old, after), _effect(kept, moved)
        differences.append(Change(LENGTH[0], arrow(before, after), free, advice, effect))
    elif after < before:
        free = "cosine" not in (old.optim.schedule, new.optim.schedule)
        advice = f"; the run is longer: `{resume_line(run)}` goes on with {before}"
        effect = _effect(kept, moved) + (
            f"; the run now ends earlier: `{resume_line(run, f'train.epochs={before}')}` undoes it"
        )
        differences.append(Change(LENGTH[0], arrow(before, after), free, advice, effect))
    a, b = old.optim.schedule_epochs, kept.optim.schedule_epochs
    if moved and a != b and (outright or after <= before):
        advice = f"; `{resume_line(run)}` keeps the schedule that the run has"
        differences.append(Change(LENGTH[1], arrow(a, b), advice=advice))
    return kept, differences


def _outright(old: Recipe, new: Recipe) -> bool:
    """Whether another length of the schedule is asked for by its number."""
    return new.optim.schedule_epochs not in (None, old.optim.schedule_epochs)


def _schedule_epochs(old: Recipe, new: Recipe) -> int | None:
    """``optim.schedule_epochs`` after ``schedule_on_extend``."""
    had, grows = old.optim.schedule_epochs, new.train.epochs > old.train.epochs
    on_extend = new.optim.schedule_on_extend
    if _outright(old, new) or new.optim.schedule == "constant":
        return new.optim.schedule_epochs
    if on_extend == "hold":
        # Without growth too: the words that extended a run go on with it after a stop.
        return had or (old.train.epochs if grows else None)
    if on_extend == "stretch" and grows:
        return None
    return new.optim.schedule_epochs


def _span(recipe: Recipe) -> int | None:
    """The schedule's length in epochs, as far as the rate depends on it."""
    optim = recipe.optim
    if optim.schedule == "constant":
        return None
    if optim.schedule == "cosine":
        return optim.schedule_epochs or recipe.train.epochs
    return optim.schedule_epochs


def _how_to_extend(old: Recipe, epochs: int) -> str:
    return (
        f"; add optim.schedule_on_extend=stretch (a schedule of {epochs} epochs: the learning rate "
        f"jumps where the run goes on) or optim.schedule_on_extend=hold (the schedule keeps its "
        f"{_span(old)} epochs, and its last rate is held afterwards)"
    )


def _effect(kept: Recipe, moved: bool) -> str:
    length = kept.optim.schedule_epochs
    if kept.optim.schedule != "constant" and length is not None:
        held = ", and its last rate is held afterwards" if length < kept.train.epochs else ""
        return f"; the schedule is {length} epochs long{held}"
    if moved:
        return (
            f"; the schedule is now {kept.train.epochs} epochs long, so the learning rate jumps "
            "where the run goes on"
        )
    return ""


def with_optim(recipe: Recipe, **fields: Any) -> Recipe:
    """``recipe`` with other values in its optim section."""
    return recipe.model_copy(update={"optim": recipe.optim.model_copy(update=fields)})


def arrow(old: Any, new: Any) -> str:
    """``old -> new``, each as it is written in a recipe."""
    return " -> ".join(
        value if isinstance(value, str) else json.dumps(value) for value in (old, new)
    )
