"""Compiled code is found again by the next attempt, which is another process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from adafilter_dist.engine.compiled import keep_compiled
from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d
from adafilter_dist.recipe import Recipe
from tests.distributed import forked

CPU = torch.device("cpu")
VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def recipe(compile: bool = True) -> Recipe:
    data, train = {"name": "fashion_mnist"}, {"compile": compile}
    return Recipe.model_validate({"name": "t", "data": data, "train": train})


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variables but the place of the cache, and all put back."""
    for name in (*VARIABLES, "CXX", "CC"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("ADAFILTER_CACHE", str(tmp_path))
    return tmp_path


def attempt(cache: Path) -> list[float]:
    """In a process of its own: graphs that were compiled, and found; a loss."""
    out = cache.with_suffix(".json")
    one = forked.server().fork(
        [],
        folder=cache.parent,
        environment={"ADAFILTER_CACHE": str(cache)},
        before=[__name__, compile_one.__name__, str(out)],
    )
    assert one.wait() == 0, one.printed()
    found: list[float] = json.loads(out.read_text())
    return found


def compile_one(out: str) -> None:
    torch.set_num_threads(1)
    assert keep_compiled(recipe(), CPU) == []
    torch.manual_seed(0)
    norm = MicroBatchNorm2d(4)
    with torch.no_grad():
        loss = torch.compile(norm)(torch.randn(4, 4, 8, 8)).relu().sum()
    found = counters["inductor"]
    told = [found["fxgraph_cache_miss"], found["fxgraph_cache_hit"], float(loss)]
    Path(out).write_text(json.dumps(told))


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    missed, hit, loss = attempt(cache)
    assert missed > 0 and hit == 0
    libraries = {path: path.stat().st_mtime_ns for path in cache.rglob("*.so")}
    assert libraries
    assert attempt(cache) == [0, missed, loss]
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.so")} == libraries


def test_both_caches_lie_in_the_packages_folder(clean: Path) -> None:
    assert keep_compiled(recipe(), CPU) == []
    inductor, triton = (Path(os.environ[name]) for name in VARIABLES)
    assert inductor.parent == clean / "compiled" and inductor.name.startswith("cpu-")
    assert triton.parent == inductor and inductor.is_dir()


def test_what_the_user_set_wins(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    keep_compiled(recipe(), CPU)
    assert os.environ["TRITON_CACHE_DIR"] == "/mine"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/ours")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    keep_compiled(recipe(), CPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/ours"
    assert "TRITON_CACHE_DIR" not in os.environ


def test_torchs_own_default_is_nobodys_wish(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing torch._dynamo, as timm does, leaves it in the environment."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    keep_compiled(recipe(), CPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(clean))


def test_without_compiling_nothing_is_set(clean: Path) -> None:
    assert keep_compiled(recipe(compile=False), CPU) == []
    assert not any(name in os.environ for name in VARIABLES) and not list(clean.iterdir())


def test_a_place_that_cannot_be_written_is_said(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean / "file").touch()
    monkeypatch.setenv("ADAFILTER_CACHE", str(clean / "file"))
    (notice,) = keep_compiled(recipe(), CPU)
    assert notice.startswith(f"compiled code is not kept between attempts: {clean / 'file'}")
    assert not any(name in os.environ for name in VARIABLES)


@pytest.mark.parametrize("variable", ["PATH", "CXX"])
def test_without_a_compiler_it_is_refused(
    clean: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(clean / "nothing"))
    with pytest.raises(UserError, match=r"train.compile=true: .*is not on PATH.*CXX=PATH"):
        keep_compiled(recipe(), CPU)
    assert keep_compiled(recipe(compile=False), CPU) == []
