"""The plan of a comparison: what is trained, resolved once and kept in the comparison's folder.

plan.json holds the resolved recipe of every contender, so that a recipe file which changes later
changes nothing. It has its own sha256 inside: edited by hand, it is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adafilter_dist.compare.design import Point
from adafilter_dist.compare.space import Dimension
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.identity import flat, numbers_of
from adafilter_dist.recipe.mistakes import lines_of
from adafilter_dist.recipe.tree import put
from adafilter_dist.recipe.word import as_word
from adafilter_dist.recipe.younger_keys import filled_in
from adafilter_dist.system.files import write_bytes
from adafilter_dist.system.sealed_files import DamagedError, read_manifest, sealed

FILE = "plan.json"
_FORMAT = 1
_SHOWN = 4


@dataclass(frozen=True)
class PlannedContender:
    """A contender with its recipe, resolved but for what its trials search and for the seed."""

    name: str
    title: str
    recipe: Recipe
    space: tuple[Dimension, ...]

    def settings(self, point: Point) -> dict[str, float]:
        """The values of its keys at a point of the design."""
        return {
            dimension.key: dimension.at(share)
            for dimension, share in zip(self.space, point, strict=False)
        }

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """Its recipe with these keys set; UserError for values that a recipe cannot have.

        Rates that the recipe gives to head and gate keep their ratio to ``optim.lr``.
        """
        tree = self.recipe.model_dump(mode="json")
        optim = self.recipe.optim
        for key, value in settings.items():
            put(tree, key, value)
        if "optim.lr" in settings:
            for name in ("lr_head", "lr_gate"):
                if (rate := getattr(optim, name)) is not None:
                    ratio = settings["optim.lr"] / optim.lr
                    tree["optim"][name] = float(f"{rate * ratio:.6g}")
        try:
            return Recipe.model_validate(tree)
        except ValidationError as error:
            raise UserError("\n".join(lines_of(error))) from None


@dataclass(frozen=True)
class Plan:
    """Contenders in their order, which of them is the ``base`` of differences, seeds and trials.

    ``tune``: trials of each contender, 0 for none, at the points of ``design``, trained with the
    seed ``tune_seed``, which is none of ``seeds``. ``draws``: the training pictures are drawn, by
    each run's seed. ``averages`` name what is averaged afterwards from runs of a contender, as
    CONTENDER+KIND. ``name`` is the recipe's.
    """

    name: str
    contenders: tuple[PlannedContender, ...]
    base: str
    seeds: tuple[int, ...]
    tune: int
    tune_seed: int
    design: tuple[Point, ...]
    draws: bool = False
    averages: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan in a comparison's folder; UserError where there is none, or it was changed."""
        path = folder / FILE
        if not path.is_file():
            raise UserError(f"{folder}: not the folder of a comparison (no {FILE} in it)")
        try:
            row = read_manifest(path)
            if row["format"] != _FORMAT:
                raise UserError(f"{path}: of a newer version of adafilter-dist")
            contenders = tuple(
                PlannedContender(
                    name=each["name"],
                    title=each["title"],
                    recipe=Recipe.model_validate(filled_in(each["recipe"])),
                    space=tuple(Dimension.from_dict(one) for one in each["space"]),
                )
                for each in row["contenders"]
            )
            return cls(
                name=row["name"],
                contenders=contenders,
                base=row["base"],
                seeds=tuple(row["seeds"]),
                tune=row["tune"],
                tune_seed=row["tune_seed"],
                design=tuple(tuple(point) for point in row["design"]),
                draws=row["draws"],
                averages=tuple(row["averages"]),
            )
        except (DamagedError, KeyError, TypeError, ValidationError) as error:
            raise UserError(
                f"{path}: damaged, or edited by hand ({str(error).splitlines()[0]}); put back what "
                "was there, or compare in another compare_dir=PATH"
            ) from None

    def write(self, folder: Path) -> None:
        """Keep the plan in ``folder``, which is there. Raises OSError."""
        row = {
            "format": _FORMAT,
            "name": self.name,
            "base": self.base,
            "seeds": list(self.seeds),
            "tune": self.tune,
            "tune_seed": self.tune_seed,
            "draws": self.draws,
            "averages": list(self.averages),
            "design": [list(point) for point in self.design],
            "contenders": [
                {
                    "name": each.name,
                    "title": each.title,
                    "space": [dimension.to_dict() for dimension in each.space],
                    "recipe": each.recipe.model_dump(mode="json"),
                }
                for each in self.contenders
            ],
        }
        write_bytes(folder / FILE, sealed(row))

    def contender(self, name: str) -> PlannedContender:
        """The contender of that name; KeyError if there is none."""
        return {each.name: each for each in self.contenders}[name]

    @property
    def numbers(self) -> dict[str, Any]:
        """What the results depend on, flat: neither the order of contenders nor the base."""
        rows: dict[str, Any] = {
            "methods": sorted(each.name for each in self.contenders),
            "seeds": list(self.seeds),
            "tune": self.tune,
            "a draw of pictures each seed": self.draws,
        }
        if self.tune:
            rows["tune_seed"] = self.tune_seed
        for each in self.contenders:
            # The seed is that of each run.
            numbers = {k: v for k, v in flat(numbers_of(each.recipe)).items() if k != "seed"}
            rows |= {f"{each.name} {key}": value for key, value in numbers.items()}
            if self.tune:
                for one in each.space:
                    bounds = [one.low, one.high, one.scale]
                    rows[f"{each.name} search of {one.key}"] = bounds
        return rows

    @property
    def hash(self) -> str:
        """8 hex digits that name the comparison."""
        return hashlib.sha256(json.dumps(self.numbers, sort_keys=True).encode()).hexdigest()[:8]

    def require_same(self, kept: Plan, folder: Path) -> None:
        """UserError with what differs unless a comparison of ``kept`` may go on as this one."""
        old, new = kept.numbers, self.numbers
        if old == new:
            return
        keys = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
        # First what was said by words of the comparison; contenders that came or went say the rest.
        if old["methods"] != new["methods"]:
            both = set(old["methods"]) & set(new["methods"])
            keys = [key for key in keys if " " not in key or key.split()[0] in both]
        keys.sort(key=lambda key: (" " in key, key))
        parts = [
            f"{key}: {_value(old.get(key))} -> {_value(new.get(key))}" for key in keys[:_SHOWN]
        ]
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        raise UserError(
            f"{folder} holds another comparison ({', '.join(parts)}{more}); give the words that it "
            "was started with, or another compare_dir=PATH"
        )


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return as_word(value)


def default_folder(plan: Plan) -> Path:
    """runs/<name>/compare-<8 hex of the plan>."""
    return Path("runs") / plan.name / f"compare-{plan.hash}"


def trial_run(folder: Path, contender: str, k: int) -> Path:
    """The run folder of a contender's trial ``k``, counted from 0."""
    return folder / "trials" / contender / str(k)


def final_run(folder: Path, contender: str, seed: int) -> Path:
    """The run folder of a contender with the settings that tuning chose, of one seed."""
    return folder / "runs" / contender / f"seed-{seed}"
