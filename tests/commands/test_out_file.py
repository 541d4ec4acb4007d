"""What --out may name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adafilter_dist.commands.out_file import out_file
from adafilter_dist.errors import UserError


def test_a_link_leads_to_the_file_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert out_file(Path("new.csv")) == tmp_path / "new.csv"
    (tmp_path / "there").mkdir()
    (tmp_path / "link.csv").symlink_to("there/later.csv")
    assert out_file(tmp_path / "link.csv") == tmp_path / "there" / "later.csv"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/dev/null", "a device or a pipe"),
        ("pipe.csv", "a device or a pipe"),
        ("to-pipe", "a device or a pipe"),
        ("first.JPG", "the name of a picture"),
        ("to-picture", "the name of a picture"),
        ("folder", "a folder"),
        ("nowhere/a.csv", "no such folder"),
    ],
)
def test_what_would_be_lost_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "to-pipe").symlink_to("pipe.csv")
    (tmp_path / "to-picture").symlink_to("first.JPG")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError) as refused:
        out_file(tmp_path / name)
    assert said in str(refused.value) and len(str(refused.value).splitlines()) == 1
