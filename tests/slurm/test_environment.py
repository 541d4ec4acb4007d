"""What SLURM's variables say of a job."""

from __future__ import annotations

import pytest

from adafilter_dist.slurm.environment import SlurmEnvironment


@pytest.mark.parametrize(
    ("variables", "nodes"),
    [
        ({"SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "3"}, 2),
        ({"SLURM_NNODES": "3"}, 3),
        ({}, 1),
    ],
)
def test_nodes_of_a_job(variables: dict[str, str], nodes: int) -> None:
    assert SlurmEnvironment({"SLURM_JOB_ID": "7", **variables}).nodes == nodes
