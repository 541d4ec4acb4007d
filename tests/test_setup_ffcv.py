"""`make setup` and FFCV: a package that is compiled, which may fail and is done once."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.setup_clone import installed, make_clone, setup

LIBRARIES = ["pkg-config", "--exists", "opencv4", "libturbojpeg"]
SETUP = """
import os, sys
from setuptools import Extension, setup
if "bdist_wheel" in sys.argv:
    if "BROKEN" in os.environ:
        raise SystemExit("a compiler's complaint")
    with open(os.environ["COMPILED"], "a") as log:
        log.write("once\\n")
setup(name="ffcv", version="99", packages=["ffcv"],
      ext_modules=[Extension("ffcv._libffcv", ["ffcv/library.c"])])
"""
WITHOUT = "FFCV is not installed (it does not compile); `make ffcv` tries again."

pytestmark = [
    pytest.mark.slow,
    pytest.mark.may_skip("needs OpenCV and libturbojpeg"),
    pytest.mark.skipif(subprocess.run(LIBRARIES).returncode != 0, reason="no OpenCV here"),
]


def pack(path: Path) -> None:
    """A source distribution of a package that has FFCV's name and its library's."""
    files = {"setup.py": SETUP, "ffcv/__init__.py": "", "ffcv/library.c": "int one = 1;\n"}
    files["PKG-INFO"] = "Metadata-Version: 2.1\nName: ffcv\nVersion: 99\n"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"ffcv-99/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))


def test_ffcv_may_fail_is_tried_again_and_compiled_once(tmp_path: Path) -> None:
    home, compiled = tmp_path / "home", tmp_path / "compiled"
    (tmp_path / "sources").mkdir()
    home.mkdir()
    pack(tmp_path / "sources" / "ffcv-99.tar.gz")
    words = {"UV_FIND_LINKS": str(tmp_path / "sources"), "COMPILED": str(compiled)}
    words["ADAFILTER_FFCV"] = ""
    clones = [make_clone(tmp_path / name, constraints="ffcv==99\n") for name in ("one", "two")]

    code, text = setup(clones[0], home, BROKEN="1", **words)
    assert code == 0, text
    assert "a compiler's complaint" in text
    assert WITHOUT in text
    assert "ffcv" not in installed(clones[0])
    code, text = setup(clones[0], home, **words)
    assert (code, WITHOUT in text) == (0, True), text
    assert not compiled.exists()

    code, text = setup(clones[0], home, "ffcv", **words)
    assert code == 0, text
    assert installed(clones[0])["ffcv"] == "99"
    assert WITHOUT not in setup(clones[0], home, **words)[1]
    assert setup(clones[1], home, **words)[0] == 0
    assert installed(clones[1])["ffcv"] == "99"
    assert compiled.read_text() == "once\n"

    # The system's libraries are others now: what uv kept does not load.
    (library,) = clones[1].glob(".venv/lib/python*/site-packages/ffcv/_libffcv*.so")
    os.truncate(library, 100)
    code, text = setup(clones[1], home, "ffcv", **words)
    assert code == 0, text
    assert compiled.read_text() == "once\nonce\n"
    assert library.stat().st_size > 100

    # Not asked for any more, it goes.
    assert setup(clones[1], home, **words | {"ADAFILTER_FFCV": "never"})[0] == 0
    assert "ffcv" not in installed(clones[1])
