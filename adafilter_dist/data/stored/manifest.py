"""manifest.json of a prepared folder: what was prepared, from what, with which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from adafilter_dist.data.sources.listing import DEFAULT_NAME
from adafilter_dist.data.sources.origin import Origin, csv_name
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.system import files

NAME = "manifest.json"


class StoredSplit(BaseModel):
    """One store file and what it must look like."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    size: int
    sha256: str
    pictures: int


class Manifest(BaseModel):
    """Everything about a prepared folder that is not the pictures.

    ``validation``: how many of the last pictures of the train store are the data's own validation
    split; 0 where it has none. ``domains`` names the domains that pictures are of, in the order of
    their numbers in the stores; empty where they are of none. ``decoding`` numbers the way from a
    file to pixels, see `adafilter_dist.pictures.reading.DECODING`.
    ``origins`` are the places whose pictures are these; format 1 has none, only ``root``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1, 2] = 2
    adafilter: str
    settings: dict[str, Any]
    fingerprint: str
    sources: str
    decoding: int = 1
    root: Path
    origins: list[Origin] = []
    classes: list[str]
    domains: list[str] = []
    train: StoredSplit
    test: StoredSplit
    validation: int = 0
    skipped: int
    duplicates: int
    notes: list[str]

    @model_validator(mode="after")
    def _require_sense(self) -> Manifest:
        if self.format == 2 and not self.origins:
            raise ValueError("no origins")
        if not 0 <= self.validation < self.train.pictures:
            raise ValueError("more validation pictures than there are")
        return self

    def write(self, folder: Path) -> None:
        """Put it into the folder, whole or not at all."""
        # Older versions know no domains; they read every other manifest.
        left_out = set() if self.domains else {"domains"}
        files.write_json(folder / NAME, self.model_dump(mode="json", exclude=left_out))

    def known_origins(self, folder: Path) -> list[Origin]:
        """Where the pictures came from, as far as the manifest tells.

        Format 1 has the folder that the pictures were in: for a published data set data.root or a
        folder in it. Of a CSV it has the name, so that only one below that folder is known.
        """
        if self.format == 2:
            return self.origins
        csv = self.settings.get("csv")
        roots = [str(self.root)]
        if self.settings.get("name") in ("food101", "caltech256"):
            roots += [str(self.root.parent), str(self.root.parent.parent)]
        if DEFAULT_NAME.fullmatch(folder.name):  # it moves with them
            roots.append("..")
        known = [Origin(root=root, csv=csv, sources=self.sources) for root in roots]
        return known if csv is not None else [*known, Origin(root=None, csv=None)]


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, None where there is none; UserError if it cannot be understood."""
    path = folder / NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError:
        raise UserError(
            f"{path}: damaged, or written by another version of adafilter; remove {folder}"
        ) from None


def settings_of(data: Data) -> dict[str, Any]:
    """The keys of the recipe that decide what a prepared folder holds, as plain JSON types.

    A key without effect is None: so folders are shared by recipes that differ in it alone.
    """
    pooled = data.name in ("caltech256", "imagefolder")
    mixed = data.name == "mixed_domains"
    # With data.draw=seed every run draws its training pictures from all that are stored.
    train_per_class = data.train_per_class if data.draw == "split_seed" else None
    drawn = pooled or mixed or train_per_class is not None or data.test_per_class is not None
    # Keys younger than prepared folders that never name them: the folders keep their names.
    younger: dict[str, Any] = {"test_split": data.test_split} if data.test_split != "test" else {}
    younger |= {"join_validation": True} if data.join_validation else {}
    if mixed:
        unnamed = set() if data.mixed.original_changes else {"original_changes"}
        younger["mixed"] = data.mixed.model_dump(mode="json", exclude=unnamed)
    return younger | {
        "name": data.name,
        "csv": csv_name(data),
        "classes": None if data.classes is None else sorted(set(data.classes)),
        "train_per_class": train_per_class,
        "test_per_class": data.test_per_class,
        "test_fraction": data.test_fraction if pooled and data.test_per_class is None else None,
        "split_seed": data.split_seed if drawn else None,
        "stored_size": data.stored_size,
        "stored_format": data.stored_format,
        "jpeg_quality": data.jpeg_quality if data.stored_format == "jpg" else None,
    }
