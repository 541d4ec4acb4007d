"""A real SLURM cluster in one folder: munge, slurmctld, a few slurmd, and accounting if wanted.

    with Cluster(folder) as cluster:
        job = cluster.submit("srun hostname", "--nodes=2")
        cluster.wait_for_state(job, "COMPLETED")

It shares nothing with a SLURM or munge of the machine, nor with another cluster like it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.cluster import accounting, config, keeper, needs, nodes
from tests.cluster.config import Settings
from tests.cluster.jobs import Job, fields, over
from tests.cluster.keeping import Keeper

T = TypeVar("T")
INTERVAL = 0.1  # seconds between two looks at something
ATTEMPTS = 3
PORT_TAKEN = "Address already in use"  # in the log of a daemon that could not listen
# Variables of a job or of the user's own SLURM, which must not reach this one's commands.
_FOREIGN = re.compile(r"(SLURM|SBATCH|SRUN|SALLOC|SCANCEL|SQUEUE|SINFO|SACCT|PMI|MUNGE)_?")


class Cluster:
    """Brought up by ``up`` or ``with``, and taken down by ``down`` or with its process."""

    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        self.folder = folder
        self.settings = settings or Settings()
        # Unique on this machine for as long as anything of it can be left.
        self.name = f"t{os.getpid()}x{time.monotonic_ns() % 10**9}"
        self._keeper: Keeper | None = None
        self._daemons: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to meet this cluster and no other."""
        kept = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
        return kept | {"PATH": needs.PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    @property
    def proctrack(self) -> str:
        """``cgroup`` (signals reach direct tasks) or ``linuxproc`` (their children as well)."""
        return config.proctrack()

    @property
    def nodes(self) -> list[str]:
        """n1, n2, ..."""
        return self.settings.names

    @property
    def node_disk(self) -> Path:
        """The folder that is another one on each node: its local disk, as its tasks see it."""
        return self.folder / "disk"

    def disk_of(self, node: str) -> Path:
        """What ``node`` finds in ``node_disk``, as seen from here."""
        return self.folder / "disks" / node

    def up(self) -> Self:
        """Bring it up; returns when all nodes are idle, or raises and leaves nothing behind.

        Between choosing a port and its daemon's start another process can take it: then the
        cluster is brought up anew, with other ports.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._up()
                break
            except BaseException:
                taken = self._port_taken()
                self.down()
                if not taken or attempt == ATTEMPTS:
                    raise
                shutil.rmtree(self.folder)
        return self

    def _port_taken(self) -> bool:
        logs = (self.folder / "log").glob("*")
        return any(PORT_TAKEN in log.read_text(errors="replace") for log in logs)

    def _up(self) -> None:
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        port = config.write(self.folder, self.name, self.settings)
        run, sockets = self.folder / "run", config.sockets(self.name)
        self._keeper = Keeper(self.folder / "keeper.out", sockets)
        socket, key = sockets / "munge", run / "munge.key"
        munged = [f"--socket={socket}", f"--key-file={key}", f"--seed-file={run / 'munge.seed'}"]
        # force: temporary folders may be closed to other users, of whom it has none.
        munged += [f"--pid-file={run / 'munged.pid'}", "--foreground", "--force"]
        self._start("munged", ["munged", *munged])
        self.wait_for(socket.is_socket, 20, "munged's socket")
        if self.settings.accounting:
            self._start_accounting(port)
        self._start("slurmctld", ["slurmctld", "-D", "-c"])
        for node in self.nodes:
            self._start_daemon_of(node)
        self.wait_for(lambda: self.idle(*self.nodes), 60, "all nodes idle")

    def _start_accounting(self, port: int) -> None:
        sockets = config.sockets(self.name)
        accounting.write(self.folder, sockets, port)
        self._start("mariadbd", accounting.database(self.folder, sockets, self.environment))
        self.wait_for(lambda: accounting.database_answers(sockets), 60, "mariadbd's socket")
        own = accounting.daemon_environment(sockets)
        self._start("slurmdbd", ["slurmdbd", "-D"], self.environment | own)
        self.wait_for(lambda: accounting.listens(port), 60, "slurmdbd's port")
        self.run("sacctmgr", "-i", "add", "cluster", self.name)

    def down(self) -> None:
        """Kill exactly what was started; nothing happens the second time."""
        running, self._keeper = self._keeper, None
        self._daemons.clear()
        if running is not None:
            running.close()
        # The keeper does this too, unless it was killed.
        remains = nodes.cgroups(self.name)
        keeper.thaw(remains)
        keeper.remove(remains)
        shutil.rmtree(config.sockets(self.name), ignore_errors=True)

    def run(
        self,
        *words: str | os.PathLike[str],
        script: str | None = None,
        folder: Path | None = None,
        timeout: float = 150,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run sbatch, scontrol, ...; what it printed. AssertionError if it failed."""
        ended = subprocess.run(
            [os.fspath(word) for word in words],
            input=script,
            stdin=subprocess.DEVNULL if script is None else None,
            cwd=folder or self.folder,
            env=self.environment | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert ended.returncode == 0, (
            f"{' '.join(map(str, words))}: exit {ended.returncode}\n{ended.stdout}{ended.stderr}"
        )
        return ended.stdout

    def submit(self, script: str, *options: str, folder: Path | None = None) -> int:
        """sbatch a shell script of which the first line may be missing; the job's number."""
        text = script if script.startswith("#!") else f"#!/bin/bash\n{script}\n"
        return int(self.run("sbatch", "--parsable", *options, script=text, folder=folder))

    def job(self, job: Job) -> dict[str, str]:
        """``scontrol show job``: its fields, none once SLURM has forgotten it."""
        return next(iter(self.jobs(job)), {})

    def jobs(self, job: Job | None = None) -> list[dict[str, str]]:
        """The members of an array, or every job there is."""
        words = ["scontrol", "show", "job", "-o", *([str(job)] if job is not None else [])]
        try:
            text = self.run(*words)
        except AssertionError as error:
            if "Invalid job id" in str(error):
                return []
            raise
        return [fields(line) for line in text.splitlines() if line.startswith("JobId=")]

    def wait_for(
        self, condition: Callable[[], T], timeout: float, what: str, *, interval: float = INTERVAL
    ) -> T:
        """The condition's first true value; AssertionError past ``timeout`` seconds, with logs."""
        until = time.monotonic() + timeout
        while not (value := condition()):
            ended = self._keeper.ended() if self._keeper is not None else {}
            if ended or time.monotonic() > until:
                why = f"ended: {ended}" if ended else f"not within {timeout:g} s"
                raise AssertionError(f"{what}: {why}\n{self.diagnosis()}")
            time.sleep(interval)
        return value

    def wait_for_job(
        self, job: Job, condition: Callable[[dict[str, str]], bool], timeout: float, what: str
    ) -> dict[str, str]:
        """The fields of ``job`` when they first satisfied ``condition``."""

        def look() -> dict[str, str] | None:
            found = self.job(job)
            return found if found and condition(found) else None

        found = self.wait_for(look, timeout, f"job {job} {what}")
        assert found is not None
        return found

    def wait_for_state(self, job: Job, *states: str, timeout: float = 150) -> dict[str, str]:
        """The fields of ``job`` when it was first in one of the states."""
        return self.wait_for_job(
            job, lambda fields: fields["JobState"] in states, timeout, " or ".join(states)
        )

    def ends_in(self, job: Job, seconds: float) -> None:
        """Move the end of a running job's time; sbatch knows whole minutes only.

        SLURM looks at limits, and for warnings ahead of them, every 30 s since it was brought up.
        """
        end = (datetime.now() + timedelta(seconds=seconds)).isoformat(timespec="seconds")
        self.run("scontrol", "update", f"JobId={job}", f"EndTime={end}")

    def idle(self, *names: str) -> bool:
        """Whether all these nodes wait for work."""
        try:
            text = self.run("sinfo", "-h", "-N", "-p", "low", "-n", ",".join(names), "-o", "%N %t")
        except AssertionError:
            return False  # slurmctld is starting
        return sorted(text.splitlines()) == sorted(f"{name} idle" for name in names)

    def processes(self, node: str) -> list[int]:
        """All processes of a node, by their ids outside of it."""
        return nodes.processes(self._daemons[node]) if node in self._daemons else []

    def tasks(self, node: str, job: Job | None = None) -> dict[int, int]:
        """The tasks on a node that srun has started: rank -> process id outside of the node."""
        if node not in self._daemons:
            return {}
        return nodes.tasks(self._daemons[node], None if job is None else str(job))

    def kill_node(self, node: str) -> None:
        """Kill -9 slurmd, slurmstepd and all tasks of a node at once: the machine is lost.

        SLURM notices by itself after SlurmdTimeout.
        """
        self._running.kill(node)
        del self._daemons[node]

    def start_node(self, node: str, *, timeout: float = 150) -> None:
        """Start a node again, with its disk as it was left; returns when it is idle."""
        self._start_daemon_of(node)
        self.wait_for(lambda: self.idle(node), timeout, f"{node} idle")

    def cancel_all(self, *, timeout: float = 150) -> None:
        """Cancel every job and wait until the nodes are free for the next test."""
        ours = [job["JobId"] for job in self.jobs() if not over(job)]
        if ours:
            with suppress(AssertionError):  # some have ended meanwhile
                self.run("scancel", *ours)
        self.wait_for(lambda: all(map(over, self.jobs())), timeout, "all jobs ended")
        running = list(self._daemons.keys() & set(self.nodes))
        self.wait_for(lambda: self.idle(*running), timeout, "nodes idle")

    def diagnosis(self) -> str:
        """The queue, the nodes and the ends of the daemons' logs."""
        parts = []
        for words in (["squeue", "-l"], ["sinfo", "-N", "-l"], ["scontrol", "show", "job", "-o"]):
            with suppress(AssertionError, subprocess.TimeoutExpired, OSError):
                parts.append(f"$ {' '.join(words)}\n{self.run(*words, timeout=5)}")
        logs = sorted((self.folder / "log").glob("*"))
        # What is printed before a daemon has its log is repeated in that log.
        parts += _tails(log for log in logs if log.with_suffix(".log") not in set(logs) - {log})
        return "\n".join(parts)

    @property
    def _running(self) -> Keeper:
        assert self._keeper is not None, "the cluster is not up"
        return self._keeper

    def _start_daemon_of(self, node: str) -> None:
        cgroup = nodes.cgroup(self.name, node)
        self._start(node, nodes.command(node, self.folder, cgroup), cgroup=cgroup)

    def _start(
        self,
        name: str,
        words: list[str],
        environment: Mapping[str, str] | None = None,
        cgroup: Path | None = None,
    ) -> None:
        self._daemons[name] = self._running.start(
            name,
            words,
            environment=environment or self.environment,
            output=self.folder / "log" / f"{name}.out",
            cgroup=cgroup,
        )


def _tails(paths: Iterable[Path], lines: int = 25) -> list[str]:
    texts = {path: path.read_text(errors="replace") for path in paths if path.is_file()}
    return [
        f"--- {path.name}\n" + "\n".join(text.splitlines()[-lines:])
        for path, text in texts.items()
        if text
    ]
