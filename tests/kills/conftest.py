"""Runs to compare with, and the table of kills at the end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed import forked
from tests.kills.attempts import ForkServer
from tests.kills.chain import Chain, Kill

SEED = int(os.environ.get("ADAFILTER_KILLS_SEED", "0"))
LOADERS = ("numba", "ffcv")


@pytest.fixture(scope="session")
def server() -> ForkServer:
    """Forks attempts that need not wait for their imports."""
    return forked.server()


@pytest.fixture(scope="session")
def words(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a recipe whose data are prepared."""
    folder = tmp_path_factory.mktemp("prepared")
    recipe = Path(__file__).with_name("kills.yaml")
    words = [f"recipe={recipe}", f"data.prepared={folder / 'data'}"]
    attempt = server.fork(["prepare", *words], folder=folder)
    assert attempt.wait() == 0, attempt.printed()
    return words


NewChain = Callable[..., Chain]
Reference = Callable[[int, str], Path]


@pytest.fixture
def new_chain(
    server: ForkServer, words: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> NewChain:
    """``new_chain(world_size, loader)``: a run that has not begun."""
    number = 0
    properties = request.node.user_properties  # which reports carry, from other processes too

    def note(kill: Kill) -> None:
        properties.append(("kill", (kill.kind, kill.where)))

    def make(world_size: int = 1, loader: str = "numba") -> Chain:
        nonlocal number
        number += 1
        folder = tmp_path / f"chain-{number}"
        return Chain(server, [*words, f"data.loader={loader}"], folder, note, world_size)

    return make


@pytest.fixture(scope="session")
def undisturbed(
    server: ForkServer, words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    """``undisturbed(world_size, loader)``: a run that nobody disturbed, made when first wanted."""
    runs: dict[tuple[int, str], Path] = {}

    def of(world_size: int, loader: str) -> Path:
        if (world_size, loader) not in runs:
            folder = tmp_path_factory.mktemp("undisturbed")
            chain = Chain(server, [*words, f"data.loader={loader}"], folder, world_size=world_size)
            runs[world_size, loader] = chain.end()
        return runs[world_size, loader]

    return of


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many attempts were killed, by kind; with -v where each of them was."""
    kills: dict[str, Counter[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, value in report.user_properties:
                    if name == "kill":
                        kills.setdefault(value[0], Counter())[value[1]] += 1
    if not kills:
        return
    terminalreporter.section(f"{sum(map(Counter.total, kills.values()))} kills, seed {SEED}")
    for kind, places in kills.items():
        terminalreporter.write_line(f"{places.total():5}  {kind}")
        if terminalreporter.verbosity > 0:
            for place, times in sorted(places.items()):
                terminalreporter.write_line(f"         {times:4}  {place}")
