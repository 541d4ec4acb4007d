"""From the words of ``adafilter compare`` to a plan."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.compare.average_names import split_average
from adafilter_dist.compare.contenders import CONTENDERS, Contender, require_contenders
from adafilter_dist.compare.design import DIMENSIONS, sobol_points
from adafilter_dist.compare.plan import Plan, PlannedContender, default_folder
from adafilter_dist.compare.runs import is_drawn
from adafilter_dist.errors import UserError, nearest, shown
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.recipe.comma_list import split_list
from adafilter_dist.recipe.keys import keys_of, sections_in

OWN_WORDS = ("methods", "seeds", "tune", "tune_seed", "base", "compare_dir")
_TUNE_SEED = 1000
_MOST_TRIALS = 1024
_MOST_SEEDS = 1000
_SEEDS = re.compile(r"(\d{1,19})(?:\.\.(\d{1,19}))?")
# What each run has of its own.
_REFUSED = {
    "seed": "the seeds are those of seeds=0..4",
    "run_dir": "the runs lie in the comparison's folder, compare_dir=PATH",
    "resume": "the same command goes on where it stopped; compare_dir=PATH starts another",
    "method": "the methods are those of methods=",
    "method.name": "the methods are those of methods=",
    "evaluate.test": "trials never see the test set, and all other runs do, once",
}


@dataclass(frozen=True)
class Request:
    """What a command asks for: the plan, and the folder where it is kept."""

    plan: Plan
    folder: Path


def read_request(words: Sequence[str]) -> Request:
    """The comparison that the words mean. Raises UserError with a line for each mistake."""
    own: dict[str, str] = {}
    rest: list[str] = []
    mistakes: list[str] = []
    for word in words:
        key, sign, text = word.partition("=")
        if not sign and key in OWN_WORDS:
            mistakes.append(f"{key}: of what value? {key}=VALUE")
        elif key in OWN_WORDS:
            own[key] = text  # of two the last one holds, as in a recipe's words
        elif key in _REFUSED:
            mistakes.append(f"{shown(word)}: not for a comparison: {_REFUSED[key]}")
        elif "." not in key and (close := nearest(key, OWN_WORDS)) and not _is_key(key):
            mistakes.append(f"{shown(word)}: not known{close}")
        else:
            rest.append(word)

    every = [name.strip() for name in split_list(own.get("methods", ""))]
    averages = [name for name in every if "+" in name]
    names = [name for name in every if name not in averages]
    seeds = tune = tune_seed = None
    try:
        seeds = _seeds(own.get("seeds", "0..4"))
    except UserError as error:
        mistakes.append(str(error))
    try:
        tune = _whole("tune", own.get("tune", "8"), _MOST_TRIALS)
        tune_seed = _whole("tune_seed", own["tune_seed"], 2**63 - 1) if "tune_seed" in own else None
    except UserError as error:
        mistakes.append(str(error))
    if every == [""]:
        mistakes.append(f"which methods? add methods=A,B, of: {', '.join(CONTENDERS)}")
    else:
        try:
            require_contenders(names)
            _require_averages(averages, names)
        except UserError as error:
            mistakes += str(error).splitlines()
    base = own.get("base") or ("finetune" if "finetune" in names else "".join(names[:1]))
    if names and names != [""] and base not in names:
        mistakes.append(
            f"base={shown(base)}: none of methods={','.join(names)}{nearest(base, names)}"
        )
    if mistakes or seeds is None or tune is None:
        raise UserError("\n".join(mistakes))
    if tune_seed is None:
        tune_seed = next(s for s in range(_TUNE_SEED, 2**62) if s not in seeds)
    elif tune_seed in seeds:
        raise UserError(
            f"tune_seed={tune_seed}: is one of seeds=; what tuning has seen must not be counted"
        )

    contenders = _planned(names, rest)
    plan = Plan(
        name=contenders[0].recipe.name,
        contenders=contenders,
        base=base,
        seeds=seeds,
        tune=tune,
        tune_seed=tune_seed,
        design=sobol_points(tune) if tune else (),
        draws=is_drawn(contenders[0].recipe.data)
        and not any(word.startswith(("data.split_seed=", "data.draw=")) for word in rest),
        averages=tuple(averages),
    )
    folder = own.get("compare_dir")
    return Request(plan, Path(folder).expanduser() if folder else default_folder(plan))


def _require_averages(averages: Sequence[str], names: Sequence[str]) -> None:
    """UserError for an average of an unknown kind, of a method that is not compared, or twice."""
    for name in averages:
        contender, _ = split_average(name)
        if contender not in names:
            raise UserError(
                f"methods={shown(name)}: {shown(contender)} must be one of methods=, too"
                f"{nearest(contender, names)}"
            )
        if averages.count(name) > 1:
            raise UserError(f"methods={shown(name)}: stands there twice")


def _planned(names: Sequence[str], words: Sequence[str]) -> tuple[PlannedContender, ...]:
    """The contenders with their recipes; UserError with the mistakes of all, each once."""
    keys = [word.partition("=")[0] for word in words]
    known = {name: set(_keys_of_method(CONTENDERS[name])) for name in names}
    mistakes = [
        f"{shown(word)}: none of the methods has this key"
        + nearest(key, {each for keys_ in known.values() for each in keys_})
        for word, key in zip(words, keys, strict=True)
        if key.startswith("method.") and not any(key in keys_ for keys_ in known.values())
    ]
    if mistakes:
        raise UserError("\n".join(mistakes))
    planned = []
    for name in names:
        contender = CONTENDERS[name]
        method, *more = contender.words
        common = [word for word in words if not word.startswith("method.")]
        its_own = [
            word
            for word, key in zip(words, keys, strict=True)
            if key.startswith("method.") and key in known[name]
        ]
        try:
            recipe = load_recipe([*common, method, *its_own, *more])
        except UserError as error:
            mistakes += [line for line in str(error).splitlines() if line not in mistakes]
            continue
        # A key that the command fixes is not searched, for no contender.
        space = tuple(
            dimension.for_optimizer(recipe.optim.name)
            for dimension in contender.space
            if dimension.key not in keys
        )
        assert len(space) <= DIMENSIONS
        planned.append(PlannedContender(name, contender.title, recipe, space))
    if mistakes:
        raise UserError("\n".join(mistakes))
    return tuple(planned)


def _keys_of_method(contender: Contender) -> Iterator[str]:
    """The keys of the contender's method, as method.KEY."""
    name = contender.words[0].partition("=")[2]
    for section in sections_in(Recipe.model_fields["method"].annotation):
        if section.model_fields["name"].default == name:
            yield from keys_of(section, "method.")


def _is_key(key: str) -> bool:
    return key == "recipe" or key in Recipe.model_fields


def _seeds(text: str) -> tuple[int, ...]:
    """``0..4`` or ``0,1,7``, or both."""
    seeds: list[int] = []
    for part in text.split(","):
        match = _SEEDS.fullmatch(part.strip())
        if match is None:
            raise UserError(f"seeds={shown(text)}: must be like 0..4 or 0,1,2")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"seeds={shown(text)}: {part.strip()} ends before it begins")
        if last - first >= _MOST_SEEDS or last >= 2**63:
            raise UserError(f"seeds={shown(text)}: more than {_MOST_SEEDS} seeds, or too large")
        seeds += range(first, last + 1)
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise UserError(f"seeds={shown(text)}: {twice} stands there twice")
    return tuple(seeds)


def _whole(key: str, text: str, most: int) -> int:
    if not text.isdecimal() or not text.isascii() or int(text) > most:
        raise UserError(f"{key}={shown(text)}: must be a whole number from 0 to {most}")
    return int(text)
