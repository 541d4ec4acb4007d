"""A prepared folder as training sees it: opened without the network and without the sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adafilter_dist.data.sources.datasets import FETCHABLE
from adafilter_dist.data.sources.listing import root_of
from adafilter_dist.data.sources.origin import changed_list, origin_of
from adafilter_dist.data.sources.split import (
    Indices,
    SplitPurpose,
    cut_count,
    cut_fraction,
    draw_count,
    keep_fraction,
    require_count,
)
from adafilter_dist.data.sources.split import SplitName as SplitName
from adafilter_dist.data.stored.manifest import Manifest, read_manifest, settings_of
from adafilter_dist.data.stored.store import Damaged, Store
from adafilter_dist.errors import UserError, no_such
from adafilter_dist.pictures.reading import DECODING
from adafilter_dist.recipe.command import prepare_line
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.system.counted import counted

_COUNT = "data.train_per_class"


@dataclass(frozen=True, eq=False)
class Domains:
    """From which domain each picture of a split is: ``numbers`` int64 (n,) index ``names``."""

    names: Sequence[str]
    numbers: Indices


@dataclass(frozen=True, eq=False)
class Prepared:
    """Two stores, their labels, and how validation and training pictures are drawn from the first.

    ``validation``: how many of the last pictures of the train store are the data's own validation
    split. Where it is 0, ``val_fraction`` of the training pictures is. ``domains`` names the
    domains of the pictures and is empty where they have none; ``train_domains`` and
    ``test_domains`` hold the number of each picture's, all 0 without names. ``notice``: a line on
    what may be amiss with them. ``draw_seed`` draws the training pictures, by default
    ``split_seed`` does; ``train_per_class`` is how many of a class are drawn for training and
    validation, None where the store holds what was drawn.
    """

    folder: Path
    classes: list[str]
    fingerprint: str
    train_store: Path
    test_store: Path
    train_labels: Indices
    test_labels: Indices
    val_fraction: float
    label_fraction: float
    split_seed: int
    validation: int = 0
    domains: list[str] = field(default_factory=list)
    train_domains: Indices | None = None
    test_domains: Indices | None = None
    notice: str | None = None
    train_per_class: int | None = None
    draw_seed: int | None = None

    def split(self, name: SplitName) -> tuple[Path, Indices, Indices]:
        """(store, indices into it, their labels) of a split; int64, indices ascending.

        Validation is the data's own, else it is cut first (at least one picture of every class
        that has two). So it is the same for every label_fraction, which then thins out what is
        left for training, and for every ``draw_seed``. UserError where a class has too few.
        """
        if name == "test":
            return self.test_store, np.arange(len(self.test_labels)), self.test_labels
        seed = self.split_seed if self.draw_seed is None else self.draw_seed
        rest, val = self._train_and_val(seed)
        if name == "val":
            return self.train_store, val, self.train_labels[val]
        if self.label_fraction < 1:
            kept = keep_fraction(
                self.train_labels[rest], self.label_fraction, seed, SplitPurpose.LABELS
            )
            rest = rest[kept]
        return self.train_store, rest, self.train_labels[rest]

    def _train_and_val(self, seed: int) -> tuple[Indices, Indices]:
        """Indices of the training pictures, for all labels, and of those of validation."""
        count = self.train_per_class
        if self.validation:
            every = np.arange(len(self.train_labels))
            rest, val = every[: -self.validation], every[-self.validation :]
            if count is not None:
                labels, purpose = self.train_labels[rest], SplitPurpose.TRAIN
                rest = rest[cut_count(labels, count, seed, purpose, self.classes, _COUNT)[1]]
            return rest, val
        if count is None:
            return cut_fraction(
                self.train_labels, self.val_fraction, self.split_seed, SplitPurpose.VAL
            )
        require_count(self.train_labels, count, self.classes, _COUNT)
        return draw_count(self.train_labels, count, self.val_fraction, self.split_seed, seed)

    def domains_of(self, name: SplitName) -> Domains | None:
        """The domains of a split's pictures; None where they have none."""
        stored = self.test_domains if name == "test" else self.train_domains
        if not self.domains or stored is None:
            return None
        _, records, _ = self.split(name)
        return Domains(self.domains, stored[records])


def prepared_folder(data: Data) -> Path:
    """``data.prepared``, else ``adafilter-<8 hex of the settings>`` beside the pictures."""
    if data.prepared is not None:
        return data.prepared
    digest = hashlib.sha256(json.dumps(settings_of(data), sort_keys=True).encode()).hexdigest()
    return root_of(data) / f"adafilter-{digest[:8]}"


