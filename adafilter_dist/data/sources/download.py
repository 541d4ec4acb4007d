"""Downloading into place: beside the target, checked, then renamed."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adafilter_dist.errors import UserError
from adafilter_dist.system.disk import require_space

Say = Callable[[str], None]


def fetch_folder(
    target: Path, what: str, size: int, layout: str, get: Callable[[Path], Path]
) -> None:
    """Let ``get(scratch)`` download and unpack, then move what it returns to ``target``.

    ``size`` is what download and unpacked files take together, in bytes; ``layout`` says what can
    be put there by hand. A finished archive in the scratch folder survives a failed attempt, files
    unpacked half-way never become the target. Raises UserError for no network, no space and no
    right to write.
    """
    scratch = target.parent / f".{target.name}.download"
    by_hand = f"on a machine with internet run this command again, or put {layout}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{what} is not in {target}, and nothing can be written there ({error.strerror}); "
            f"set data.root to a folder of yours, or put {layout}"
        ) from None
    advice = "set data.root to a folder with more space"
    require_space(target.parent, size, f"{what} while it is fetched", advice)
    for half_unpacked in list(scratch.rglob(target.name)):
        shutil.rmtree(half_unpacked)
    try:
        with patience(seconds=30):
            unpacked = get(scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        unpacked.rename(target)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong md5 a RuntimeError
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what} could not be downloaded ({reason}); {by_hand}") from None
    shutil.rmtree(scratch)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """A time limit on each network read: behind a firewall connections may hang for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def relative_name(path: Path, root: Path) -> str:
    """The path below ``root`` with forward slashes; as it is where it lies elsewhere."""
    name = os.path.relpath(path, root)
    return str(path) if name.startswith("..") else name.replace(os.sep, "/")
