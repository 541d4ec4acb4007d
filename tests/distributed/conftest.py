"""A small prepared set of real pictures, shared by the tests that start the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import forked
from tests.distributed.launch import adafilter
from tests.kills.attempts import ForkServer


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a recipe whose data are prepared: 10 classes, 430 training pictures."""
    folder = tmp_path_factory.mktemp("prepared")
    words = [f"recipe={Path(__file__).with_name('small.yaml')}", f"data.prepared={folder / 'data'}"]
    ended = adafilter("prepare", *words, folder=folder)
    assert ended.code == 0, ended.output
    return words


@pytest.fixture(scope="session")
def server() -> ForkServer:
    """Forks ranks that need not wait for their imports."""
    return forked.server()


@pytest.fixture(scope="session")
def deepspeed_server() -> ForkServer:
    """Forks ranks that need not wait for DeepSpeed's imports, either."""
    return forked.server("tests.distributed.with_deepspeed")


def run_folder(folder: Path) -> Path:
    """The only run in ``folder``."""
    (run,) = (folder / "runs").glob("*/*")
    return run
