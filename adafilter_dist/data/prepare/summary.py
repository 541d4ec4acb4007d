"""What `prepare` ends with: counts a class, skipped pictures by reason, duplicates, notes."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from adafilter_dist.data.prepare.lists import read_list
from adafilter_dist.data.stored.manifest import Manifest, read_manifest
from adafilter_dist.data.stored.prepared import Prepared, SplitName
from adafilter_dist.data.stored.store import Store
from adafilter_dist.errors import printable
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.system.console import print_plain

_DOMAINS_SHOWN = 10
_REASONS = 8


def own_validation(pictures: int) -> str:
    """The line that says whose validation split is used."""
    return (
        f"validation: the data's own split of {pictures:,} pictures; data.val_fraction has no "
        "effect"
    )


def draw_lines(recipe: Recipe, prepared: Prepared) -> list[str]:
    """What the recipe's seed draws from the stored pictures, if it draws."""
    if recipe.data.draw != "seed":
        return []
    splits: tuple[SplitName, SplitName] = ("train", "val")
    train, val = (len(prepared.split(split)[1]) for split in splits)
    return [
        f"data.draw=seed: seed={recipe.seed} draws {train:,} training pictures, other seeds draw "
        f"others from the same folder; {val:,} validation pictures and the test split stay"
    ]


def summarise(folder: Path, console: Console) -> None:
    """Print the summary of a prepared folder."""
    manifest = read_manifest(folder)
    if manifest is None:
        return
    counts = read_list(folder / "classes.csv")
    table = Table(box=None, pad_edge=False)
    table.add_column("split")
    for column in ("pictures", "size", "a class: min", "median", "max"):
        table.add_column(column, justify="right")
    rows = [
        ("train", manifest.train.pictures - manifest.validation, manifest.train.size),
        ("test", manifest.test.pictures, manifest.test.size),
    ]
    if manifest.validation:
        rows.insert(1, ("val", manifest.validation, 0))
    for name, pictures, size in rows:
        of_class = [int(row[name]) for row in counts]
        table.add_row(
            name,
            f"{pictures:,}",
            f"{size / 1e6:,.1f} MB" if size else "in train",
            str(min(of_class)),
            f"{statistics.median(of_class):g}",
            str(max(of_class)),
        )
    console.print(table)
    lines = [f"{len(manifest.classes)} classes; counts of each in {folder / 'classes.csv'}"]
    if manifest.skipped:
        reasons = Counter(row["reason"].split(" (")[0] for row in read_list(folder / "skipped.csv"))
        shown = reasons.most_common(_REASONS)
        by_reason = ", ".join(f"{count} {reason}" for reason, count in shown)
        if len(reasons) > len(shown):
            rest = manifest.skipped - sum(count for _, count in shown)
            by_reason += f", {rest} for other reasons"
        lines.append(f"skipped {manifest.skipped}: {by_reason}; listed in {folder / 'skipped.csv'}")
    if manifest.duplicates:
        lines.append(
            f"{manifest.duplicates} test pictures are in the training set too (same pixels); "
            f"listed in {folder / 'duplicates.csv'}"
        )
    else:
        lines.append("no picture is in both splits")
    if manifest.validation:
        lines.append(own_validation(manifest.validation))
        twins = {row["val_path"] for row in read_list(folder / "val-duplicates.csv")}
        if twins:
            lines.append(
                f"{len(twins)} validation pictures are in the training or the test set too (same "
                f"pixels); listed in {folder / 'val-duplicates.csv'}"
            )
    lines += _domains(folder, manifest)
    lines += [note if note.startswith("warning: ") else f"note: {note}" for note in manifest.notes]
    lines.append(f"fingerprint {manifest.fingerprint[:16]}")
    print_plain(console, *lines)


def _domains(folder: Path, manifest: Manifest) -> list[str]:
    """How many pictures of each domain are in each split; of the first domains, where many."""
    if not manifest.domains:
        return []
    train, test = (Store(folder / split.file).domains for split in (manifest.train, manifest.test))
    cut = len(train) - manifest.validation
    splits = {"train": train[:cut], "val": train[cut:], "test": test}
    counts = {
        name: np.bincount(numbers, minlength=len(manifest.domains))
        for name, numbers in splits.items()
        if len(numbers)
    }
    lines = []
    for number, domain in enumerate(manifest.domains[:_DOMAINS_SHOWN]):
        of_splits = ", ".join(f"{count[number]:,} {name}" for name, count in counts.items())
        lines.append(f"domain {printable(domain)}: {of_splits}")
    more = len(manifest.domains) - len(lines)
    return lines + ([f"and {more:,} domains more; see train.csv and test.csv"] if more else [])
