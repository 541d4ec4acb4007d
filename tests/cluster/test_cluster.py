"""The cluster that other tests stand on: nodes, tasks, preemption, two side by side."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import config, needs
from tests.cluster.config import Settings
from tests.cluster.jobs import over
from tests.cluster.slurm import Cluster

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def _free(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").cancel_all()


def test_nodes_wait_for_work(cluster: Cluster) -> None:
    assert cluster.idle("n1", "n2")
    shown = cluster.run("sinfo", "-h", "-o", "%P %D %c")
    assert sorted(shown.split("\n")[:-1]) == ["high 2 16", "low* 2 16", "low0 2 16"]


def test_tasks_are_on_machines_of_their_own(cluster: Cluster, tmp_path: Path) -> None:
    script = """
        srun sh -c 'echo $SLURM_PROCID $SLURM_LOCALID $SLURMD_NODENAME $(hostname) \
            $(getent hosts n2 | cut -d" " -f1) $(ls /dev/shm | wc -l)'
        srun --ntasks-per-node=1 --ntasks=2 sh -c 'touch $DISK/$(hostname) /dev/shm/mine'
    """
    options = ("--nodes=2", "--ntasks-per-node=2", f"--export=ALL,DISK={cluster.node_disk}")
    job = cluster.submit(script, *options, "--output=out", folder=tmp_path)
    cluster.wait_for_state(job, "COMPLETED")
    assert sorted((tmp_path / "out").read_text().splitlines()) == [
        *("0 0 n1 n1 127.0.1.2 0", "1 1 n1 n1 127.0.1.2 0"),
        *("2 0 n2 n2 127.0.1.2 0", "3 1 n2 n2 127.0.1.2 0"),
    ]
    assert [file.name for file in cluster.disk_of("n1").iterdir()] == ["n1"]
    assert [file.name for file in cluster.disk_of("n2").iterdir()] == ["n2"]
    assert list(cluster.node_disk.iterdir()) == []


def test_tasks_are_found_by_node_rank_and_job(cluster: Cluster) -> None:
    one = cluster.submit("srun sleep 60", "--nodes=2", "--ntasks-per-node=2")
    other = cluster.submit("srun sleep 60", "--nodelist=n2", "--ntasks=1")
    cluster.wait_for(lambda: len(cluster.tasks("n2", other)) == 1, 30, "the other job's task")
    cluster.wait_for(lambda: len(cluster.tasks("n2", one)) == 2, 30, "the tasks on n2")
    cluster.wait_for(lambda: len(cluster.tasks("n1", one)) == 2, 30, "the tasks on n1")
    assert [sorted(cluster.tasks(node, one)) for node in cluster.nodes] == [[0, 1], [2, 3]]
    assert list(cluster.tasks("n2", other)) == [0]
    for pid in cluster.tasks("n1", one).values():
        assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
        assert pid in cluster.processes("n1") and pid not in cluster.processes("n2")


def test_a_better_partition_preempts_and_the_job_comes_back(cluster: Cluster) -> None:
    script = """
        [ -z $SLURM_RESTART_COUNT ] || exit 0
        srun sh -c 'trap "" TERM; sleep 300'
    """
    job = cluster.submit(script, "--nodes=2", "--exclusive", "--requeue", "--partition=low0")
    cluster.wait_for(lambda: cluster.tasks("n2", job), 30, "the first attempt's tasks")
    better = cluster.submit("sleep 1", "--nodes=2", "--exclusive", "--partition=high")
    cluster.wait_for_job(job, lambda job: job["Restarts"] == "1", 60, "preempted")
    cluster.wait_for_state(better, "COMPLETED")
    assert cluster.wait_for_state(job, "COMPLETED")["Restarts"] == "1"


def test_a_failed_wait_shows_what_the_cluster_did(cluster: Cluster) -> None:
    cluster.submit("true", "--nodes=2", "--hold", "--job-name=held")
    with pytest.raises(AssertionError) as caught:
        cluster.wait_for(lambda: False, 0, "the impossible")
    text = str(caught.value)
    assert text.startswith("the impossible: not within 0 s")
    for part in ("JobHeldUser", "n2", "--- slurmctld.log", "--- slurmd-n1.log"):
        assert part in text
    assert not all(map(over, cluster.jobs()))


def test_clusters_side_by_side_do_not_meet(slurm: None, tmp_path: Path) -> None:
    one = Cluster(tmp_path / "one", Settings(nodes=1, gpus=2))
    other = Cluster(tmp_path / "other", Settings(nodes=1))
    with one, other:
        script = "srun sh -c 'echo $CUDA_VISIBLE_DEVICES'"
        first = one.submit(script, "--gres=gpu:2", "--output=out", folder=tmp_path)
        second = other.submit("srun sleep 60", folder=tmp_path)
        one.wait_for_state(first, "COMPLETED")
        other.wait_for(lambda: other.tasks("n1"), 30, "the other's task")
        assert (tmp_path / "out").read_text() == "0,1\n"
        assert [len(one.jobs()), len(other.jobs())] == [1, 1]
        assert one.tasks("n1") == {}
        one.down()
        assert other.idle("n1") is False and list(other.tasks("n1")) == [0]
        with pytest.raises(AssertionError, match="exit 1"):
            other.run("sacct", "-j", str(second))  # no accounting here


def test_accounting_knows_what_ran(tmp_path: Path) -> None:
    if (why := needs.missing(accounting=True)) is not None:
        pytest.skip(why)
    with Cluster(tmp_path / "cluster", Settings(nodes=1, accounting=True)) as cluster:
        job = cluster.submit("srun sh -c 'exit 3'; exit 4")
        cluster.wait_for_state(job, "FAILED")
        words = ("sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode", "-j", str(job))
        shown = cluster.wait_for(
            lambda: "FAILED" in (text := cluster.run(*words)) and text, 30, "sacct says FAILED"
        )
        assert shown == f"{job}|FAILED|4:0\n"


def test_a_port_that_was_taken_meanwhile_is_replaced(
    slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = config.free_ports
    asked: list[int] = []
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()

        def ports(count: int) -> list[int]:
            asked.append(count)
            free = choose(count)
            # The last is the node's.
            return [*free[:-1], other.getsockname()[1]] if len(asked) == 1 else free

        monkeypatch.setattr(config, "free_ports", ports)
        with Cluster(tmp_path / "cluster", Settings(nodes=1)) as cluster:
            assert cluster.idle("n1")
    assert len(asked) == 2
