"""Words that name pictures."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.predict.find_pictures import find_pictures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "in/c.webp", "in/deep/d.jpeg"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "pictures"


def names(*words: str, lines: tuple[str, ...] = ()) -> list[str]:
    return [str(path) for path in find_pictures(words, lines)]


def test_files_folders_and_patterns_in_the_order_of_the_words(folder: Path) -> None:
    every = [f"pictures/{name}" for name in ("a.PNG", "b.jpg", "in/c.webp", "in/deep/d.jpeg")]
    assert names("pictures") == every
    assert names("pictures/**") == every
    assert names("pictures/*") == every
    assert names("pictures/**/*.jp*g") == ["pictures/b.jpg", "pictures/in/deep/d.jpeg"]
    assert names("pictures/in", "pictures/b.jpg") == [*every[2:], every[1]]
    assert names("pictures/notes.txt") == ["pictures/notes.txt"]  # asked for by its name
    assert names(str(folder / "b.jpg")) == [str(folder / "b.jpg")]


def test_a_file_whose_name_looks_like_a_pattern(folder: Path) -> None:
    (folder / "x[1].jpg").touch()
    assert names("pictures/x[1].jpg") == ["pictures/x[1].jpg"]


def test_a_list_is_taken_as_it_is(folder: Path) -> None:
    lines = ("pictures/b.jpg\n", "\n", "gone.jpg\r\n", "pictures/ a.jpg")
    assert names("-", lines=lines) == ["pictures/b.jpg", "gone.jpg", "pictures/ a.jpg"]
    os.mkdir("-folder")
    assert names("pictures/b.jpg", "-", lines=("c.jpg",)) == ["pictures/b.jpg", "c.jpg"]


def test_folders_behind_links_count_once_and_pipes_not_at_all(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    (folder / "broken.jpg").symlink_to("nowhere")
    other = folder.parent / "other"
    other.mkdir()
    (other / "z.jpg").touch()
    (folder / "a-link").symlink_to(other)
    (folder / "circle").symlink_to(folder)
    (folder / "again").symlink_to(folder / "in")
    inside = ["a.PNG", "b.jpg", "broken.jpg", "in/c.webp", "in/deep/d.jpeg", "a-link/z.jpg"]
    assert names("pictures") == [f"pictures/{name}" for name in inside]


def test_a_pattern_follows_links_but_not_in_circles(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    (other / "z.jpg").touch()
    (folder / "a-link").symlink_to(other)
    for name in ("circle", "in/up", "in/deep/up"):  # with two, Python's glob never ends
        (folder / name).symlink_to(folder)
    (folder / "above").symlink_to(folder.parent)
    every = ["a-link/z.jpg", "a.PNG", "b.jpg", "in/c.webp", "in/deep/d.jpeg"]
    assert names("pictures/**") == [f"pictures/{name}" for name in every]
    assert names("**/*.jp*g") == [f"other/{n}" for n in ["z.jpg"]] + [
        f"pictures/{name}" for name in ("a-link/z.jpg", "b.jpg", "in/deep/d.jpeg")
    ]
    assert names("pict*/**/in/**/d.*") == ["pictures/in/deep/d.jpeg"]
    assert names("pictures/**/**/c.webp") == ["pictures/in/c.webp"]


def test_a_folder_that_cannot_be_read_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(place: Path) -> object:  # root may read everything
        if Path(place).name == "deep":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"pictures/in/deep: cannot be read \(Permission denied\)"):
        names("pictures")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("pictures/bb.jpg", "did you mean 'b.jpg'?"),
        ("pictures/*.gif", "no picture matches"),
        ("https://example.org/a.jpg", "a URL"),
        ("s3://bucket/a.jpg", "a URL"),
        ("-", "standard input lists no pictures"),
        ("empty", "no pictures in it; there are 1 .txt"),
    ],
)
def test_what_names_nothing_is_one_line(folder: Path, word: str, said: str) -> None:
    Path("empty").mkdir()
    Path("empty/read.txt").touch()
    with pytest.raises(UserError) as refused:
        find_pictures([word])
    (line,) = str(refused.value).splitlines()
    assert said in line


def test_a_line_for_each_mistake_and_for_urls_in_a_list(folder: Path) -> None:
    with pytest.raises(UserError) as refused:
        find_pictures(["gone", "pictures", "http://a/b.png", "-"], ["ftp://a/c.png"])
    lines = str(refused.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["gone", "http", "ftp"]
    with pytest.raises(UserError, match=r"\.\.\. and 4 more"):
        find_pictures([f"gone{number}.jpg" for number in range(9)])
