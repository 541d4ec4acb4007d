"""What a machine must have before a SLURM cluster can be brought up on it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "unshare")
DATABASE = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacct", "sacctmgr")
# Debian keeps daemons where the PATH of a user does not look.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
NAMESPACES = ("--mount", "--uts", "--pid", "--fork", "--mount-proc")


def missing(*, accounting: bool = False) -> str | None:
    """What is missing and the command that installs it; None where a cluster can be brought up."""
    packages = "slurm-wlm munge" + (" slurmdbd mariadb-server" if accounting else "")
    programs = PROGRAMS + (DATABASE if accounting else ())
    absent = [name for name in programs if shutil.which(name, path=PATH) is None]
    if absent:
        return (
            f"a SLURM cluster needs {', '.join(absent)}: "
            f"apt-get install --no-install-recommends {packages}"
        )
    if os.geteuid() != 0:
        return (
            "a SLURM cluster is brought up by root only: run the tests as root (or in a container)"
        )
    return _namespaces()


@functools.cache
def _namespaces() -> str | None:
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "true"], capture_output=True, text=True, timeout=30, check=False
    )
    if tried.returncode == 0:
        return None
    return (
        "the nodes of a SLURM cluster need namespaces of their own, which are refused here "
        f"({tried.stderr.strip()}): run the tests where root has CAP_SYS_ADMIN"
    )
