"""Runs submitted by launch/submit.py to a real cluster come back from whatever happens to them.

Three scenes play at once, each on a cluster of its own; the tests wait for them. All runs are of
one recipe, so all of one world size must end with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.conftest import Table
from tests.cluster.scenes import LONG, SCENES, SMALL, Ended, Stage
from tests.cluster.submitted import RECIPE
from tests.distributed.launch import adafilter
from tests.distributed.watching import ranks
from tests.kills.same import differences

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
AT_ONCE = 3
Scenes = Callable[[str], Ended]


@pytest.fixture(scope="module")
def data(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared data."""
    data = tmp_path_factory.mktemp("data") / "x"
    ended = adafilter("prepare", f"recipe={RECIPE}", f"data.prepared={data}", folder=data.parent)
    assert ended.code == 0, ended.output
    return data


@pytest.fixture(scope="module")
def two_ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nobody disturbed, without a cluster."""
    folder = tmp_path_factory.mktemp("two")
    words = [f"recipe={RECIPE}", f"data.prepared={data}", f"run_dir={folder / 'run'}"]
    with ranks(["train", *words, *SMALL], 2, folder) as both:
        for rank in both:
            assert rank.end().code == 0, rank.output
    return folder / "run"


@pytest.fixture(scope="module")
def scenes(
    data: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scenes]:
    """How a scene ended; those that tests will ask for are started at once."""
    folder = tmp_path_factory.mktemp("scenes")
    here = [item for item in request.session.items if item.path == request.path]
    asked = {item.callspec.params.get("name") for item in here if hasattr(item, "callspec")}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        playing: dict[str, Future[Ended]] = {}
        for name, scene in SCENES.items():
            if name in asked or name == "undisturbed":
                playing[name] = pool.submit(scene, Stage(_place(folder, name), data))
        yield lambda name: playing[name].result()
        for future in playing.values():
            future.cancel()


def _place(folder: Path, name: str) -> Path:
    place = folder / name
    place.mkdir()
    return place


def test_of_two_jobs_at_once_one_comes_back_with_the_same_bits(
    scenes: Scenes, two_ranks: Path, table: Table
) -> None:
    """The other one, of four ranks, is what the scenes of four are compared with."""
    ended = scenes("undisturbed")
    for row in ended.rows:
        table(**row)
    _, second = ended.runs
    assert differences(second, two_ranks) == []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in LONG else ())
        for name in SCENES
        if name != "undisturbed"
    ],
)
def test_comes_back_with_the_same_bits(
    scenes: Scenes, two_ranks: Path, table: Table, name: str
) -> None:
    ended = scenes(name)
    wanted = two_ranks if ended.ranks == 2 else scenes("undisturbed").runs[0]
    for row in ended.rows:
        table(**row)
    for run in ended.runs:
        assert differences(run, wanted) == []
