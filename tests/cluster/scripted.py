"""A run that a script of slurm/ trains on a cluster: submitted by sbatch, held, read."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import nodes
from tests.cluster.slurm import Cluster
from tests.cluster.submitted import RECIPE, Run
from tests.distributed.launch import ROOT


class Scripted(Run):
    """One run of ``script``, with so many processes a node."""

    def __init__(
        self, cluster: Cluster, place: Path, data: Path, script: str, ranks: int, *words: str
    ) -> None:
        super().__init__(cluster, place, data, *words)
        place.mkdir(exist_ok=True)
        # A temporary folder that is another one on each node, as on machines of their own.
        variables = {
            "RANKS": str(ranks),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(cluster.node_disk),
        }
        self._before = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        self._script = ROOT / "slurm" / script

    def submit(self, *options: str) -> str:
        """``sbatch OPTIONS slurm/SCRIPT`` with the run's words; what it printed."""
        line = [*self._before, "sbatch", *options, str(self._script)]
        said = self.type(f"{' '.join(line)} {shlex.join(self._words)}")
        found = re.search(r"Submitted batch job (\d+)", said)
        assert found, said
        self.job = int(found[1])
        return said

    def workers(self) -> dict[int, int]:
        """torchrun's processes that train: rank -> process id outside of the nodes."""
        found = {}
        for node in self.cluster.nodes:
            for pid in self.cluster.processes(node):
                try:
                    values = nodes.environment(pid)
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue  # it has ended
                if "RANK" in values and b"adafilter_dist.launch.script" in words:
                    found[int(values["RANK"])] = pid
        return found

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the training inside, until the batch shell has heard a signal."""
        workers = self.workers()
        last = workers[max(workers)]
        os.kill(last, signal.SIGSTOP)
        try:
            yield
            # A link to nothing: it is in the list of its folder, and does not exist.
            place = self.cluster.disk_of("n1")
            self.cluster.wait_for(lambda: [*place.glob("*/stop*")], 60, "a signal heard")
        finally:
            os.kill(last, signal.SIGCONT)

    def said(self) -> str:
        """The end of the job's log."""
        return "\n".join(
            f"--- {log.name}\n{log.read_text()[-5000:]}" for log in self.place.glob("*.out")
        )


__all__ = ["RECIPE", "Scripted"]
