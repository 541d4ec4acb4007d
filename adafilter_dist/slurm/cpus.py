"""How many CPUs this rank has: those of its job, not those of the machine.

SLURM may have bound every task to CPUs of its own (the affinity is then the task's), or none (it is
the machine's), and may run one task a rank, or one torchrun a node with all ranks in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from adafilter_dist.slurm.environment import SlurmEnvironment


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
    text = environment.get("LOCAL_WORLD_SIZE", "")
    ranks = max(1, int(text) if text.isdecimal() else 1)
    slurm = SlurmEnvironment(environment)
    if slurm.job is None:
        return max(1, affinity // ranks)
    # A batch script is no task of a step: it has all that the job has on the node.
    tasks = slurm.tasks_on_node if slurm.in_step else 1
    ranks = max(ranks, tasks)
    of_task = slurm.cpus_of_task if slurm.in_step else None
    known = [count for count in (of_task and of_task * tasks, slurm.cpus_on_node) if count]
    if not known:
        return max(1, affinity // ranks)
    allotted = min(known)
    # Fewer than the node's share of the job: these are this task's own. All of the machine's are
    # never that: nothing was bound, whatever SLURM believes the machine to have.
    own = affinity < min(allotted, machine)
    allowed = affinity // (ranks // tasks if own else ranks)
    return max(1, min(allotted // ranks, allowed))
