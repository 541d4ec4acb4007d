"""A rank that hangs is named, all stacks are written, and the run goes on to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from adafilter_dist.metrics import read_lines
from adafilter_dist.run.files import RunFiles
from tests.distributed.hanging import STEP
from tests.distributed.launch import adafilter, free_port, kill_tree, rank_environment
from tests.distributed.watching import ranks
from tests.kills.attempts import Attempt, ForkServer
from tests.kills.same import differences

pytestmark = pytest.mark.distributed
# Longer than all that a step does, on a machine that is busy with all of these at once.
SHORT = ["checkpoint.every=3", "train.epochs=1", "engine.hang=10s"]
WAYS = {
    **{"stop": 1, "loop": 1, "hold": 1, "wait": 1, "read": 1, "first": 0},
    **{"weights": 1, "test": 1},
}
"""How a rank hangs -> which one does. ``first`` is stop, of the rank that keeps the store; the last
two are stop, while weights are loaded and in the test at the end."""
STOPPED = ("stop", "first", "weights", "test")
LAST = "first"


@dataclass
class Scene:
    """Two ranks, of which one hangs."""

    folder: Path
    both: list[Attempt]

    @property
    def run(self) -> Path:
        return self.folder / "run"


@pytest.fixture(scope="module")
def scenes(
    server: ForkServer,
    words: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[dict[str, Scene]]:
    """All that are asked for at once: most of the time they wait."""
    scenes: dict[str, Scene] = {}
    chosen = [item.name.partition("[")[2].rstrip("]") for item in request.session.items]
    with ExitStack() as stack:
        for way, rank in WAYS.items():
            if way not in chosen:
                continue
            folder, port = tmp_path_factory.mktemp(way), free_port()
            how = {"HANG_RANK": str(rank), "HANG_HOW": "stop" if way in STOPPED else way}
            how |= {"HANG_WHERE": way}
            both = [
                server.fork(
                    ["train", *words, *SHORT, f"run_dir={folder / 'run'}"],
                    folder=folder,
                    environment=rank_environment(each, 2, port) | how,
                    output=folder / f"printed.{each}",
                    before=["tests.distributed.hanging", "install"],
                )
                for each in range(2)
            ]
            for attempt in both:
                stack.callback(kill_tree, attempt.pid)
            scenes[way] = Scene(folder, both)
        yield scenes


@pytest.mark.parametrize("way", WAYS)
def test_a_rank_that_hangs_is_named_with_its_stacks(scenes: dict[str, Scene], way: str) -> None:
    scene, hung = scenes[way], WAYS[way]
    codes = [each.wait(90) for each in scene.both]
    printed = [each.printed() for each in scene.both]
    assert codes[1 - hung] == 1, printed
    assert codes[hung] in (1, -9), printed  # by itself, or by the other one where it cannot

    # The run has failed, and says which rank hung, and where.
    files = RunFiles(scene.run)
    status = files.read_status()
    assert status["state"] == "failed"
    reason: str = status["reason"]
    assert reason.startswith(f"rank {hung} on "), reason
    assert any(f"error: {reason}" in text for text in printed)
    if way in STOPPED:
        assert "hung, last heard of" in reason and "is stopped (SIGSTOP)" in reason
    elif way == "hold":
        assert "hung, last heard of" in reason and "holds Python's interpreter" in reason
    else:
        line = {"loop": "in loop", "wait": "in wait", "read": "in open"}[way]
        assert f"hung in forward of step {STEP}, not moving for 1" in reason
        assert line in reason and ", from step.py" in reason
        assert any("if it was slow and did not hang, raise engine.hang; " in p for p in printed)
    (event,) = [row for row in read_lines(files.events) if row["kind"] == "hung"]
    assert event["reason"] == reason
    assert adafilter("status", str(scene.run), folder=scene.folder).output.count(reason[:40])

    # The stacks of the hung rank show it, except where even its watchdog was stopped.
    attempt = files.attempt(1)
    assert "in run" in attempt.stacks(1 - hung).read_text()
    if way not in STOPPED:
        assert 'hanging.py", line' in attempt.stacks(hung).read_text()


@pytest.mark.parametrize("way", [LAST])
def test_after_a_hang_the_run_goes_on_to_the_same_bits(
    scenes: dict[str, Scene], words: list[str], tmp_path: Path, way: str
) -> None:
    scene = scenes[way]
    for each in scene.both:
        each.wait(90)
    with ranks(["resume", str(scene.run)], 2, tmp_path) as both:
        for rank in both:
            assert rank.end().code == 0, rank.output
        assert "going on from step" in both[0].output
    assert not list((scene.run / "attempts" / "2").glob("stacks.*"))
    with ranks(["train", *words, *SHORT, f"run_dir={tmp_path / 'quiet'}"], 2, tmp_path) as both:
        for rank in both:
            assert rank.end().code == 0, rank.output
    assert differences(scene.run, tmp_path / "quiet") == []
