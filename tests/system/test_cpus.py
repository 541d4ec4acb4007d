"""How many CPUs a rank has, in every way that it may have been started."""

from __future__ import annotations

import os

import pytest

from adafilter_dist.slurm.cpus import cpu_share, cpus_of_rank
from adafilter_dist.slurm.environment import count_of

JOB = {"SLURM_JOB_ID": "7"}
STEP = {**JOB, "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}
# submitit: one task a rank, 8 CPUs each, 4 on this node
TASKS = {
    **STEP,
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_CPUS_ON_NODE": "32",
    "LOCAL_WORLD_SIZE": "4",
}
# sbatch with torchrun: one task a node, 4 ranks in it
AGENT = {
    **STEP,
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_CPUS_PER_TASK": "32",
    "SLURM_CPUS_ON_NODE": "32",
    "LOCAL_WORLD_SIZE": "4",
}


@pytest.mark.parametrize(
    ("what", "environment", "affinity", "machine", "expected"),
    [
        ("a laptop", {}, 8, 8, 8),
        ("torchrun", {"LOCAL_WORLD_SIZE": "4"}, 64, 64, 16),
        ("torchrun under taskset", {"LOCAL_WORLD_SIZE": "4"}, 10, 64, 2),
        ("more ranks than CPUs", {"LOCAL_WORLD_SIZE": "4"}, 2, 2, 1),
        ("tasks bound to their own", TASKS, 8, 128, 8),
        ("bound, with a hyperthread each", TASKS, 16, 128, 8),
        ("bound to the job's (cgroup)", TASKS, 32, 128, 8),
        ("not bound at all (task/none)", TASKS, 128, 128, 8),
        ("bound to one CPU: srun without -c", TASKS, 1, 128, 1),
        ("a machine smaller than SLURM believes", TASKS, 2, 2, 1),
        ("torchrun in a task, bound", AGENT, 32, 128, 8),
        ("torchrun in a task, not bound", AGENT, 128, 128, 8),
        ("torchrun in a task, bound to fewer", AGENT, 16, 128, 4),
        ("no CPUs per task asked for", TASKS | {"SLURM_CPUS_PER_TASK": ""}, 128, 128, 8),
        ("more ranks than tasks", TASKS | {"SLURM_STEP_TASKS_PER_NODE": "2"}, 128, 128, 4),
        (
            "the second of uneven nodes",
            TASKS
            | {"SLURM_STEP_TASKS_PER_NODE": "4,2", "SLURM_NODEID": "1", "LOCAL_WORLD_SIZE": "2"},
            128,
            128,
            8,
        ),
        (
            "tasks that are worlds of their own",
            {k: v for k, v in TASKS.items() if k != "LOCAL_WORLD_SIZE"},
            128,
            128,
            8,
        ),
        ("a batch script, one process", JOB | {"SLURM_CPUS_ON_NODE": "6"}, 64, 64, 6),
        (
            "a batch script with torchrun",
            JOB | {"SLURM_JOB_CPUS_PER_NODE": "12(x2)", "LOCAL_WORLD_SIZE": "4"},
            64,
            64,
            3,
        ),
        (
            "a batch script for two tasks, with torchrun",  # as SLURM 22.05 sets them
            JOB
            | {
                "SLURM_CPUS_ON_NODE": "4",
                "SLURM_CPUS_PER_TASK": "2",
                "SLURM_NTASKS_PER_NODE": "2",
                "SLURM_PROCID": "0",
                "LOCAL_WORLD_SIZE": "2",
            },
            64,
            64,
            2,
        ),
        ("SLURM says nothing", JOB | {"LOCAL_WORLD_SIZE": "2"}, 8, 8, 4),
    ],
)
def test_cpus_of_a_rank(
    what: str, environment: dict[str, str], affinity: int, machine: int, expected: int
) -> None:
    assert cpu_share(environment, affinity, machine) == expected, what


def test_slurms_compressed_counts() -> None:
    assert [count_of(node, "2(x2),1,16(x3)") for node in range(7)] == [2, 2, 1, 16, 16, 16, None]
    assert count_of(0, "") is None and count_of(0, "?") is None


def test_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("SLURM_JOB_ID", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    assert cpus_of_rank() == len(os.sched_getaffinity(0))
