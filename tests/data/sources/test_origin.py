"""Prepared data belong to what they were made from: no other pictures pass for them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.data.stored.prepared import open_prepared, prepared_folder
from adafilter_dist.errors import UserError
from tests.data import trees
from tests.data.prepare.test_prepare import identity, prepared, recipe, refused

COUNTS = {"owl": 6, "wren": 6}


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Pictures of two kinds of birds, and A/birds.csv and B/birds.csv that list some of them."""
    pictures = trees.folders(tmp_path / "pictures", COUNTS)
    for name, numbers in (("A", (0, 1, 2)), ("B", (3, 4, 5))):
        (tmp_path / name).mkdir()
        write_list(tmp_path / name / "birds.csv", numbers)
    return pictures


def write_list(path: Path, numbers: tuple[int, ...], *, backwards: bool = False) -> None:
    rows = [
        f"{bird}/{number:03d}.jpg,{bird},{'test' if number == numbers[-1] else 'train'}"
        for bird in COUNTS
        for number in numbers
    ]
    path.write_text("\n".join(["path,label,split", *(rows[::-1] if backwards else rows)]))


def cannot_open(root: Path | None, **keys: Any) -> str:
    """The one line with which training refuses the prepared data."""
    with pytest.raises(UserError) as caught:
        open_prepared(recipe(root, **keys))
    (line,) = str(caught.value).splitlines()
    return line


