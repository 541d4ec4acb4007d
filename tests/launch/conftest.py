"""What tests of submission share: a small recipe whose data are prepared, and no SLURM."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.launch import adafilter

RECIPE = Path(__file__).parent.parent / "cluster" / "run.yaml"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """A job ignores signals once it is done, as its process ends; this one does not end."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared data of tests/cluster/run.yaml."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    ended = adafilter("prepare", *words(folder), folder=folder.parent)
    assert ended.code == 0, ended.output
    return folder


def words(prepared: Path) -> list[str]:
    """The words of the recipe with its data."""
    return [f"recipe={RECIPE}", f"data.prepared={prepared}"]
