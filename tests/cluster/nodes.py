"""A node: slurmd in namespaces of its own, and the processes in them.

Each node has its own hostname, /etc/hosts, process ids, /dev/shm and disk, and sees only its own
part of the cgroups. The namespaces end with the node's first process, and what was mounted in them
with the namespaces: nothing has to be undone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tests.cluster.config import FREEZER, proctrack

# The shell stays: as the first process of its namespace it collects orphans.
_BOOT = """
set -eu
name=$1 folder=$2 cgroup=$3 freezer=$4
hostname "$name"
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/disks/$name" "$folder/disk"
mount -t tmpfs -o mode=1777 none /dev/shm
if [ -n "$cgroup" ]; then mount --bind "$cgroup" "$freezer"; fi
slurmd -D -N "$name" &
wait $!
"""
_NAMESPACES = ("--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")


def command(name: str, folder: Path, cgroup: Path | None) -> list[str]:
    """What runs the node ``name`` of the cluster in ``folder``, in the foreground.

    It is to be started in ``cgroup``, which becomes the root of the node's freezer.
    """
    boot = ["sh", "-c", _BOOT, "sh", name, str(folder), str(cgroup or ""), str(FREEZER)]
    return ["unshare", *_NAMESPACES, *(["--cgroup"] if cgroup else []), "--", *boot]


def cgroups(cluster: str) -> Path:
    """Where the nodes of a cluster are in the machine's freezer, if it has one."""
    return FREEZER / f"adafilter-{cluster}"


def cgroup(cluster: str, name: str) -> Path | None:
    """Where the node is in the machine's freezer; None where that has nothing to offer."""
    return cgroups(cluster) / name if proctrack() == "cgroup" else None


def processes(daemon: int) -> list[int]:
    """All processes of the node that ``daemon`` (unshare) runs, its first one included."""
    try:
        namespace = os.readlink(f"/proc/{daemon}/ns/pid_for_children")
        own = os.readlink("/proc/self/ns/pid")
    except OSError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if os.readlink(entry / "ns/pid") == namespace != own:
                    found.append(int(entry.name))
    return sorted(found)


def tasks(daemon: int, job: str | None = None) -> dict[int, int]:
    """The tasks that srun started on the node, of one job or of all: rank -> process id here."""
    found: dict[int, int] = {}
    for pid in processes(daemon):
        try:
            parent = _parent(pid)
            if Path(f"/proc/{parent}/comm").read_text() != "slurmstepd\n":
                continue
            values = environment(pid)
        except OSError:
            continue  # it has ended
        # The batch shell's parent is a slurmstepd too; it is no task of a step.
        if values.get("SLURM_STEP_ID", "").isdigit() and job in (None, values["SLURM_JOB_ID"]):
            found[int(values["SLURM_PROCID"])] = pid
    return found


def environment(pid: int) -> dict[str, str]:
    """The variables that a process was started with."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(pair.decode(errors="replace").split("=", 1) for pair in pairs if b"=" in pair)


def _parent(pid: int) -> int:
    # The name, in brackets, may contain anything.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
