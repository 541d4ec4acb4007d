"""However a cluster ends: no process, no cgroup and no mount of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster import config
from tests.cluster.config import FREEZER, Settings
from tests.cluster.keeping import ROOT
from tests.cluster.slurm import Cluster

pytestmark = pytest.mark.cluster

OWNER = """
import signal, sys, time
from pathlib import Path
from tests.cluster.config import Settings
from tests.cluster.slurm import Cluster

signal.signal(signal.SIGINT, signal.default_int_handler)
with Cluster(Path(sys.argv[1]), Settings(nodes=1)) as cluster:
    job = cluster.submit("srun sh -c 'sleep 3600 & sleep 3600'")
    cluster.wait_for(lambda: cluster.tasks("n1", job), 30, "the task")
    if "suspended" in sys.argv:
        cluster.run("scontrol", "suspend", str(job))
        cluster.wait_for_state(job, "SUSPENDED")
    print(cluster.name, flush=True)
    time.sleep(600)
"""


def remains(folder: Path, name: str) -> list[str]:
    """Processes, mounts, cgroups and sockets of the cluster ``name`` in ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                if str(folder).encode() in words + (entry / "environ").read_bytes():
                    found.append(words.replace(b"\0", b" ").decode())
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [mount for mount in mounts if str(folder) in mount]
    left = [*FREEZER.glob(f"*{name}*"), config.sockets(name)]
    found += [str(path) for path in left if path.exists()]
    return found


def soon(condition: Callable[[], bool], timeout: float = 120) -> bool:
    """Whether it becomes true within ``timeout`` seconds."""
    until = time.monotonic() + timeout
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def start(folder: Path, *words: str) -> tuple[subprocess.Popen[str], str]:
    """A process that has brought up a cluster in which a job runs; the cluster's name."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder), *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert owner.stdout is not None
    name = owner.stdout.readline().strip()
    assert name and remains(folder, name)
    return owner, name


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_the_process_that_brought_it_up(
    slurm: None, tmp_path: Path, end: signal.Signals
) -> None:
    owner, name = start(tmp_path / "cluster")
    os.killpg(owner.pid, end)  # as a terminal does
    owner.communicate(timeout=120)
    assert soon(lambda: not remains(tmp_path / "cluster", name)), remains(tmp_path, name)


def test_it_ends_with_a_job_that_is_suspended(slurm: None, tmp_path: Path) -> None:
    owner, name = start(tmp_path / "cluster", "suspended")
    owner.kill()
    owner.communicate(timeout=120)
    assert soon(lambda: not remains(tmp_path / "cluster", name)), remains(tmp_path, name)


def test_down_twice_after_a_node_was_lost_and_the_keeper_killed(
    slurm: None, tmp_path: Path
) -> None:
    folder = tmp_path / "cluster"
    cluster = Cluster(folder).up()
    try:
        job = cluster.submit("srun sleep 3600", "--nodes=2")
        cluster.wait_for(lambda: cluster.tasks("n1") and cluster.tasks("n2"), 30, f"{job} runs")
        tasks = cluster.tasks("n2")
        cluster.kill_node("n2")
        assert not any(Path(f"/proc/{pid}").exists() for pid in tasks.values())
        assert cluster.processes("n2") == []
        assert cluster.tasks("n1")
        keeper = cluster._running.process
        keeper.kill()
        keeper.wait()
        # What it had started dies with it.
        assert soon(lambda: not cluster.tasks("n1"))
    finally:
        cluster.down()
    cluster.down()
    assert soon(lambda: not remains(folder, cluster.name)), remains(folder, cluster.name)


def test_a_bring_up_that_fails_says_why_and_leaves_nothing(slurm: None, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster", Settings(extra=("PreemptExemptTime=nonsense",)))
    with pytest.raises(AssertionError) as caught:
        cluster.up()
    assert "slurmctld" in str(caught.value) and "nonsense" in str(caught.value)
    assert remains(tmp_path / "cluster", cluster.name) == []
