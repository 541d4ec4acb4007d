"""Compiled code is kept, and does no harm where its file is torn or cannot be written."""

from __future__ import annotations

import os
import runpy
import time
from pathlib import Path

import numba
import pytest

from adafilter_dist.data.loading import compiling
from adafilter_dist.data.loading.compiling import compiled


def increment(number: int) -> int:
    return number + 1


def kept(folder: Path) -> Path:
    (path,) = (folder / "adafilter").iterdir()
    return path


def was_kept() -> bool:
    """Calls the function as another process would; whether it was not compiled again."""
    function = compiled(increment)
    assert function(41) == 42
    return bool(function.stats.cache_hits)


def test_code_is_kept_and_compiled_again_where_it_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert not was_kept()
    path = kept(tmp_path)
    content = path.read_bytes()
    assert was_kept()
    middle = len(content) // 2
    for torn in (b"", content[:middle], content[:middle] + bytes(len(content) - middle)):
        path.write_bytes(torn)
        assert not was_kept()
        assert was_kept() and kept(tmp_path) == path


def test_code_depends_on_processor_and_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert not was_kept()
    codegen = type(compiled(increment).targetctx.codegen())
    with monkeypatch.context() as other:
        other.setattr(codegen, "magic_tuple", lambda _: ("another", "processor", ""))
        assert not was_kept() and was_kept()
    with monkeypatch.context() as other:
        other.setattr(compiling, "_DEPENDS_ON", ["other sources"])
        assert not was_kept() and was_kept()
    assert was_kept() and len(list((tmp_path / "adafilter").iterdir())) == 3


def test_code_that_is_not_read_any_more_is_removed_when_new_code_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    folder, long_ago = tmp_path / "adafilter", time.time() - 91 * 86400

    def keep(version: str) -> bool:
        with monkeypatch.context() as other:
            other.setattr(compiling, "_DEPENDS_ON", [version])
            return was_kept()

    assert not keep("old")
    left = {kept(tmp_path).name}
    assert not keep("in use")
    (folder / "module.cpython-311.pyc").touch()  # not one of ours
    left.add(f"{min(left)}.{'0' * 16}.tmp")  # of a process that was killed
    (folder / max(left)).touch()
    for path in folder.iterdir():
        os.utime(path, (long_ago, long_ago))
    before = {path.name for path in folder.iterdir()}
    assert keep("in use")  # reading dates it anew, and removes nothing
    assert {path.name for path in folder.iterdir()} == before
    assert not keep("new")
    names = {path.name for path in folder.iterdir()}
    assert before - names == left and len(names - before) == 1
    assert keep("in use") and not keep("old")


def test_code_that_cannot_be_kept_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adafilter").write_text("no folder")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert not was_kept() and not was_kept()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "new"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert not was_kept() and not was_kept()
    assert not list((tmp_path / "new" / "adafilter").iterdir())


def test_a_compiler_that_is_switched_off_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the functions would take every picture for damaged."""
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(ImportError, match="NUMBA_DISABLE_JIT is set"):
        runpy.run_path(compiling.__file__)
