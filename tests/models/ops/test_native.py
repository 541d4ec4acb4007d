from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from adafilter_dist.models.ops import native

PASSES = Path(native.__file__).with_name("passes.cpp")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAFILTER_CACHE", str(tmp_path / "cache"))
    native.library.cache_clear()
    yield tmp_path / "cache"  # type: ignore[misc]
    native.library.cache_clear()


@pytest.mark.slow
def test_compiles_once_and_finds_it_again(own_cache: Path) -> None:
    assert isinstance(native.library(PASSES), ctypes.CDLL)
    (made,) = (own_cache / "native").iterdir()
    before = made.stat().st_mtime_ns
    native.library.cache_clear()
    assert native.library(PASSES) is not None
    assert made.stat().st_mtime_ns == before


def test_without_a_compiler_one_warning_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match=r"none of g\+\+.*Debian: g\+\+"):
        assert native.library(PASSES) is None


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'out of everything' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.warns(UserWarning, match="out of everything"):
        assert native.library(PASSES) is None


def test_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setenv("ADAFILTER_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.library(PASSES) is None
    assert not own_cache.exists()


@pytest.mark.slow
def test_trains_without_a_compiler(tmp_path: Path) -> None:
    program = """
import torch, warnings
from adafilter_dist.models.gating.convert import convert
from torch import nn
warnings.simplefilter("ignore")
net = convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)),
              size=4).train()
net(torch.randn(2, 3, 4, 4)).sum().backward()
print(all(p.grad is not None for p in net.parameters()))
"""
    environment = {**os.environ, "PATH": str(tmp_path), "ADAFILTER_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == ["True"]
