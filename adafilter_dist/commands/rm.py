"""``adafilter rm``: remove run folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from adafilter_dist.commands.parser import Parser
from adafilter_dist.errors import UserError
from adafilter_dist.run.files import PARTS, RunFiles
from adafilter_dist.run.ownership import claim
from adafilter_dist.run.removal import REMOVED, remove_folder
from adafilter_dist.slurm.queue import Queue
from adafilter_dist.status import RunStatus, read_runs
from adafilter_dist.system.disk import gib

HELP = "remove runs, with all that they saved"
_BUSY = ("running", "stalled", "queued")
_PARTS = (*PARTS, f".*{REMOVED}")


def run(words: list[str]) -> int:
    """Parse ``RUN ... [--yes]``, ask, and remove; nothing unless all of them can be."""
    parser = Parser(
        prog="adafilter rm",
        description=f"{HELP}. It asks first; runs that are running or queued are refused.",
        examples=["adafilter rm runs/demo/1a2b3c4d"],
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    options = parser.parse_args(words)
    folders = list(dict.fromkeys(_named(Path(path).expanduser()) for path in options.runs))
    runs = _removable(folders)
    if not options.yes and not _agreed(runs):
        print("nothing was removed")
        return 0
    for folder in folders:
        _remove(folder)
        print(f"removed {folder}")
    return 0


def _named(path: Path) -> Path:
    """``path`` itself; UserError where a ``..`` in it leads to another folder."""
    if ".." in path.parts:
        raise UserError(f"{path}: name the run without '..'")
    return path


def _removable(folders: Sequence[Path]) -> list[RunStatus]:
    """How the runs stand; UserError with a line for each that is not removed."""
    mistakes = [line for folder in folders if (line := _objection(folder))]
    if mistakes:
        raise UserError("\n".join(mistakes))
    runs = read_runs(folders, Queue())
    for status in runs:
        if status.state in _BUSY:
            how = (
                f"scancel {status.job}" if status.job else "stop it by Ctrl-C, or kill its process"
            )
            mistakes.append(f"{status.run}: {status.state}; {how} first")
    if mistakes:
        raise UserError("\n".join(mistakes))
    return runs


def _objection(folder: Path) -> str:
    """Why a folder is not one that can be removed, empty where it is."""
    for place in (folder, *folder.parents):
        if place.is_symlink():
            return f"{folder}: {place} is a symlink; name the folder itself: {folder.resolve()}"
    if not folder.is_dir():
        return f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}"
    if RunFiles(folder).marks() < 2:  # a project may have a file of one of these names
        return f"{folder}: not a run folder; adafilter status {folder} lists the runs in it"
    if Path.cwd().is_relative_to(folder.absolute()):
        return f"{folder}: the working folder lies in it; call it from elsewhere"
    others = [each.name for each in folder.iterdir() if not any(map(each.match, _PARTS))]
    if others:
        return f"{folder}: holds what is no part of a run, move it away first: {_some(others)}"
    return ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def _agreed(runs: Sequence[RunStatus]) -> bool:
    if not sys.stdin.isatty():
        raise UserError("nobody can be asked here: add --yes to remove without")
    for status in runs:
        step = f" at step {status.step}" if status.step else ""
        print(f"{status.run}: {status.state}{step}, {gib(_size(Path(status.run)))}")
    what = "it" if len(runs) == 1 else f"these {len(runs)} runs"
    try:
        return input(f"remove {what}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _size(folder: Path) -> int:
    return sum(each.lstat().st_size for each in folder.rglob("*") if not each.is_dir())


def _remove(folder: Path) -> None:
    """Take the run over, so that nobody else writes to it or begins, then remove it."""
    try:
        claim(folder)
        remove_folder(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be removed: {error.strerror or error}") from None
