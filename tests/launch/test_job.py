"""A job's task takes its place among the ranks from what srun says."""

from __future__ import annotations

from pathlib import Path

import pytest

from adafilter_dist.launch.job import Job


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
