"""The cluster that tests share, and their rows of the table at the end (see summary.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.cluster import needs, summary
from tests.cluster.slurm import Cluster

Table = Callable[..., None]


@pytest.fixture(scope="session")
def slurm() -> None:
    """A cluster can be brought up here."""
    if (why := needs.missing()) is not None:
        pytest.skip(why)


@pytest.fixture(scope="session")
def cluster(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of 16 cores, for tests that leave it as they found it."""
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as shared:
        yield shared


@pytest.fixture(autouse=True)
def _facts(request: pytest.FixtureRequest) -> None:
    if "cluster" in request.fixturenames:
        cluster: Cluster = request.getfixturevalue("cluster")
        version = cluster.run("sinfo", "--version").strip()
        text = f"{version}, proctrack/{cluster.proctrack}, {len(cluster.nodes)} nodes"
        request.node.user_properties.append((summary.FACTS, text))


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    """``table(interruption="time limit", steps_lost=0, ...)``: a row that is printed at the end."""

    def add(**cells: str | float) -> None:
        request.node.user_properties.append((summary.ROW, cells))

    return add
