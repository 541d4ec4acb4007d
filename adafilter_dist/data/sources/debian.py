"""Pictures that Debian packages ship: fetched and unpacked without root."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from adafilter_dist.errors import UserError


def unpacked_package(package: str, scratch: Path, minutes: float = 5) -> Path:
    """Download ``package`` into ``scratch`` and unpack it there; the folder that stands for ``/``.

    Raises RuntimeError with the last words of what failed, or that ``apt-get`` or ``dpkg-deb`` is
    missing; subprocess.SubprocessError after ``minutes``, or where the package cannot be unpacked.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise RuntimeError(f"no {program} here")
    quick = ["-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1"]
    download = ["apt-get", *quick, "download", package]
    if _failure(download, scratch, minutes):
        # Images of Debian come without package lists; lists of our own need no root.
        for folder in ("lists/partial", "archives/partial"):
            (scratch / folder).mkdir(parents=True, exist_ok=True)
        own = ["-o", f"Dir::State::Lists={scratch / 'lists'}", "-o", f"Dir::Cache={scratch}"]
        reason = _failure(["apt-get", *quick, *own, "update"], scratch, minutes)
        reason = reason or _failure([*download, *own], scratch, minutes)
        if reason:
            raise RuntimeError(reason)
    (archive,) = scratch.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, scratch], check=True, capture_output=True)
    archive.unlink()
    return scratch


def require_unpacked(package: str, scratch: Path) -> Path:
    """As ``unpacked_package``; raises UserError that names the package where that fails."""
    try:
        return unpacked_package(package, scratch)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())[-200:]
        raise UserError(f"Debian's package {package} cannot be fetched ({reason})") from None


def _failure(command: list[str], folder: Path, minutes: float) -> str:
    """Empty if the command succeeds, else the end of its output."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60 * minutes, check=False
    )
    return "" if done.returncode == 0 else (done.stderr.strip() or f"{command[0]} failed")[-300:]
