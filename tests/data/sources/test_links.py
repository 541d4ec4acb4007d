"""Links between folders, and names that are odd: right, or one line."""

from __future__ import annotations

import os
from pathlib import Path

from adafilter_dist.errors import printable
from tests.data import trees
from tests.data.listings import listed, names, per_class, refused


def both(root: Path) -> set[str]:
    listing = listed("imagefolder", root)
    assert not names(listing.train) & names(listing.test)
    return names(listing.train) | names(listing.test)


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    root = trees.folders(tmp_path / "root", {"cat": 10, "dog": 10})
    every = both(root)
    (root / "cat/self").symlink_to(".")
    assert both(root) == every and len(every) == 20
    (root / "cat/all").symlink_to(root)
    (root / "dog/up").symlink_to("../..")
    (root / "again").symlink_to(root)
    (root / "dog/itself").symlink_to("itself")
    assert both(root) == every
    (note,) = (n for n in listed("imagefolder", root).notes if "links lead" in n)
    assert note.startswith(
        "4 links lead back to a folder that holds the link, and none is followed"
    )


def test_links_that_lead_back_within_splits(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"train/cat": 5, "train/dog": 5, "test/cat": 2, "test/dog": 2})
    (root / "train/dog/train").symlink_to(root / "train")
    (root / "test/test").symlink_to(root / "test")
    listing = listed("imagefolder", root)
    assert listing.classes == ["cat", "dog"]
    assert (per_class(listing.train), per_class(listing.test)) == ([5, 5], [2, 2])


def test_links_elsewhere_are_followed(tmp_path: Path) -> None:
    away = trees.folders(tmp_path / "away", {"cat": 3, "more": 2, "dogs": 4})
    root = trees.folders(tmp_path / "root", {"dog": 1})
    (root / "cat").symlink_to(away / "cat")
    (root / "dog/more").symlink_to(away / "more")
    for file in (away / "dogs").iterdir():
        (root / "dog" / f"link-{file.name}").symlink_to(file)
    listing = listed("imagefolder", root)
    assert listing.notes == []
    assert names(listing.train) | names(listing.test) == {
        *(f"cat/{i:03d}.jpg" for i in range(3)),
        *("dog/000.jpg", "dog/more/000.jpg", "dog/more/001.jpg"),
        *(f"dog/link-{i:03d}.jpg" for i in range(4)),
    }
    whole = tmp_path / "whole"
    whole.symlink_to(root)
    assert both(whole) == both(root)


def test_folders_reached_twice_are_told(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"cat/deep": 3, "dog": 4})
    (root / "cat/a-link").symlink_to("deep")
    listing = listed("imagefolder", root)
    # Once in the class, under its own name.
    assert {n for n in both(root) if n.startswith("cat")} == {
        f"cat/deep/{i:03d}.jpg" for i in range(3)
    }
    assert listing.notes == ["1 folder is reached twice by links: cat/a-link is cat/deep"]
    # In another class they count, because both were asked for.
    (root / "hound").symlink_to("dog")
    listing = listed("imagefolder", root)
    assert len(both(root)) == 11
    assert "hound is dog" in listed("imagefolder", root, classes=["dog", "hound"]).notes[0]
    assert "2 folders are reached twice by links" in listing.notes[0]


def test_links_in_all_directions_end(tmp_path: Path) -> None:
    # Followed along every path these are millions.
    labels = [f"c{i}" for i in range(12)]
    root = trees.folders(tmp_path, dict.fromkeys(labels, 1))
    for here in labels:
        for there in labels:
            if here != there:
                (root / here / there).symlink_to(f"../{there}")
    assert len(both(root)) == 12 * 12


def test_names_that_are_not_utf8_or_not_printable(tmp_path: Path) -> None:
    root = trees.folders(tmp_path / "root", {"cat": 3, "dog": 3, "caf\udce9": 3})
    message = refused("imagefolder", root)
    assert f"{root}: the name of the class caf\\xe9 is not UTF-8; rename it" in message
    message.encode()
    assert listed("imagefolder", root, classes=["cat", "dog"]).classes == ["cat", "dog"]
    (root / "caf\udce9").rename(root / "two\nlines")
    assert "class two\\nlines has control characters in it" in refused("imagefolder", root)
    (root / "two\nlines").rename(root / "café")
    assert listed("imagefolder", root).classes == ["café", "cat", "dog"]
    odd = root.rename(tmp_path / "r\udcff")
    assert "r\\xff: the path is not UTF-8" in refused("imagefolder", odd)
    assert "no\\x07" in refused("imagefolder", tmp_path / "no\a")


def test_odd_names_of_other_files_are_printable_in_notes(tmp_path: Path) -> None:
    root = trees.folders(tmp_path, {"cat": 3, "dog": 3})
    Path(os.fsdecode(os.fsencode(root) + b"/cat/a\n\xff.txt")).write_text("x")
    (note,) = listed("imagefolder", root).notes
    assert "e.g. a\\n\\xff.txt" in note


def test_printable() -> None:
    assert printable("a b/é.jpg") == "a b/é.jpg"
    assert printable(Path("a\x1b[31m\udc80\u202e")) == "a\\x1b[31m\\x80\\u202e"
