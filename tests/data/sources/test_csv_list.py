"""Lists of pictures as CSV: what is read, and which line is named where nothing can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data import trees
from tests.data.listings import listed, names, per_class, refused

HEADER = "path,label,split"


def write_csv(path: Path, *rows: str) -> Path:
    """A file as a spreadsheet writes it."""
    path.write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    return path


def test_csv_of_path_label_split(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"pictures": 6})
    rows = [
        f'pictures/{i:03d}.jpg,"{"ab"[i % 2]}, or so",{"test" if i > 3 else "train"}'
        for i in range(6)
    ]
    file = write_csv(tmp_path / "list.csv", "path,label,split", *rows)
    listing = listed("imagefolder", None, csv=file)
    assert listing.classes == ["a, or so", "b, or so"]
    assert (per_class(listing.train), per_class(listing.test)) == ([2, 2], [1, 1])
    assert all(s.path.is_file() for s in (*listing.train, *listing.test))
    # Elsewhere, with the folder of the pictures named; and without splits.
    (tmp_path / "lists").mkdir()
    moved = file.rename(tmp_path / "lists" / "list.csv")
    assert names(listed("imagefolder", root, csv=moved).train) == names(listing.train)
    pool = [row.rsplit(",", 1)[0] for row in ("path,label,split", *rows)]
    drawn = listed("imagefolder", root, csv=write_csv(moved, *pool), test_fraction=0.4)
    assert (per_class(drawn.train), per_class(drawn.test)) == ([2, 2], [1, 1])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["file,class", "a.jpg,x"], "path,label,split; it names file,class"),
        (["path,label,split"], "no rows"),
        (
            ["path,label,split", "a.jpg,x,train", "b.jpg,y,tset"],
            "line 3: split 'tset' (did you mean 'test'?); allowed: train, val, test",
        ),
        (["path,label,split", "a.jpg,,train"], "line 2: no label"),
        (["path,label,split", ",x,train"], "line 2: no path"),
        (
            ["path,label,split", "a.jpg,x,train", "a.jpg,x,test"],
            "line 3: a.jpg is listed in line 2",
        ),
        (
            ["path,label,split", "a.jpg,x,train", "b.jpg,y,train", "c.jpg,z,test"],
            "no training pictures of class 'z'",
        ),
    ],
)
def test_csv_errors_name_the_line(tmp_path: Path, rows: list[str], expected: str) -> None:
    assert expected in refused("imagefolder", None, csv=write_csv(tmp_path / "list.csv", *rows))


def test_usual_spellings_of_splits_are_read_and_told(tmp_path: Path) -> None:
    words = ["Training", " train ", "VALID", "validation", "dev", "val", "Testing", "eval", "test"]
    rows = [f"{i}{y}.jpg,{y},{word}" for i, word in enumerate(words) for y in "ab"]
    listing = listed("imagefolder", None, csv=write_csv(tmp_path / "list.csv", HEADER, *rows))
    assert names(listing.train) == {"0a.jpg", "0b.jpg", "1a.jpg", "1b.jpg"}
    assert names(listing.validation) == {f"{i}{y}.jpg" for i in (2, 3, 4, 5) for y in "ab"}
    assert names(listing.test) == {f"{i}{y}.jpg" for i in (6, 7, 8) for y in "ab"}
    (note,) = listing.notes
    assert "Training -> train (2 rows), train -> train (2 rows), VALID -> val (2 rows)" in note


def test_validation_is_not_the_test_set(tmp_path: Path) -> None:
    rows = [f"{i}{y}.jpg,{y},{'train' if i < 10 else 'valid'}" for i in range(14) for y in "ab"]
    file = write_csv(tmp_path / "list.csv", HEADER, *rows)
    held = {f"{i}{y}.jpg" for i in range(10, 14) for y in "ab"}
    listing = listed("imagefolder", None, csv=file)
    assert names(listing.validation) == held
    assert (per_class(listing.train), per_class(listing.test)) == ([8, 8], [2, 2])
    assert "no test split: it is drawn from the training pictures" in listing.notes[-1]
    swapped = listed("imagefolder", None, csv=file, test_split="val")
    assert names(swapped.test) == held and not swapped.validation
    assert per_class(swapped.train) == [10, 10]
    plain = write_csv(tmp_path / "plain.csv", HEADER, "a.jpg,a,train", "b.jpg,b,test")
    assert "no validation split" in refused("imagefolder", None, csv=plain, test_split="val")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_separators_and_line_ends_of_spreadsheets(
    tmp_path: Path, separator: str, ending: str
) -> None:
    rows = [
        ["Split", "PATH", "label", "remark"],
        ["train", "a.jpg", "x", ""],
        ["train", "b.jpg", "y"],
        [],
        ["test", "c.jpg", "x", "old"],
        ["", "", "", ""],
    ]
    text = ending.join(separator.join(row) for row in rows)
    (tmp_path / "list.csv").write_bytes(text.encode("utf-8"))
    listing = listed("imagefolder", None, csv=tmp_path / "list.csv")
    assert (names(listing.train), names(listing.test)) == ({"a.jpg", "b.jpg"}, {"c.jpg"})


def test_stray_quote_is_named_by_its_line_in_lists_of_any_length(tmp_path: Path) -> None:
    for count in (30, 5000):  # the csv module gives up after 131,072 characters
        rows = [f"cat/p{i:05d}_of_a_long_name.jpg,cat,train" for i in range(count)]
        rows[9] = '"' + rows[9]
        file = write_csv(tmp_path / "list.csv", HEADER, *rows)
        assert f"{file}, line 11: a cell that goes on in the next line" in refused(
            "imagefolder", None, csv=file
        )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["a.jpg,cat, tabby,train"], "line 2: 4 cells under 3 column names"),
        (["a.jpg,cat"], "line 2: no split"),
        (["a.jpg,cat,train", ",,", "b.jpg,dog,"], "line 4: no split"),
        (["a.jpg,cat,train", "./a.jpg,dog,train"], "line 3: ./a.jpg is listed in line 2 with the"),
        (["a.jpg,cat,train", "b/../a.jpg,cat,test"], "line 2 in the split train, here in test"),
        (["a.jpg,cat,train", "a.jpg,cat,train"], "line 2, too; remove one of the rows"),
        (["a.jpg,cat,train2"], "line 2: split 'train2' (did you mean 'train'?)"),
        (["a.jpg,cat,TRIAN"], "line 2: split 'TRIAN' (did you mean 'train'?)"),
        (["cat\\a.jpg,cat,train"], "line 2: cat\\a.jpg: no such file; write / between"),
        (["a.jpg,c\x07t,train"], "line 2: the character \\x07 in a cell"),
        (["a.jpg,c\u202et,train"], "line 2: the character \\u202e in a cell"),
    ],
)
def test_faults_of_rows_name_the_line(tmp_path: Path, rows: list[str], expected: str) -> None:
    file = write_csv(tmp_path / "list.csv", HEADER, *rows)
    assert expected in refused("imagefolder", None, csv=file)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it names nothing"),
        (b"\n\n", "it names nothing"),
        (b"cat/1.jpg,cat,train\n", "it names cat/1.jpg,cat,train"),
        (b"path,label,label\na.jpg,x,y\n", "the column label twice"),
        ("path,label\na.jpg,x\n".encode("utf-16"), "UTF-16, not UTF-8 text; save it as UTF-8"),
        ("path,label\na.jpg,x\n".encode("utf-16-le"), "line 1: a NUL byte"),
        (b"path,label\na.jpg,x\nb\0.jpg,y\n", "line 3: a NUL byte"),
        (b"path,label\na.jpg,x\nb.jpg,caf\xe9\n", "line 3: not UTF-8 text"),
        (
            b"path,label,subset\na.jpg,x,train\nb.jpg,y,test\n",
            "the column 'subset' holds test, train; name it split",
        ),
    ],
)
def test_faults_of_files(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    assert expected in refused("imagefolder", None, csv=tmp_path / "list.csv")


def test_absolute_paths_and_paths_elsewhere_are_read(tmp_path: Path) -> None:
    root = trees.folders(tmp_path / "pictures", {"cat": 2, "dog": 2})
    (tmp_path / "lists").mkdir()
    rows = [f"{root}/cat/000.jpg,cat,train", f"{root}/cat/001.jpg,cat,test"]
    rows += ["../pictures/dog/000.jpg,dog,train", "../pictures/dog/001.jpg,dog,test"]
    listing = listed("imagefolder", None, csv=write_csv(tmp_path / "lists/l.csv", HEADER, *rows))
    assert all(sample.path.is_file() for sample in (*listing.train, *listing.test))
    assert (per_class(listing.train), per_class(listing.test)) == ([1, 1], [1, 1])
    below = listed(
        "imagefolder",
        root,
        csv=write_csv(tmp_path / "lists/m.csv", HEADER, *rows[:2], "dog/000.jpg,dog,train"),
    )
    assert names(below.train) == {"cat/000.jpg", "dog/000.jpg"}


def test_csv_missing_or_not_text(tmp_path: Path) -> None:
    assert "no such file" in refused("imagefolder", None, csv=tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refused("imagefolder", None, csv=tmp_path / "x.csv")
