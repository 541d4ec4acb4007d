"""How many CPUs this rank has: those of its job, not those of the machine.

SLURM may have bound every task to CPUs of its own (the affinity is then the task's), or none (it is
the machine's), and may run one task a rank, or one torchrun a node with all ranks in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping


def cpus_of_rank() -> int:
    """CPUs for the threads of this rank, at least 1."""
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    return cpu_share(os.environ, affinity, machine)


def cpu_share(environment: Mapping[str, str], affinity: int, machine: int) -> int:
    """CPUs of a rank that may run on ``affinity`` of the ``machine``'s CPUs; at least 1.

    Outside of SLURM the ranks of a node share the affinity. Within it they share what the job has
    on the node, and get no more than the affinity allows.
    """
    ranks = max(1, _number(environment.get("LOCAL_WORLD_SIZE")) or 1)
    if "SLURM_JOB_ID" not in environment:
        return max(1, affinity // ranks)
    node = _number(environment.get("SLURM_NODEID")) or 0
    in_step = "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment
    # A batch script is no task of a step: it has all that the job has on the node.
    tasks = _tasks(environment, node) if in_step else 1
    ranks = max(ranks, tasks)
    of_task = _number(environment.get("SLURM_CPUS_PER_TASK")) if in_step else None
    on_node = _number(environment.get("SLURM_CPUS_ON_NODE")) or on(
        node, environment.get("SLURM_JOB_CPUS_PER_NODE", "")
    )
    known = [count for count in (of_task and of_task * tasks, on_node) if count]
    if not known:
        return max(1, affinity // ranks)
    allotted = min(known)
    # Fewer than the node's share of the job: these are this task's own. All of the machine's are
    # never that: nothing was bound, whatever SLURM believes the machine to have.
    own = affinity < min(allotted, machine)
    allowed = affinity // (ranks // tasks if own else ranks)
    return max(1, min(allotted // ranks, allowed))


def on(node: int, counts: str) -> int | None:
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


def _tasks(environment: Mapping[str, str], node: int) -> int:
    """Tasks of this process's step on its node."""
    here = on(node, environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return here or _number(environment.get("SLURM_NTASKS_PER_NODE")) or 1


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
