"""When a run that is started again and again is given up, counted in real run folders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adafilter_dist.run.ownership import claim, owners
from adafilter_dist.system.json_lines import append
from adafilter_dist.training.stop_policy import (
    GivenUpError,
    StopPolicy,
    ended_before,
    require_progress,
)

_DIES = """
import os, signal, sys
from pathlib import Path
from adafilter_dist.run.ownership import claim
claim(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7779")


class Job:
    """Attempts of a SLURM job at a run."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = run
        self._patch = monkeypatch
        self._restart = -1

    def submit(self, number: str | None) -> None:
        """From now on the attempts are of another job, or (None) of none."""
        if number is None:
            self._patch.delenv("SLURM_JOB_ID")
        else:
            self._patch.setenv("SLURM_JOB_ID", number)
        self._restart = -1

    def killed(self) -> None:
        """An attempt whose process is killed as soon as it has the run."""
        self._again()
        done = subprocess.run(
            [sys.executable, "-c", _DIES, str(self.run)], check=False, timeout=150
        )
        assert done.returncode == -9

    def stopped(self, step: int, last: int, reason: str = "preempted") -> None:
        """An attempt that began at ``step`` and saved at ``last``."""
        number = self.begin(step)
        claimed = self.run / "attempts" / str(number)
        assert claimed.is_dir()
        self._ownership.end("stopped", reason, last)

    def begin(self, step: int) -> int:
        """An attempt of this very process; its number."""
        self._again()
        self._ownership = claim(self.run)
        number = self._ownership.attempt
        append(self.run / "events.jsonl", {"kind": "start", "attempt": number, "step": step})
        return number

    def go_on(self, step: int, allowed: int) -> None:
        """Attempt once more, from ``step``; GivenUpError, or the attempt ends without any save."""
        self._again()
        self._ownership = claim(self.run)
        try:
            require_progress(self.run, self._ownership.attempt, step, allowed)
        finally:
            self._ownership.end("stopped", "preempted", step)

    def _again(self) -> None:
        self._restart += 1
        self._patch.setenv("SLURM_RESTART_COUNT", str(self._restart))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path / "my run", monkeypatch)


def test_restarts_that_get_nowhere_are_given_up_with_what_to_do(job: Job) -> None:
    for _ in range(2):
        job.stopped(0, 0)
    job.go_on(0, allowed=3)
    job.stopped(0, 0)
    with pytest.raises(GivenUpError) as caught:
        job.go_on(0, allowed=3)
    said = str(caught.value)
    assert "was started 4 times at step 0" in said
    assert "checkpoint.every=" in said and "launch.time=" in said
    assert said.endswith(f"adafilter submit resume='{job.run}'")
    assert caught.value.exit_code == 1


def test_progress_begins_the_count_anew(job: Job) -> None:
    job.stopped(0, 0)
    job.stopped(0, 0)
    job.stopped(0, 10)
    job.go_on(10, allowed=1)  # the one before left a checkpoint
    job.stopped(10, 10)
    with pytest.raises(GivenUpError, match="2 times at step 10"):
        job.go_on(10, allowed=2)


def test_attempts_that_were_killed_before_they_began_made_no_progress(job: Job) -> None:
    job.stopped(0, 10)
    for _ in range(2):
        job.killed()
    job.go_on(10, allowed=3)
    with pytest.raises(GivenUpError, match="3 times at step 10"):
        job.go_on(10, allowed=3)


def test_attempts_of_another_job_end_the_count(job: Job) -> None:
    for _ in range(5):
        job.stopped(20, 20)
    job.submit("7780")
    job.go_on(20, allowed=1)
    with pytest.raises(GivenUpError, match="once at step 20"):
        job.go_on(20, allowed=1)


def test_by_hand_a_run_is_never_given_up(job: Job) -> None:
    job.submit(None)
    for _ in range(3):
        job.stopped(0, 0)
    job.go_on(0, allowed=1)


def test_the_events_may_be_torn_and_the_owner_unreadable(job: Job) -> None:
    for _ in range(3):
        job.stopped(0, 0)
    with (job.run / "events.jsonl").open("a") as events:
        events.write('{"kind": "start", "att')
    with pytest.raises(GivenUpError, match="3 times"):
        job.go_on(0, allowed=3)
    (job.run / "attempts" / "3" / "owner.json").write_text("{")
    job.go_on(0, allowed=2)  # whose attempt 3 was is not known: the count ends there
    assert [owner.attempt for owner in owners(job.run)] == [1, 2, 3, 4, 5]


def test_how_the_attempt_before_ended(job: Job) -> None:
    job.stopped(0, 10, reason="time limit")
    job.killed()
    job.begin(10)
    assert ended_before(job.run, 1) == ""
    assert ended_before(job.run, 2) == "time limit"
    assert ended_before(job.run, 3) == "killed"
    (job.run / "attempts" / "1" / "ended.json").write_text('{"state": "failed", "reason": ""}')
    assert ended_before(job.run, 2) == "failed"
    (job.run / "attempts" / "1" / "ended.json").write_text("{")
    assert ended_before(job.run, 2) == "killed"


def test_a_grace_that_is_too_short_is_told_of_once() -> None:
    stop_policy = StopPolicy(grace=5)
    said = stop_policy.stop_takes(8.2, "10min")
    assert "takes 8 s" in said and "leaves 5 s" in said and "checkpoint.every=10min" in said
    assert stop_policy.stop.needs == 8.2
    assert stop_policy.stop_takes(9.0, "10min") == "" and stop_policy.stop.needs == 9.0


@pytest.mark.parametrize("grace", [None, 8.2, 60])
def test_a_grace_that_is_long_enough_or_unknown_is_not(grace: float | None) -> None:
    assert StopPolicy(grace=grace).stop_takes(8.2, 100) == ""
