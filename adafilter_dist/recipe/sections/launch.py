"""``launch:``, all that differs between sites: what is asked of SLURM, and how a run comes back."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from adafilter_dist.recipe.sections.base import (
    Count,
    Duration,
    Section,
    Threads,
    check_duration,
    seconds,
)

_MOST_MINUTES = 366 * 24 * 60
_CLOCK = re.compile(r"(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?")


def minutes(text: str) -> int:
    """Whole minutes, rounded up, of ``4h``, ``90min``, SLURM's ``4:00:00`` or ``1-12``, or ``240``.

    Raises ValueError for anything else.
    """
    match = _CLOCK.fullmatch(text)
    if not match:
        return math.ceil(seconds(text) / 60)
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is not None:  # days-hours[:minutes[:seconds]]
        total = ((days * 24 + first) * 60 + second) * 60 + third
    elif match[4] is not None:  # hours:minutes:seconds
        total = (first * 60 + second) * 60 + third
    else:  # minutes[:seconds]
        total = first * 60 + second
    return math.ceil(total / 60)


def _check_time(value: Any) -> Any:
    try:
        if isinstance(value, bool) or not 1 <= minutes(str(value)) <= _MOST_MINUTES:
            raise ValueError
    except ValueError:
        raise ValueError(
            "is not a time limit; write it like '4h', '90min', '4:00:00', '1-12:00:00' or a "
            "number of minutes, at most a year"
        ) from None
    return str(value)


# Options of sbatch that are set from other keys, or that jobs rely on.
_OWN = {
    **{
        key: f"that is launch.{key}"
        for key in (
            *("nodes", "gpus_per_node", "cpus_per_task", "partition", "account", "qos", "mem"),
            *("constraint", "exclude", "time", "mail_user", "mail_type"),
        )
    },
    "ntasks": "that follows from launch.nodes and launch.tasks_per_node",
    "ntasks_per_node": "that is launch.tasks_per_node",
    "job_name": "that is the recipe's name",
    "signal": "that is launch.signal_before",
    "array": "a sweep makes one by itself",
    **dict.fromkeys(("output", "error", "open_mode"), "logs lie beside their run"),
    **dict.fromkeys(("requeue", "no_requeue"), "every job can be requeued; leave that out"),
}

Time = Annotated[str, BeforeValidator(_check_time)]
# A name or a size that may be all digits, as in launch.mem=64000.
Word = Annotated[
    str,
    BeforeValidator(lambda v: str(v) if isinstance(v, int) and not isinstance(v, bool) else v),
]
OptionalDuration = Annotated[
    str | None, BeforeValidator(lambda value: None if value is None else check_duration(value))
]


class Launch(Section):
    """How a run is submitted. None of it changes the numbers."""

    cluster: Literal["auto", "slurm", "local"] = Field(
        "auto", description="auto: SLURM where sbatch answers, else processes of this machine"
    )
    nodes: Annotated[int, Field(ge=1, le=100_000)] = Field(1, description="of a job")
    gpus_per_node: Annotated[int, Field(ge=0, le=1024)] = Field(
        1, description="0 for a run on CPUs; one process a GPU"
    )
    tasks_per_node: Threads | None = Field(
        None, description="processes a node; default gpus_per_node, for runs on CPUs 1"
    )
    cpus_per_task: Threads = Field(8, description="cores of each process, for decoding")
    mem: Word | None = Field(None, description="memory a node, e.g. 64G; default the site's")
    time: Time = Field("4h", description="time limit of one turn; the run goes on after it")
    partition: Word | None = Field(None, description="as sbatch knows it")
    account: Word | None = Field(None, description="as sbatch knows it")
    qos: Word | None = Field(None, description="as sbatch knows it")
    constraint: Word | None = Field(None, description="as sbatch knows it")
    exclude: str | None = Field(None, description="nodes not to use, e.g. n[3,7-9]")
    gpu_request: Literal["gpus_per_node", "gres", "gpus_per_task", "none"] = Field(
        "gpus_per_node", description="how this site wants GPUs asked for"
    )
    gpu_type: str | None = Field(None, description="e.g. a100, where a site has several kinds")
    mail_user: str | None = Field(None, description="whom SLURM writes to")
    mail_type: str | None = Field(None, description="e.g. END,FAIL")
    setup: list[str] = Field(
        [], description="lines of the batch script before srun: modules, conda, exports"
    )
    python: str | None = Field(
        None,
        description="the command that runs Python in the job, e.g. apptainer exec --nv IMAGE "
        "python; default the Python that submits",
    )
    environment: dict[str, str | int] = Field(
        {}, description="variables of the job, e.g. {NCCL_DEBUG: INFO}"
    )
    interface: str | None = Field(
        None, description="network interface by which the processes find each other, e.g. ib0"
    )
    connect_timeout: Duration = Field(
        "2min", description="how long the processes look for each other at the start"
    )
    signal_before: Duration = Field(
        "2min", description="how long ahead of the time limit SLURM sends USR2"
    )
    grace: OptionalDuration = Field(
        None, description="time between a preemption's signal and its end; default what SLURM says"
    )
    max_restarts: Count = Field(
        3, description="restarts in a row without progress after which the run is given up"
    )
    parallel: Count | None = Field(None, description="jobs of a sweep that run at once")
    snapshot: bool = Field(True, description="run a copy of the code as it is at submission")
    srun_args: list[str] = Field([], description="further words for srun")
    additional_parameters: dict[str, str | int | bool] = Field(
        {}, description="further options of sbatch, without --, e.g. {reservation: course}"
    )

    @model_validator(mode="after")
    def _check(self) -> Launch:
        if self.gpus_per_node and (self.tasks_per_node or self.gpus_per_node) != self.gpus_per_node:
            raise ValueError(
                f"tasks_per_node={self.tasks_per_node} with gpus_per_node={self.gpus_per_node}: "
                "there is one process a GPU; leave tasks_per_node out, or set gpus_per_node=0"
            )
        for name in self.additional_parameters:
            if name.startswith("-") or "=" in name:
                raise ValueError(f"additional_parameters: {name!r}: leave out -- and =")
            if (key := _OWN.get(name.replace("-", "_"))) is not None:
                raise ValueError(f"additional_parameters: {name}: {key}")
        return self

    @property
    def processes_per_node(self) -> int:
        """Processes a node, each with a rank."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def world_size(self) -> int:
        """Processes of the job."""
        return self.nodes * self.processes_per_node
