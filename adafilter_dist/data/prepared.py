"""A prepared folder as training sees it: opened without the network and without the sources."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from adafilter_dist.data.listing import root_of
from adafilter_dist.data.manifest import Manifest, read_manifest, settings_of
from adafilter_dist.data.split import Indices, Purpose, cut_fraction, keep_fraction
from adafilter_dist.data.store import open_store
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.command import prepare_line
from adafilter_dist.recipe.schema import Data, Recipe

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Two stores, their labels, and how validation and label fraction are cut from training.

    ``validation``: how many of the last pictures of the train store are the data's own validation
    split. Where it is 0, ``val_fraction`` of the training pictures is.
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

    def split(self, name: SplitName) -> tuple[Path, Indices, Indices]:
        """(store, indices into it, their labels) of a split; int64, indices ascending.

        Validation is the data's own, else it is cut first (at least one picture of every class
        that has two). So it is the same for every label_fraction, which then thins out what is
        left for training.
        """
        if name == "test":
            return self.test_store, np.arange(len(self.test_labels)), self.test_labels
        if self.validation:
            every = np.arange(len(self.train_labels))
            rest, val = every[: -self.validation], every[-self.validation :]
        else:
            rest, val = cut_fraction(
                self.train_labels, self.val_fraction, self.split_seed, Purpose.VAL
            )
        if name == "val":
            return self.train_store, val, self.train_labels[val]
        if self.label_fraction < 1:
            kept = keep_fraction(
                self.train_labels[rest], self.label_fraction, self.split_seed, Purpose.LABELS
            )
            rest = rest[kept]
        return self.train_store, rest, self.train_labels[rest]


def prepared_folder(data: Data) -> Path:
    """``data.prepared``, else ``adafilter-<8 hex of the settings>`` beside the pictures."""
    if data.prepared is not None:
        return data.prepared
    digest = hashlib.sha256(json.dumps(settings_of(data), sort_keys=True).encode()).hexdigest()
    return root_of(data) / f"adafilter-{digest[:8]}"


def open_prepared(recipe: Recipe) -> Prepared:
    """The prepared data of a recipe.

    Raises UserError, with the line that prepares them, when they are missing, of other settings,
    damaged, or lack pictures that ``data.on_bad=error`` does not want to lose.
    """
    folder = prepared_folder(recipe.data)
    manifest = read_manifest(folder)
    again = f"run: {prepare_line(recipe)}"
    if manifest is None:
        raise UserError(f"{folder}: the data are not prepared; {again}")
    other = other_settings(manifest, recipe.data)
    if other:
        raise UserError(f"{folder}: prepared with other settings ({other}); {again}")
    if manifest.skipped and recipe.data.on_bad == "error":
        raise UserError(
            f"{folder}: {manifest.skipped} bad pictures were skipped (listed in skipped.csv there)"
            "; mend them and prepare again, or accept it with data.on_bad=skip"
        )
    damage = damage_of(folder, manifest)
    if damage:
        raise UserError(f"{damage}; {again}")
    return from_manifest(folder, manifest, recipe.data)


def other_settings(manifest: Manifest, data: Data) -> str:
    """``data.key=prepared, now wanted`` for what differs; empty where nothing does."""
    wanted = settings_of(data)
    return "; ".join(
        f"data.{key}={manifest.settings.get(key)}, now {wanted.get(key)}"
        for key in {**wanted, **manifest.settings}
        if manifest.settings.get(key) != wanted.get(key)
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
    return ""


def from_manifest(folder: Path, manifest: Manifest, data: Data) -> Prepared:
    """The prepared data of a folder that has been checked."""
    return Prepared(
        folder=folder,
        classes=manifest.classes,
        fingerprint=manifest.fingerprint,
        train_store=folder / manifest.train.file,
        test_store=folder / manifest.test.file,
        train_labels=open_store(folder / manifest.train.file).labels,
        test_labels=open_store(folder / manifest.test.file).labels,
        val_fraction=data.val_fraction,
        label_fraction=data.label_fraction,
        split_seed=data.split_seed,
        validation=manifest.validation,
    )
