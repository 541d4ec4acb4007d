from __future__ import annotations

import io
from itertools import count
from pathlib import Path

import pytest
from rich.console import Console

from adafilter_dist.__main__ import main
from adafilter_dist.system import progress
from tests.data import trees


def words(root: Path, *more: str) -> list[str]:
    small = ["data.stored_size=32", "model.weights=null"]
    return ["prepare", "recipe=imagefolder", f"data.root={root}", *small, *more]


def test_prepare_then_prepare_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = trees.folders(tmp_path, {"cat": 5, "dog": 5})
    assert main(words(root)) == 0
    said = capsys.readouterr().out
    (folder,) = root.glob("adafilter-*")
    assert said.splitlines()[-1] == f"ready: {folder}"
    assert "random weights" in said and "2 classes" in said
    assert main(words(root)) == 0
    assert "already prepared" in capsys.readouterr().out


def test_bad_input_is_short_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trees.folders(tmp_path, {"cat": 5, "dog": 5})
    (root / "cat" / "bad.jpg").write_bytes(b"")
    assert main(words(root)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: 1 of 11 pictures cannot be used:"
    assert all(line.startswith("error: ") for line in lines) and len(lines) == 3
    assert main(words(root, "data.on_bad=skip")) == 0
    assert "skipped 1: 1 empty file" in capsys.readouterr().out


@pytest.mark.parametrize(
    "missing", ["data.root={}/gone", "data.csv={}/gone.csv", "data.root={}/a-file"]
)
def test_a_place_that_is_missing_is_seen_before_weights_are_fetched(
    missing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "weights"))
    (tmp_path / "a-file").write_text("")
    line = ["prepare", "recipe=imagefolder", missing.format(tmp_path), "model.name=resnet152"]
    assert main([*line, "model.weights=IMAGENET1K_V2"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {missing.format(tmp_path)}: no such f")
    assert len(said.err.splitlines()) == 1 and said.out == ""
    assert not (tmp_path / "weights").exists()


def test_help_names_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["prepare", "--help"])
    assert left.value.code == 0
    assert "adafilter prepare recipe=food101 data.root=" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(terminal: bool) -> None:
    said, clock = io.StringIO(), count(0, 60).__next__
    console = Console(file=said, force_terminal=terminal, width=100)
    with progress.counting(console, "storing train", 1200, clock=clock) as done:
        done(600)
    if terminal:
        assert "600/1200" in said.getvalue() and "\x1b" in said.getvalue()
    else:
        (line,) = said.getvalue().splitlines()
        assert line.startswith("storing train: 600 of 1,200 pictures, ")
