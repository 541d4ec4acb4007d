"""Real pictures for the tests: the examples that PyPI's foolbox wheel ships.

Fetched once with pip (1.7 MB, no dependencies), checked, and kept in the user's cache folder.
The folder $ADAFILTER_TEST_PICTURES, when set, is used instead. A test that gets none is skipped,
which counts as failed in CI.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

_WHEEL = "foolbox-3.3.4-py3-none-any.whl"
_SHA256 = "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb"


def photographs() -> list[Path]:
    """Twenty ImageNet photographs (JPEG, 512 px; NN_CLASS.jpg names the ImageNet class)."""
    return sorted(_folder().glob("imagenet_*.jpg"))


def thumbnails() -> list[Path]:
    """Forty 32x32 colour photographs (PNG) of CIFAR-10 and CIFAR-100."""
    return sorted(_folder().glob("cifar*.png"))


def real_pictures() -> list[Path]:
    """All sixty: the photographs first."""
    return photographs() + thumbnails()


def _folder() -> Path:
    given = os.environ.get("ADAFILTER_TEST_PICTURES")
    if given:
        return Path(given)
    cache = Path(os.environ.get("ADAFILTER_CACHE", "~/.cache/adafilter")).expanduser()
    folder = cache / "test-pictures" / _SHA256[:8]
    if not folder.is_dir():
        _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        done = subprocess.run([*pip, "foolbox==3.3.4"], capture_output=True, text=True, check=False)
        wheel = Path(scratch, _WHEEL)
        if done.returncode or not wheel.is_file():
            pytest.skip(f"pip download foolbox==3.3.4 failed: {done.stderr.strip()[-300:]}")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != _SHA256:
            pytest.fail(f"{_WHEEL} is not the file it was: sha256 differs")
        unpacked = Path(scratch, "pictures")
        unpacked.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith("foolbox/data/") and name.endswith((".jpg", ".png")):
                    (unpacked / Path(name).name).write_bytes(archive.read(name))
        try:
            unpacked.rename(folder)
        except OSError:  # another test process was first
            if not folder.is_dir():
                raise
