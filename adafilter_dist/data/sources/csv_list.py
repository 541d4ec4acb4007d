"""A list of pictures as a CSV with the columns path and label.

A column split says which picture belongs where, a column domain from which domain each one is.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.data.sources.download import relative_name
from adafilter_dist.data.sources.listing import MOST_DOMAINS, Sample, SourceListing
from adafilter_dist.data.sources.split import SplitName
from adafilter_dist.data.sources.split_names import WORDS, split_of_word
from adafilter_dist.errors import UserError, nearest, printable
from adafilter_dist.system.counted import counted

_COLUMNS = ("path", "label", "split", "domain")
_WORDS = [word for word in WORDS if word not in ("trn", "tst")]
_UTF_8 = "save it as UTF-8 (in a spreadsheet: CSV UTF-8)"


@dataclass(frozen=True)
class _Row:
    line: int
    path: Path
    label: str
    word: str  # of the column split
    split: SplitName | None
    domain: str  # empty without that column


def find(file: Path, base: Path) -> SourceListing:
    """The pictures of a CSV, whose relative paths start at ``base``.

    Splits are train, val and test in their usual spellings; without the column, one pool. Domains
    are numbered in the order of their names. Raises UserError with the number of the line.
    """
    rows = _rows(file, base)
    classes = sorted({row.label for row in rows})
    of_name = {name: label for label, name in enumerate(classes)}
    domains = sorted({row.domain for row in rows if row.domain})
    if len(domains) > MOST_DOMAINS:
        raise UserError(
            f"data.csv={file}: {len(domains):,} names in the column domain; at most "
            f"{MOST_DOMAINS:,} are kept; name it otherwise if it is no domain"
        )
    of_domain = {name: number for number, name in enumerate(domains)}
    splits: dict[SplitName | None, list[Sample]] = {}
    for row in rows:
        name = relative_name(row.path, base)
        sample = Sample(
            name,
            of_name[row.label],
            base,
            domain=of_domain.get(row.domain, 0),
            file=None if base / name == row.path else str(row.path),
        )
        splits.setdefault(row.split, []).append(sample)
    for samples in splits.values():
        samples.sort(key=lambda sample: (sample.label, sample.name))
    if None in splits:
        return SourceListing(base, classes, splits[None], None, domains=domains)
    return SourceListing(
        base,
        classes,
        splits.get("train", []),
        splits.get("test"),
        _reading(rows),
        splits.get("val", []),
        domains,
    )


def _rows(file: Path, base: Path) -> list[_Row]:
    lines = _lines(file, _text(file))
    _, header = next(lines, (1, []))
    columns = _columns(file, header)
    has_split = "split" in columns
    known_meaning = ("path", "label", "split")
    others: dict[str, set[str]] = {name: set() for name in columns if name not in known_meaning}
    rows: list[_Row] = []
    known: dict[str, _Row] = {}
    for line, cells in lines:
        if not any(cell.strip() for cell in cells):
            continue  # spreadsheets end with rows of commas
        here = f"{file}, line {line}"
        if any(cell.strip() for cell in cells[len(columns) :]):
            raise UserError(
                f"{here}: {len(cells)} cells under {len(columns)} column names; put a cell with a "
                "comma in it into double quotes"
            )
        of = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
        for key in _COLUMNS:
            if key in columns and not of.get(key):
                raise UserError(f"{here}: no {key}")
        split = split_of_word(of["split"]) if has_split else None
        if has_split and split is None:
            raise UserError(
                f"{here}: split {printable(of['split'])!r}{nearest(of['split'].lower(), _WORDS)}; "
                "allowed: train, val, test and their usual spellings"
            )
        row = _Row(
            line,
            _path(here, of["path"], base),
            of["label"],
            of.get("split", ""),
            split,
            of.get("domain", ""),
        )
        before = known.setdefault(os.path.normpath(row.path), row)
        if before is not row:
            raise UserError(f"{here}: {_twice(row, before, of['path'])}")
        for name, values in others.items():
            values.add(of.get(name, ""))
        rows.append(row)
    if not rows:
        raise UserError(f"data.csv={file}: no rows below the column names")
    if not has_split:
        _refuse_hidden_split(file, others)
    return rows


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"data.csv={file}: {error.strerror}") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"data.csv={file}: UTF-16, not UTF-8 text; {_UTF_8}")
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: a NUL byte, so this is not UTF-8 text; {_UTF_8}")
    try:
        # Spreadsheets write a byte order mark in front.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8 text; {_UTF_8}") from None


def _lines(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of each row that is not empty.

    UserError where a quote is not closed or a control character is in a cell.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error:  # a cell longer than any name
            cells = ["\n"]
        if cells is None:
            return
        for cell in cells:
            if "\n" in cell or "\r" in cell:
                raise UserError(
                    f"{file}, line {line}: a cell that goes on in the next line: a double quote "
                    "is missing, or one too many"
                )
            if not cell.replace("\t", " ").isprintable():
                character = next(c for c in cell if not c.isprintable())
                if character not in "\u00a0\u3000":
                    raise UserError(
                        f"{file}, line {line}: the character {printable(character)} in a cell"
                    )
        if cells:
            yield line, cells


def _delimiter(text: str) -> str:
    """Comma, semicolon or tab: what stands between path and label in the first line."""
    first = text.lstrip().partition("\n")[0]
    for delimiter in ",;\t":
        names = {name.strip().strip('"').strip().lower() for name in first.split(delimiter)}
        if {"path", "label"} <= names:
            return delimiter
    return ","


def _columns(file: Path, header: Sequence[str]) -> list[str]:
    columns = [name.strip() for name in header]
    named = [name.lower() if name.lower() in _COLUMNS else name for name in columns]
    if not {"path", "label"} <= set(named):
        names = ",".join(map(printable, columns)) or "nothing"
        raise UserError(
            f"data.csv={file}: its first line must name the columns path,label,split; it names "
            f"{names if len(names) <= 200 else names[:200] + '...'}"
        )
    twice = [name for name, count in Counter(named).items() if count > 1 and name in _COLUMNS]
    if twice:
        raise UserError(f"data.csv={file}: its first line names the column {twice[0]} twice")
    return named


def _path(here: str, text: str, base: Path) -> Path:
    path = base / text
    if "\\" in text and not path.exists():
        raise UserError(f"{here}: {printable(text)}: no such file; write / between folders, not \\")
    return path


def _twice(row: _Row, before: _Row, path: str) -> str:
    """How a second row for a picture differs from the first."""
    text = f"{printable(path)} is listed in line {before.line}"
    if row.label != before.label:
        return f"{text} with the label {printable(before.label)!r}, here {printable(row.label)!r}"
    if row.split != before.split:
        return f"{text} in the split {before.split}, here in {row.split}"
    return f"{text}, too; remove one of the rows"


def _refuse_hidden_split(file: Path, others: dict[str, set[str]]) -> None:
    """A column of splits under another name would be dropped, and other splits drawn."""
    for name, values in others.items():
        splits = {split_of_word(value) for value in values}
        if None not in splits and "train" in splits:
            raise UserError(
                f"data.csv={file}: the column {printable(name)!r} holds "
                f"{', '.join(sorted(values))}; name it split, or leave it out to have splits drawn"
            )


def _reading(rows: Sequence[_Row]) -> list[str]:
    """What was taken for what, unless there is nothing but train and test."""
    counts = Counter((row.word, row.split) for row in rows)
    if all(word == split != "val" for word, split in counts):
        return []
    order = ["train", "val", "test"]
    words = sorted(counts, key=lambda key: (order.index(str(key[1])), key[0]))
    return [
        "column split: "
        + ", ".join(
            f"{word} -> {split} ({counted(counts[word, split], 'row')})" for word, split in words
        )
    ]