def open_prepared(recipe: Recipe, *, known: str | None = None) -> Prepared:
    """The prepared data of a recipe.

    ``known`` is the fingerprint of the data of a run that goes on: where these are the prepared
    data, it does not matter what became of the pictures and their lists. Raises UserError, with
    the line that prepares them, when they are missing, of other settings or another place, older
    than their lists, damaged, or lack pictures that ``data.on_bad=error`` does not want to lose.
    """
    folder = prepared_folder(recipe.data)
    manifest = read_manifest(folder)

    def again() -> str:  # reads a recipe, so only where there is an error to word
        return f"run: {prepare_line(recipe)}"

    if manifest is None:
        raise UserError(_missing(folder, recipe.data, again()))
    other = other_settings(manifest, recipe.data)
    if other:
        raise UserError(f"{folder}: prepared with other settings ({other}); {again()}")
    if manifest.fingerprint != known:
        require_origin(folder, manifest, recipe)
    if manifest.skipped and recipe.data.on_bad == "error":
        raise UserError(
            f"{folder}: {counted(manifest.skipped, 'bad picture')} skipped (listed in skipped.csv "
            "there); mend them and prepare again, or accept it with data.on_bad=skip"
        )
    damage = damage_of(folder, manifest)
    if damage:
        raise UserError(f"{damage}; {again()}")
    prepared = from_manifest(folder, manifest, recipe)
    prepared.split("train")  # raises where a class has too few to draw from
    if manifest.decoding == DECODING:
        return prepared
    notice = (
        f"{folder}: prepared by adafilter {manifest.adafilter}, which read some kinds of pictures "
        f"otherwise (ink, 16 bits); to have them compared, and those that differ prepared again, "
        f"{again()}"
    )
    return replace(prepared, notice=notice)


def require_origin(folder: Path, manifest: Manifest, recipe: Recipe) -> None:
    """UserError unless the data were prepared from the recipe's pictures, by lists as they are.

    Looks at no picture, and at the lists where they are there.
    """
    wanted = origin_of(recipe.data, folder)
    known = manifest.known_origins(folder)
    own = [origin for origin in known if origin.same_place(wanted, folder)]
    if not own:
        raise UserError(
            f"{folder}: prepared from {known[0].described(folder)}, not from "
            f"{wanted.described(folder)}; to have the pictures compared, and the same ones taken "
            f"over, run: {prepare_line(recipe)}"
        )
    changed = changed_list(own[-1], recipe.data)
    if changed is not None:
        raise UserError(
            f"{changed}: changed since {folder} was prepared by it; run: {prepare_line(recipe)}"
        )


def _missing(folder: Path, data: Data, again: str) -> str:
    """Words the error if nothing is prepared; the pictures may be missing too."""
    if data.csv is not None and not data.csv.exists():
        return f"data.csv={data.csv}: {no_such('file', data.csv)}, and nothing is prepared of it"
    if data.root is not None and not data.root.is_dir():
        what = f"data.root={data.root}: {no_such('folder', data.root)}"
        if data.name not in FETCHABLE:
            return f"{what}, and nothing is prepared of it"
        return f"{what}, and the data are not prepared; correct it, or to fetch them there {again}"
    return f"{folder}: the data are not prepared; {again}"


def other_settings(manifest: Manifest, data: Data) -> str:
    """``data.key=prepared, now wanted`` for what differs; empty where nothing does."""
    wanted = settings_of(data)
    return "; ".join(
        f"data.{key}={manifest.settings.get(key)}, now {wanted.get(key)}"
        for key in {**wanted, **manifest.settings}
        if key != "csv" and manifest.settings.get(key) != wanted.get(key)  # origins tell of it
    )


def damage_of(folder: Path, manifest: Manifest) -> str:
    """What is wrong with the files, cheaply looked at; empty where nothing is."""
    for split in (manifest.train, manifest.test):
        path = folder / split.file
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            return f"{path}: missing"
        if size != split.size:
            return f"{path}: damaged, {size} bytes instead of {split.size}"
        try:
            store = Store(path)
        except Damaged as error:  # its tables; no sha256 is needed to see it
            return error.what
        wrong = (store.labels >= len(manifest.classes)) | (
            store.domains >= max(1, len(manifest.domains))
        )
        if len(store) != split.pictures or wrong.any():
            return f"{path}: does not fit its manifest.json"
    return ""


def from_manifest(folder: Path, manifest: Manifest, recipe: Recipe) -> Prepared:
    """The prepared data of a folder that has been checked."""
    data, by_seed = recipe.data, recipe.data.draw == "seed"
    train = Store(folder / manifest.train.file)
    test = Store(folder / manifest.test.file)
    return Prepared(
        folder=folder,
        classes=manifest.classes,
        fingerprint=manifest.fingerprint,
        train_store=folder / manifest.train.file,
        test_store=folder / manifest.test.file,
        train_labels=train.labels,
        test_labels=test.labels,
        val_fraction=data.val_fraction,
        label_fraction=data.label_fraction,
        split_seed=data.split_seed,
        validation=manifest.validation,
        domains=manifest.domains,
        train_domains=train.domains,
        test_domains=test.domains,
        train_per_class=data.train_per_class if by_seed else None,
        draw_seed=recipe.seed if by_seed else None,
    )
