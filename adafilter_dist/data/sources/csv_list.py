"""A list of pictures as a CSV with the columns path, label and, where they are fixed, split."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.data.listing import Found, Sample
from adafilter_dist.data.sources.download import relative_name
from adafilter_dist.errors import UserError

_VALIDATION = ("val", "valid", "validation")
_SPLITS = ("train", "test", *_VALIDATION)


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str
    split: str


def find(file: Path, base: Path) -> Found:
    """The pictures of a CSV, whose relative paths start at ``base``.

    Splits are train and test (val stands in for a test split that is not there); without the
    column, one pool. Raises UserError with the line number.
    """
    rows = _rows(file)
    classes = sorted({row.label for row in rows})
    of_name = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[Sample]] = {}
    lines: dict[Path, int] = {}
    for row in rows:
        path = base / row.path
        if path in lines:
            raise UserError(f"{file}, line {row.line}: {row.path} is listed in line {lines[path]}")
        lines[path] = row.line
        sample = Sample(relative_name(path, base), of_name[row.label], path)
        split = "val" if row.split in _VALIDATION else row.split
        splits.setdefault(split, []).append(sample)
    for samples in splits.values():
        samples.sort(key=lambda sample: (sample.label, sample.name))
    if "" in splits:
        return Found(base, classes, splits[""], None)
    notes = []
    if "test" in splits and "val" in splits:
        notes.append(
            f"the {len(splits['val'])} rows of split val are left out: the validation set is cut "
            "from train (data.val_fraction)"
        )
    test = splits.get("test", splits.get("val"))
    return Found(base, classes, splits.get("train", []), test, notes)


def _rows(file: Path) -> list[_Row]:
    try:
        # Spreadsheets write a byte order mark in front.
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"data.csv={file}: {reason}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = [name.strip() for name in reader.fieldnames or []]
    if not {"path", "label"} <= set(columns):
        raise UserError(
            f"data.csv={file}: its first line must name the columns path,label,split; "
            f"it names {','.join(columns) or 'nothing'}"
        )
    reader.fieldnames = columns
    rows = []
    for cells in reader:
        path, label, split = ((cells.get(key) or "").strip() for key in ("path", "label", "split"))
        if not path or not label:
            raise UserError(f"{file}, line {reader.line_num}: no {'label' if path else 'path'}")
        if ("split" in columns) and split not in _SPLITS:
            raise UserError(
                f"{file}, line {reader.line_num}: split {split!r}; allowed: {', '.join(_SPLITS)}"
            )
        rows.append(_Row(reader.line_num, path, label, split))
    if not rows:
        raise UserError(f"data.csv={file}: no rows below the column names")
    return rows
