"""SLURM's variables: what the job is to this process. No other file names them.

Within a job SLURM sets those of the job; a task that srun has started gets those of its step, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping


class SlurmEnvironment:
    """The variables by what they mean; ``variables`` are those of this process by default."""

    def __init__(self, variables: Mapping[str, str] = os.environ) -> None:
        self._variables = variables

    @property
    def job(self) -> str | None:
        """The job's id; None outside of a job."""
        return self._variables.get("SLURM_JOB_ID") or None

    @property
    def restart(self) -> int:
        """How often the job was requeued."""
        return int(self._variables.get("SLURM_RESTART_COUNT", "0"))

    @property
    def nodes(self) -> int:
        """Nodes of the job; 1 where SLURM does not say, as outside of a job."""
        # SLURM has set the second name for longer than the first.
        return self._number("SLURM_JOB_NUM_NODES") or self._number("SLURM_NNODES") or 1

    @property
    def tasks(self) -> int:
        """Tasks of the step, on all nodes. KeyError outside of a step."""
        return int(self._variables["SLURM_NTASKS"])

    @property
    def task(self) -> int | None:
        """The number of this task in its step; None outside of a step."""
        return self._number("SLURM_PROCID")

    @property
    def local_task(self) -> int | None:
        """The number of this task on its node; None outside of a step."""
        return self._number("SLURM_LOCALID")

    @property
    def node(self) -> int:
        """The number of this node in the job."""
        return self._number("SLURM_NODEID") or 0

    @property
    def in_step(self) -> bool:
        """Whether srun started this process; it did not start a batch script."""
        return "SLURM_PROCID" in self._variables and "SLURM_STEP_ID" in self._variables

    @property
    def has_gpus(self) -> bool:
        """Whether the job has GPUs on this node."""
        return self._variables.get("SLURM_GPUS_ON_NODE", "0") != "0"

    @property
    def gpus_are_of_task(self) -> bool:
        """Whether a task sees its own GPUs only."""
        return "SLURM_GPUS_PER_TASK" in self._variables

    @property
    def tasks_on_node(self) -> int:
        """Tasks of the step on this node."""
        here = count_of(self.node, self._variables.get("SLURM_STEP_TASKS_PER_NODE", ""))
        return here or self._number("SLURM_NTASKS_PER_NODE") or 1

    @property
    def cpus_of_task(self) -> int | None:
        """CPUs that were asked for each task; None where none were."""
        return self._number("SLURM_CPUS_PER_TASK")

    @property
    def cpus_on_node(self) -> int | None:
        """CPUs that the job has on this node; None where SLURM does not say."""
        return self._number("SLURM_CPUS_ON_NODE") or count_of(
            self.node, self._variables.get("SLURM_JOB_CPUS_PER_NODE", "")
        )

    def _number(self, name: str) -> int | None:
        text = self._variables.get(name, "")
        return int(text) if text.isdecimal() else None


def count_of(node: int, counts: str) -> int | None:
    """The count of one node in SLURM's ``2(x3),1``; None where there is none."""
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            return None
        repeat = int(match[2] or 1)
        if node < repeat:
            return int(match[1])
        node -= repeat
    return None


def own_job() -> tuple[str, int] | None:
    """(job id, restart count) of the SLURM job this process is in; None outside of one."""
    slurm = SlurmEnvironment()
    return (slurm.job, slurm.restart) if slurm.job else None
