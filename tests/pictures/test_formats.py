from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest
from PIL import Image

from adafilter_dist.data.prepare.read_pictures import stored_pixels
from adafilter_dist.pictures.formats import is_picture, picture_suffixes, unread_by_suffix
from adafilter_dist.pictures.modes import BadPicture

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
0 0 64 64 rectfill
showpage
%%EOF
"""


def test_the_suffixes_are_those_of_pictures() -> None:
    usual = {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
    assert usual | {".jp2", ".ico", ".tga", ".pcx", ".sgi", ".psd"} <= picture_suffixes()
    refused = {".eps", ".ps", ".pdf", ".mpg", ".h5", ".grib", ".wmf", ".fits", ".txt", ""}
    assert not refused & picture_suffixes()
    assert is_picture("A.GIF") and not is_picture("._A.GIF") and not is_picture("jpg")


@pytest.mark.parametrize(
    "suffix", sorted({".avif", ".bmp", ".dib", ".gif", ".icns", ".ico", ".jfif", ".jp2", ".pcx"})
)
def test_what_is_taken_for_a_picture_is_read(suffix: str) -> None:
    if suffix not in Image.registered_extensions():
        pytest.skip(f"this Pillow does not know {suffix}")
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 100, 50)).save(file, Image.registered_extensions()[suffix])
    middle = stored_pixels(file.getvalue(), 32)[16, 16].astype(int)
    assert abs(middle - (200, 100, 50)).max() <= 4


def test_no_program_is_run_whatever_a_file_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands PostScript to `gs`, by its content and not by the file's name."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    ghostscript.chmod(ghostscript.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(BadPicture, match="unknown format"):
        stored_pixels(EPS, 32)
    assert not (tmp_path / "was-run").exists()


def test_files_that_are_not_read_are_counted_by_suffix() -> None:
    names = ["a.JXL", "b.jxl", "notes.txt", "README", "c.svg"]
    assert unread_by_suffix(names) == (
        "2 .jxl, 1 .txt, 1 without a suffix, 1 .svg; convert .jxl, .svg to PNG or JPEG to use them"
    )
    assert unread_by_suffix(["a.heic"]) == "1 .heic; `pip install pillow-heif` has .heic read"
    many = [f"x.{letter}" for letter in "abcdefgh"]
    assert unread_by_suffix(many).endswith("1 .f, 2 of 2 other suffixes")


@pytest.mark.may_skip("needs pillow-heif")
def test_heif_is_read_where_pillow_heif_is_installed() -> None:
    pytest.importorskip("pillow_heif")
    assert is_picture("IMG_0001.HEIC")
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 100, 50)).save(file, "HEIF")
    middle = stored_pixels(file.getvalue(), 32)[16, 16].astype(int)
    assert abs(middle - (200, 100, 50)).max() <= 4
