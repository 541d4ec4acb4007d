"""What a job's task runs: unpickled after an upgrade, placed among the ranks by srun."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path

import pytest

from adafilter_dist.launch.job import Job

# By release 0.2.0, for a job of launch.snapshot=false that waits while its clone is upgraded.
QUEUED = """
gASVIQEAAAAAAACMGWFkYWZpbHRlcl9kaXN0LmxhdW5jaC5qb2KUjANKb2KUk5QpgZR9lCiMBHZlcmKUjAV0cmFpbpSM
BXdvcmRzlIwicmVjaXBlPS9zY3JhdGNoL3J1bi9zdWJtaXR0ZWQueWFtbJSFlIwDcnVulIwHcGF0aGxpYpSMCVBvc2l4
UGF0aJSTlIwBL5SMB3NjcmF0Y2iUaAqHlFKUjAZmb2xkZXKUaA0oaA5oD2gKjARqb2JzlHSUUpSMBG5lYXKUR0BeAAAA
AAAAjAVncmFjZZROjAxtYXhfcmVzdGFydHOUSwWMCWludGVyZmFjZZROjA9jb25uZWN0X3RpbWVvdXSUR0BOAAAAAAAA
jAVhbGxvd5SMCG9wdGltLmxylIWUdWIu
"""


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_LOCALID"])
def test_outside_of_srun_no_rank_is_made_up(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PROCID", "LOCALID", "NTASKS"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    monkeypatch.delenv(missing)
    job = Job("train", (), None, tmp_path, 120.0, None, 3, None, 60.0)
    with pytest.raises(RuntimeError, match="not a task of srun"):
        job()


def test_a_job_queued_by_an_earlier_release_is_unpickled() -> None:
    job = pickle.loads(base64.b64decode(QUEUED))
    run = Path("/scratch/run")
    words = (f"recipe={run}/submitted.yaml",)
    own = Job("train", words, run, run / "jobs", 120.0, None, 5, None, 60.0, ("optim.lr",))
    assert job == own and vars(job) == vars(own)
