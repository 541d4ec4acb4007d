"""Whether pictures are those that a prepared folder was made of, by their content."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from adafilter_dist.data.prepare.lists import read_list
from adafilter_dist.data.prepare.pictures import stored_pixels
from adafilter_dist.data.prepare.progress import counting
from adafilter_dist.data.prepare.read_pictures import content_hash, read
from adafilter_dist.data.sources.fingerprint import fingerprint
from adafilter_dist.data.sources.listing import Listing, Sample
from adafilter_dist.data.stored.manifest import Manifest
from adafilter_dist.data.stored.pool import WorkerPool, default_workers
from adafilter_dist.pictures.modes import BadPicture
from adafilter_dist.recipe.sections.data import Data


def same_pictures(
    manifest: Manifest, listing: Listing, folder: Path, data: Data, console: Console
) -> bool:
    """Whether the folder was made of just these pictures; reads all of them."""
    skipped = _skipped(folder) if manifest.skipped else set()
    workers = data.num_workers or default_workers()

    def content(entry: tuple[str, Sample]) -> bytes | None:
        split, sample = entry
        if (split, sample.name) not in skipped:
            return content_hash(sample)
        try:
            stored_pixels(read(sample), data.stored_size)
        except BadPicture:
            return None  # left out then, and still bad
        return content_hash(sample)

    listed = {"train": listing.train, "test": listing.test, "val": listing.validation}
    entries = [(split, sample) for split, samples in listed.items() for sample in samples]
    splits: dict[str, list[tuple[int, bytes]]] = {split: [] for split in listed}
    try:
        with (
            counting(console, "comparing pictures", len(entries)) as progress,
            WorkerPool(workers) as pool,
        ):
            hashes = pool.map(content, entries, ahead=4 * workers)
            for number, ((split, sample), digest) in enumerate(zip(entries, hashes, strict=True)):
                if digest is not None:
                    splits[split].append((sample.label, digest))
                progress(number + 1)
    except BadPicture:
        return False
    present = [entries for split, entries in splits.items() if entries or split != "val"]
    return fingerprint(data, listing.classes, present) == manifest.fingerprint


def _skipped(folder: Path) -> set[tuple[str, str]]:
    """(split, name) of the pictures that were left out."""
    try:
        return {(row["split"], row["path"]) for row in read_list(folder / "skipped.csv")}
    except (OSError, KeyError):
        return set()
