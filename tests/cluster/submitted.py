"""A run that the real launch/submit.py gave to a cluster: watched, frozen, read."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster.slurm import Cluster
from tests.distributed.launch import ROOT

RECIPE = Path(__file__).with_name("run.yaml")
SUBMIT = ROOT / "launch" / "submit.py"


class Run:
    """One run folder below ``place``, the folder that everything is typed in."""

    def __init__(self, cluster: Cluster, place: Path, data: Path, *words: str) -> None:
        self.cluster = cluster
        self.place = place
        self.folder = place / "run"
        self._words = [f"recipe={RECIPE}", f"data.prepared={data}", f"run_dir={self.folder}"]
        self._words += words
        self.job = 0
        self.lines: dict[str, str] = {}

    def submit(self, *words: str) -> str:
        """Submit it by its recipe and ``words``; what was printed."""
        return self._submitted(f"python {SUBMIT} {shlex.join([*self._words, *words])}")

    def type(self, line: str) -> str:
        """Run a line as a user would, in the folder of submission; what it printed."""
        binaries = Path(sys.executable).parent
        path = f"{binaries}:{self.cluster.environment['PATH']}"
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.place,
            env=self.cluster.environment | {"PATH": path, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def resume(self) -> str:
        """Go on by the very line that the submission printed."""
        line = self.lines["resume"].replace("launch/submit.py", str(SUBMIT))
        said = self._submitted(line)
        assert "submitted job" in said, said
        return said

    def _submitted(self, line: str) -> str:
        said = self.type(line)
        if found := re.search(r"^submitted job (\d+):", said, re.M):
            self.job = int(found[1])
            pairs = (line.split(maxsplit=1) for line in said.splitlines()[1:])
            self.lines = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
        return said

    def rows(self, name: str) -> list[dict[str, Any]]:
        """metrics.jsonl or events.jsonl, its whole lines."""
        path = self.folder / name
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind."""
        return [row for row in self.rows("events.jsonl") if row["kind"] == kind]

    @property
    def status(self) -> Mapping[str, Any]:
        """status.json."""
        path = self.folder / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def step(self) -> int:
        """Of the last training row."""
        rows = self.rows("metrics.jsonl")
        return max((row["step"] for row in rows if row["kind"] == "train"), default=0)

    def await_step(self, step: int, *, attempt: int = 1) -> None:
        """Return once this attempt trains and has come to a step."""

        def there() -> bool:
            assert self.status.get("state") != "failed", self.said()
            return len(self.events("start")) >= attempt and self.step >= step

        self.cluster.wait_for(there, 150, f"attempt {attempt} at step {step}: {self.folder}")

    def freeze(self, frozen: bool = True) -> None:
        """Stop the last rank, and with it the training; SLURM sends CONT ahead of every signal."""
        tasks = self.tasks()
        os.kill(tasks[max(tasks)], signal.SIGSTOP if frozen else signal.SIGCONT)

    def tasks(self) -> dict[int, int]:
        """Process ids by rank."""
        found: dict[int, int] = {}
        for node in self.cluster.nodes:
            found |= self.cluster.tasks(node, self.job)
        return found

    def await_state(self, *states: str, timeout: float = 180) -> None:
        """Return once status.json says so and the job is over for SLURM."""
        self.cluster.wait_for(
            lambda: self.status.get("state") in states, timeout, f"{self.folder} {states}"
        )

    def await_finished(self) -> None:
        """Return once it is finished and its job has completed."""
        self.await_state("finished")
        self.cluster.wait_for_state(self.job, "COMPLETED")

    @property
    def restarts(self) -> int:
        """How often SLURM has started the job again."""
        return int(self.cluster.job(self.job)["Restarts"])

    @property
    def steps_lost(self) -> int:
        """Over all attempts."""
        return sum(row["steps_lost"] for row in self.events("start"))

    def said(self) -> str:
        """The end of what the first rank printed."""
        logs = sorted((self.folder / "jobs").glob("*_log.out"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)
