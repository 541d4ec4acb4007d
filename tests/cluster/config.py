"""The configuration files of a cluster that lives in one folder of one machine."""

from __future__ import annotations

import os
import random
import socket
from dataclasses import dataclass
from pathlib import Path

FREEZER = Path("/sys/fs/cgroup/freezer")


@dataclass(frozen=True)
class Settings:
    """What clusters differ in; times in seconds, memory in megabytes.

    ``user_signal`` is SLURM's preempt_send_user_signal: a job that is preempted hears the signal
    that it asked for at the start of its grace, instead of TERM. ``extra`` are lines of slurm.conf.

    What takes its time in SLURM 22.05: the end of a grace is looked at ``kill_wait`` plus
    ``message_timeout`` after its start, then each second; time limits, and warnings ahead of them,
    every 30 s since slurmctld's start; KILL comes max(5, ``kill_wait``) after TERM; a lost node is
    down after ``slurmd_timeout`` and two pings, which wait for ``message_timeout`` each; a
    requeued job may start after 6 s.
    """

    nodes: int = 2
    cpus: int = 16
    memory: int = 64_000
    gpus: int = 0
    grace: int = 5
    user_signal: bool = True
    kill_wait: int = 2
    message_timeout: int = 5
    slurmd_timeout: int = 6
    accounting: bool = False
    extra: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """n1, n2, ..."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]


def proctrack() -> str:
    """``cgroup``, what real sites run, where a freezer cgroup can be made; else ``linuxproc``."""
    writable = os.access(FREEZER / "cgroup.procs", os.W_OK) and os.access(FREEZER, os.W_OK)
    return "cgroup" if writable else "linuxproc"


def free_ports(count: int) -> list[int]:
    """Ports below those that the kernel gives to outgoing connections."""
    held: dict[int, socket.socket] = {}
    try:
        while len(held) < count:
            port, probe = random.randrange(10_000, 32_000), socket.socket()
            try:
                probe.bind(("", port))
            except OSError:
                probe.close()
            else:
                held[port] = probe
        return list(held)
    finally:
        for probe in held.values():
            probe.close()


def sockets(name: str) -> Path:
    """The folder of a cluster's Unix sockets, whose paths may have a hundred characters only."""
    return Path("/tmp", f"slurm-{name}")


def write(folder: Path, name: str, settings: Settings) -> int:
    """Write all files of the cluster called ``name``; the port for its accounting daemon."""
    for part in ("run", "log", "state", "devices", "disk", "disks"):
        (folder / part).mkdir()
    key = folder / "run" / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    controller, accounting, *daemons = free_ports(2 + settings.nodes)
    nodes = {name: f"127.0.1.{number}" for number, name in enumerate(settings.names, 1)}
    hosts = Path("/etc/hosts").read_text() if Path("/etc/hosts").exists() else ""
    own = "".join(f"{address} {name}\n" for name, address in nodes.items())
    (folder / "hosts").write_text(f"{hosts.rstrip()}\n{own}")
    devices = [folder / "devices" / f"gpu{number}" for number in range(settings.gpus)]
    for device in devices:
        os.mknod(device, 0o20666, os.makedev(1, 3))  # as /dev/null
    for node in nodes:
        (folder / "disks" / node).mkdir()
    lines = _controller(folder, name, settings, controller)
    if settings.accounting:
        lines += _accounting(name, accounting)
    for (node, address), port in zip(nodes.items(), daemons, strict=True):
        lines.append(
            f"NodeName={node} NodeAddr={address} Port={port} CPUs={settings.cpus} Boards=1"
            f" SocketsPerBoard=1 CoresPerSocket={settings.cpus} ThreadsPerCore=1"
            f" RealMemory={settings.memory} State=UNKNOWN"
            + (f" Gres=gpu:{settings.gpus}" if devices else "")
        )
    lines += _partitions(settings)
    files = {
        "slurm.conf": [*lines, *settings.extra],
        "gres.conf": [f"Name=gpu File={device}" for device in devices],
        "plugstack.conf": [],
        "cgroup.conf": [
            *("CgroupAutomount=no", "CgroupMountpoint=/sys/fs/cgroup", "CgroupPlugin=cgroup/v1"),
            *("ConstrainCores=no", "ConstrainDevices=no", "ConstrainRAMSpace=no"),
        ],
    }
    for file, content in files.items():
        (folder / file).write_text("".join(f"{line}\n" for line in content))
    return accounting


def _controller(folder: Path, name: str, settings: Settings, port: int) -> list[str]:
    parameters = ["preempt_send_user_signal"] if settings.user_signal else []
    return [
        f"ClusterName={name}",
        f"SlurmctldHost={socket.gethostname().split('.')[0]}(127.0.0.1)",
        f"SlurmctldPort={port}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        # cred_expire, and one second, is how long a requeued job waits; below 5 it becomes 120.
        f"AuthInfo=socket={sockets(name)}/munge,cred_expire=5",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={sockets(name)}/%n",
        f"SlurmctldPidFile={folder}/run/slurmctld.pid",
        f"SlurmdPidFile={folder}/run/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/slurmd-%n.log",
        "SlurmctldDebug=verbose",
        "SlurmdDebug=verbose",
        # What the machine has in /etc/slurm is not for this cluster.
        f"PlugStackConfig={folder}/plugstack.conf",
        "MailProg=/bin/true",
        f"ProctrackType=proctrack/{proctrack()}",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "MpiDefault=none",
        "SwitchType=switch/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        f"DefMemPerCPU={settings.memory // settings.cpus}",
        # The nodes have as many cores as they say, not as many as this machine.
        "SlurmdParameters=config_overrides",
        *([f"SlurmctldParameters={','.join(parameters)}"] if parameters else []),
        *(["GresTypes=gpu"] if settings.gpus else []),
        "ReturnToService=2",
        # Each pass of the scheduler also looks at the grace of the jobs that it preempts.
        "SchedulerType=sched/backfill",
        "SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0",
        "PriorityType=priority/basic",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "JobRequeue=1",
        # submitit takes a result of an old job with the same number for that of the new one.
        f"FirstJobId={random.randrange(1_000, 1_000_000)}",
        f"KillWait={settings.kill_wait}",
        "OverTimeLimit=0",
        "InactiveLimit=0",
        "MinJobAge=3600",
        f"SlurmdTimeout={settings.slurmd_timeout}",
        "SlurmctldTimeout=10",
        f"MessageTimeout={settings.message_timeout}",
        "BatchStartTimeout=10",
    ]


def _accounting(name: str, port: int) -> list[str]:
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={port}",
        f"AccountingStoragePass={sockets(name)}/munge",
    ]


def _partitions(settings: Settings) -> list[str]:
    nodes = f"Nodes={','.join(settings.names)} MaxTime=INFINITE State=UP"
    return [
        f"PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE"
        f" GraceTime={settings.grace} {nodes}",
        f"PartitionName=low0 PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 {nodes}",
        f"PartitionName=high PriorityTier=10 PreemptMode=OFF {nodes}",
    ]
