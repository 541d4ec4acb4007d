"""Checks, key by key, what may change in a recipe when its run is resumed."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adafilter_dist.errors import UserError, nearest
from adafilter_dist.recipe.extension import LENGTH, Change, arrow, resolve_length, with_optim
from adafilter_dist.recipe.identity import flat, numbers_of
from adafilter_dist.recipe.keys import keys_of
from adafilter_dist.recipe.schema import Recipe

# How this attempt was asked for, not what the run is: never written into the run's recipe.
_OF_THE_ATTEMPT = ("resume", "run_dir")
_CONSEQUENCES = {
    "train.global_batch": "; the epoch goes on at the new batch that holds the first sample not "
    "seen yet, and up to a batch is seen twice"
}


@dataclass(frozen=True)
class RecipeDecision:
    """The recipe to run and to keep in the run folder, its changes (old, new), lines to print."""

    recipe: Recipe
    changes: dict[str, tuple[Any, Any]]
    notices: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether the run folder's recipe has to be written anew."""
        return bool(self.changes)


def check_changes(
    old: Recipe, new: Recipe, allow: Collection[str] = (), *, run: Path | str = "RUN"
) -> RecipeDecision:
    """Whether a run of ``old`` may go on as ``new``, and as which recipe exactly.

    ``allow`` names keys or sections that may differ although they change the numbers; ``run`` is
    the run folder, for messages. Raises UserError with a line for each key that may not change, or
    for a key in ``allow`` that there is not.
    """
    require_known(allow)
    kept, differences = resolve_length(old, new, run)
    differences += _others(old, kept)
    refused = [
        change for change in differences if not change.free and not covers(allow, change.key)
    ]
    if refused:
        raise UserError(_refusal(refused, run))
    kept = _checked(kept.model_copy(update={key: getattr(old, key) for key in _OF_THE_ATTEMPT}))
    notices = [
        f"{change.key}: {change.values}"
        + ("" if change.free else " (allowed by --allow-mismatch)")
        + change.effect
        for change in differences
    ]
    changes = _changes(old, kept)
    numbers = flat(numbers_of(old)).keys() | flat(numbers_of(kept)).keys()
    free = [f"{key}: {arrow(*pair)}" for key, pair in changes.items() if key not in numbers]
    if free:
        notices.append("; ".join(free))
    return RecipeDecision(kept, changes, tuple(notices))


def begin(recipe: Recipe) -> RecipeDecision:
    """The recipe of a new run, without the keys that only extended runs use."""
    if recipe.optim.schedule_on_extend is None:
        return RecipeDecision(recipe, {}, ())
    notice = (
        f"optim.schedule_on_extend={recipe.optim.schedule_on_extend} means nothing to a new run; "
        "a run is extended by: adafilter resume RUN train.epochs=N"
    )
    return RecipeDecision(with_optim(recipe, schedule_on_extend=None), {}, (notice,))


def require_end(
    old: Recipe, new: Recipe, step: int, steps_per_epoch: int, *, run: Path | str = "RUN"
) -> None:
    """UserError if ``new`` ends before ``step``, which is trained already.

    ``steps_per_epoch`` belongs to ``step``: both as ``old`` counts them, or both as ``new`` does.
    """
    if new.train.epochs * steps_per_epoch < step:
        raise UserError(
            f"train.epochs: {arrow(old.train.epochs, new.train.epochs)} ends before the "
            f"{step / steps_per_epoch:.4g} epochs that are trained already; `adafilter resume "
            f"{run}` goes on with {old.train.epochs}; for a fresh run add resume=never or another "
            "run_dir=PATH"
        )


def translate_step(
    step: int,
    old_steps_per_epoch: int,
    old_global_batch: int,
    new_steps_per_epoch: int,
    new_global_batch: int,
) -> int:
    """Where a run at ``step`` stands when it is counted in batches of another size.

    The same epoch, and of its new batches the last that begins at or before the samples consumed:
    none is skipped, up to a batch of them is seen twice.
    """
    epoch, batches = divmod(step, old_steps_per_epoch)
    first = batches * old_global_batch // new_global_batch
    # The old batches may reach into the tail that the new ones drop.
    return epoch * new_steps_per_epoch + min(first, new_steps_per_epoch - 1)


def require_known(allow: Collection[str]) -> None:
    """UserError for what is no key and no section of a recipe, naming the nearest."""
    keys = sorted(set(keys_of(Recipe)))
    lines = []
    for word in allow:
        if word not in keys:
            tails = [key for key in keys if key.endswith(f".{word}")]
            hint = f" (did you mean {tails[0]!r}?)" if tails else nearest(word, keys)
            lines.append(
                f"--allow-mismatch {word}: no such key{hint}; give a full key such as optim.lr, or "
                "a section such as optim"
            )
    if lines:
        raise UserError("\n".join(lines))


def covers(allow: Collection[str], key: str) -> bool:
    """Whether a key, or a section that it is in, is among ``allow``."""
    return any(key == word or key.startswith(f"{word}.") for word in allow)


def _others(old: Recipe, new: Recipe) -> list[Change]:
    a, b = flat(numbers_of(old)), flat(numbers_of(new))
    differences = []
    for key in sorted(a.keys() | b.keys()):
        # Where a section became another one, the keys that only one of them has follow from that.
        kind = f"{key.partition('.')[0]}.name"
        follows = (key in a) != (key in b) and a.get(kind) != b.get(kind)
        if a.get(key) != b.get(key) and key not in LENGTH and not follows:
            values = arrow(a.get(key), b.get(key))
            differences.append(Change(key, values, effect=_CONSEQUENCES.get(key, "")))
    return differences


def _changes(old: Recipe, kept: Recipe) -> dict[str, tuple[Any, Any]]:
    a, b = flat(old.model_dump(mode="json")), flat(kept.model_dump(mode="json"))
    keys = sorted((a.keys() | b.keys()) - {"optim.schedule_on_extend"})
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def _refusal(refused: list[Change], run: Path | str) -> str:
    keys = " ".join(f"--allow-mismatch {change.key}" for change in refused)
    return "\n".join(
        [
            f"{run} holds a run of another recipe:",
            *(f"{change.key}: {change.values}{change.advice}" for change in refused),
            f"for a fresh run add resume=never or another run_dir=PATH; for those who know: {keys}",
        ]
    )


def _checked(recipe: Recipe) -> Recipe:
    """Checked once more: a recipe that cannot be read back must not be kept."""
    try:
        return Recipe.model_validate(recipe.model_dump())
    except ValidationError as error:
        lines = [item["msg"].removeprefix("Value error, ") for item in error.errors()]
        raise UserError("\n".join(lines)) from None


def add_allow_mismatch(parser: argparse.ArgumentParser) -> None:
    """The option by which a run goes on with other numbers than it began with."""
    parser.add_argument(
        "--allow-mismatch",
        action="append",
        default=[],
        metavar="KEY",
        help="go on although this key or section (optim.lr, data) changes the numbers of the run; "
        "may be given again",
    )