def as_format_1(folder: Path) -> None:
    """The manifest as the first release wrote it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["origins"]
    csv = manifest["settings"]["csv"]
    manifest["settings"]["csv"] = csv and Path(csv).name
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))


def test_a_list_of_the_same_name_elsewhere_is_other_data(birds: Path, tmp_path: Path) -> None:
    place, a, b = tmp_path / "prepared", tmp_path / "A/birds.csv", tmp_path / "B/birds.csv"
    first, _ = prepared(birds, prepared=place, csv=a)
    line = cannot_open(birds, prepared=place, csv=b)
    assert f"{place}: prepared from {a}, not from {b}" in line and "adafilter prepare" in line
    line = refused(birds, prepared=place, csv=b)
    assert f"holds the pictures of {a}, which are others than those of {b} now" in line
    assert "data.prepared" in line and "\n" not in line
    kept = open_prepared(recipe(birds, prepared=place, csv=a))
    assert (identity(kept), kept.fingerprint) == (identity(first), first.fingerprint)


def test_lists_of_the_same_name_have_folders_of_their_own(birds: Path, tmp_path: Path) -> None:
    done = [prepared(birds, csv=tmp_path / name / "birds.csv")[0] for name in "AB"]
    assert done[0].folder != done[1].folder and done[0].folder.parent == birds
    assert done[0].fingerprint != done[1].fingerprint
    assert open_prepared(recipe(birds, csv=tmp_path / "A/birds.csv")).folder == done[0].folder


def test_a_copy_of_the_list_shares_the_data_and_keeps_them(birds: Path, tmp_path: Path) -> None:
    place, a, copy = tmp_path / "prepared", tmp_path / "A/birds.csv", tmp_path / "copy.csv"
    shutil.copy(a, copy)
    first, _ = prepared(birds, prepared=place, csv=a)
    second, said = prepared(birds, prepared=place, csv=copy)
    assert said.startswith("already prepared") and identity(second) == identity(first)
    for csv in (a, copy):
        assert open_prepared(recipe(birds, prepared=place, csv=csv)).folder == place
    write_list(a, (0, 1, 2, 3))
    assert f"holds the pictures of {copy}" in refused(birds, prepared=place, csv=a)
    assert identity(open_prepared(recipe(birds, prepared=place, csv=copy))) == identity(first)


@pytest.mark.parametrize("change", ["relabelled", "fewer", "split"])
def test_an_edited_list_is_prepared_again(birds: Path, tmp_path: Path, change: str) -> None:
    csv = tmp_path / "A/birds.csv"
    first, _ = prepared(birds, csv=csv)
    text = csv.read_text()
    if change == "relabelled":
        csv.write_text(text.replace("owl/000.jpg,owl", "owl/000.jpg,wren"))
    elif change == "fewer":
        csv.write_text(text.replace("owl/000.jpg,owl,train\n", ""))
    else:
        csv.write_text(text.replace("owl/000.jpg,owl,train", "owl/000.jpg,owl,test"))
    line = cannot_open(birds, csv=csv)
    assert f"{csv}: changed since {first.folder} was prepared by it; run: adafilter " in line
    again, said = prepared(birds, csv=csv)
    assert f"{csv} changed: preparing again" in said
    assert again.folder == first.folder and again.fingerprint != first.fingerprint
    # A run that has these very data goes on, whatever becomes of the list.
    csv.write_text(text)
    cannot_open(birds, csv=csv)
    assert open_prepared(recipe(birds, csv=csv), known=again.fingerprint).classes == again.classes
    with pytest.raises(UserError):
        open_prepared(recipe(birds, csv=csv), known=first.fingerprint)


def test_rows_in_another_order_are_the_same_data(birds: Path, tmp_path: Path) -> None:
    csv = tmp_path / "A/birds.csv"
    first, _ = prepared(birds, csv=csv)
    write_list(csv, (0, 1, 2), backwards=True)
    again, said = prepared(birds, csv=csv)
    assert said.startswith("already prepared") and identity(again) == identity(first)
    assert open_prepared(recipe(birds, csv=csv)).fingerprint == first.fingerprint


def test_a_list_that_is_gone_is_told_of_and_a_broken_one_refused(
    birds: Path, tmp_path: Path
) -> None:
    csv = tmp_path / "A/birds.csv"
    first, _ = prepared(birds, csv=csv)
    csv.rename(tmp_path / "away.csv")
    assert open_prepared(recipe(birds, csv=csv)).fingerprint == first.fingerprint
    _, said = prepared(birds, csv=csv)
    assert f"not compared with data.csv={csv}, which is not there" in said
    for broken in (b"", b"\xff\xfe\x00", b"path,label,split\nowl/000.jpg,owl,sometimes"):
        csv.write_bytes(broken)
        assert str(csv) in refused(birds, csv=csv)
        assert f"{csv}: changed since" in cannot_open(birds, csv=csv)
    assert identity(first) == identity(
        open_prepared(recipe(birds, csv=csv), known=first.fingerprint)
    )


def test_pictures_that_are_gone_are_told_of(birds: Path, tmp_path: Path) -> None:
    csv, place = tmp_path / "A/birds.csv", tmp_path / "prepared"
    first, _ = prepared(birds, csv=csv, prepared=place)
    shutil.rmtree(birds)
    again, said = prepared(birds, csv=csv, prepared=place)
    assert "not compared with the pictures, none of which is in" in said
    assert identity(again) == identity(first)


def test_what_never_was_there_is_not_taken_for_gone(birds: Path, tmp_path: Path) -> None:
    place, typo = tmp_path / "prepared", tmp_path / "A/brids.csv"
    prepared(birds, prepared=place, csv=tmp_path / "A/birds.csv")
    said = refused(birds, prepared=place, csv=typo)
    assert f"data.csv={typo}: no such file (did you mean 'birds.csv'?)" in said
    assert f"what is prepared in {place} is from {tmp_path / 'A/birds.csv'}" in said
    prepared(birds, prepared=tmp_path / "pooled")
    said = refused(tmp_path / "picture", prepared=tmp_path / "pooled")
    assert "no such folder (did you mean 'pictures'?)" in said and f"is from {birds}" in said


def test_a_moved_root_is_compared_once_and_nothing_is_written_again(
    birds: Path, tmp_path: Path
) -> None:
    place = tmp_path / "prepared"
    (birds / "owl" / "bad.jpg").write_bytes(b"bad")
    first, _ = prepared(birds, prepared=place, on_bad="skip")
    moved = birds.rename(tmp_path / "moved")
    line = cannot_open(moved, prepared=place, on_bad="skip")
    assert f"prepared from {birds}, not from {moved}; to have the pictures compared" in line
    again, said = prepared(moved, prepared=place, on_bad="skip")
    assert said.startswith("already prepared") and identity(again) == identity(first)
    assert open_prepared(recipe(moved, prepared=place, on_bad="skip")).classes == first.classes
    # By another path it is the same place.
    (tmp_path / "link").symlink_to(moved)
    assert open_prepared(recipe(tmp_path / "link", prepared=place, on_bad="skip")).folder == place


def test_a_folder_inside_the_root_moves_with_it(birds: Path, tmp_path: Path) -> None:
    first, _ = prepared(birds)
    moved = birds.rename(tmp_path / "moved")
    assert open_prepared(recipe(moved)).fingerprint == first.fingerprint


def test_pictures_of_equal_names_sizes_and_times_are_not_the_same(
    birds: Path, tmp_path: Path
) -> None:
    other, place = tmp_path / "other", tmp_path / "prepared"
    shutil.copytree(birds, other)
    shuffled = sorted(other.rglob("*.jpg"))
    longest = max(path.stat().st_size for path in shuffled)
    for one, two in zip(sorted(birds.rglob("*.jpg")), reversed(shuffled), strict=True):
        # What follows a JPEG's end does not count: all files get one size.
        content = one.read_bytes()
        two.write_bytes(content.ljust(longest, b"\0"))
        one.write_bytes(content.ljust(longest, b"\0"))
        for path in (one, two):
            os.utime(path, (1, 1))
    first, _ = prepared(birds, prepared=place)
    assert f"holds the pictures of {birds}" in refused(other, prepared=place)
    assert identity(open_prepared(recipe(birds, prepared=place))) == identity(first)


def test_lists_of_food_101_belong_to_the_data(tmp_path: Path) -> None:
    root = trees.food101(tmp_path)
    first, _ = prepared(root, "food101")
    meta = root / "food-101" / "meta" / "train.json"
    listed = json.loads(meta.read_text())
    listed["apple_pie"].pop()
    meta.write_text(json.dumps(listed))
    line = cannot_open(root, name="food101")
    assert f"{meta}: changed since {first.folder} was prepared by it" in line
    again, said = prepared(root, "food101")
    assert f"{meta} changed: preparing again" in said
    assert len(again.train_labels) == len(first.train_labels) - 1
    meta.write_text("{")
    assert str(meta) in refused(root, name="food101")
    shutil.rmtree(root / "food-101")
    assert "not compared with its pictures" in prepared(root, "food101")[1]


def test_folders_of_the_first_release_are_read(birds: Path, tmp_path: Path) -> None:
    inside, outside = birds / "birds.csv", tmp_path / "A/birds.csv"
    shutil.copy(outside, inside)
    cases: list[dict[str, Any]] = [
        {"root": birds},
        {"root": birds, "prepared": tmp_path / "pooled"},
        {"root": birds, "csv": inside},
        {"root": trees.food101(tmp_path / "food"), "name": "food101"},
        {"root": trees.caltech256(tmp_path / "caltech"), "name": "caltech256"},
    ]
    for words in cases:
        first, _ = prepared(**words)
        as_format_1(first.folder)
        assert open_prepared(recipe(**words)).fingerprint == first.fingerprint
        again, said = prepared(**words)
        assert said.startswith("already prepared") and identity(again) == identity(first)
        assert json.loads((first.folder / "manifest.json").read_text())["format"] == 2
        assert open_prepared(recipe(**words)).fingerprint == first.fingerprint


def test_a_list_that_the_first_release_only_named_is_compared(birds: Path, tmp_path: Path) -> None:
    place, csv = tmp_path / "prepared", tmp_path / "A/birds.csv"
    first, _ = prepared(birds, prepared=place, csv=csv)
    as_format_1(place)
    assert "adafilter prepare" in cannot_open(birds, prepared=place, csv=csv)
    assert "holds the pictures of" in refused(birds, prepared=place, csv=tmp_path / "B/birds.csv")
    again, said = prepared(birds, prepared=place, csv=csv)
    assert said.startswith("already prepared") and identity(again) == identity(first)
    assert open_prepared(recipe(birds, prepared=place, csv=csv)).classes == ["owl", "wren"]


def test_a_damaged_store_of_shared_data_is_mended_for_all(birds: Path, tmp_path: Path) -> None:
    place = tmp_path / "prepared"
    shutil.copytree(birds, tmp_path / "copy")
    first, _ = prepared(birds, prepared=place)
    prepared(tmp_path / "copy", prepared=place)
    first.train_store.write_bytes(b"")
    mended, said = prepared(birds, prepared=place)
    assert f"{first.train_store}: damaged" in said and "preparing again" in said
    assert mended.fingerprint == first.fingerprint
    assert open_prepared(recipe(tmp_path / "copy", prepared=place)).folder == place


def test_a_root_that_is_missing_is_said_to_be_missing(tmp_path: Path) -> None:
    trees.folders(tmp_path / "pictures", COUNTS)
    line = cannot_open(tmp_path / "picturse")
    assert line == (
        f"data.root={tmp_path / 'picturse'}: no such folder (did you mean 'pictures'?), and "
        "nothing is prepared of it"
    )
    line = cannot_open(tmp_path / "a" / "b" / "c")
    assert f"no such folder ({tmp_path / 'a'} is missing)" in line
    line = cannot_open(tmp_path / "food", name="food101")
    assert "no such folder" in line and "to fetch them there run: adafilter prepare" in line
    assert "no such file" in cannot_open(None, csv=tmp_path / "birds.csv")
    assert not prepared_folder(recipe(tmp_path / "food", name="food101").data).exists()
