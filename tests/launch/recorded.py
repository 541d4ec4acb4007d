"""What squeue and sacct of SLURM 22.05.8 printed on a real cluster, said again by a script."""

from __future__ import annotations

from pathlib import Path

UNABLE = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
UNKNOWN = "slurm_load_jobs error: Invalid job id specified\n"
NO_ACCOUNTING = "Slurm accounting storage is disabled\n"

SQUEUE = """\
6699|6699|CANCELLED|1795409515||Priority
6693|6693|PENDING|1795410115||Resources
6694|6694|PENDING|1795410715||Priority
6695|6695|PENDING|1795413115||BeginTime
6696|6696|PENDING|N/A||Dependency
6697|6697|PENDING|N/A||JobHeldUser
6698_0|6698|PENDING|N/A||JobHeldUser
6698_1|6698|PENDING|N/A||JobHeldUser
6692|6692|RUNNING|1795409515|n[1-2]|None
6703|6703|FAILED|1795409562|n2|NonZeroExitCode
6706|6706|FAILED|1795409564|n2|JobLaunchFailure
6705|6705|PENDING|N/A||Nodes required for job are DOWN, DRAINED or reserved for jobs in higher \
priority partitions
6707|6707|PENDING|N/A||ReqNodeNotAvail, UnavailableNodes:n1
6712_2|6712|PENDING|N/A||Resources
6712_1|6713|RUNNING|1795409779|n[1-2]|None
6714|6714|PENDING|1795409819||job requeued in held state
6716|6716|COMPLETING|1795409833|n1|None
6717|6717|PENDING|N/A||None
"""
"""`squeue -h -r -t all -o '%i|%A|%T|%S|%N|%r'`, SLURM_TIME_FORMAT=%s."""

SACCT = """\
6698_3|6701|COMPLETED|0:0|1795409557|n2
6692|6692|CANCELLED by 0|0:0|None|None assigned
6703|6703|FAILED|3:0|1795409562|n2
6704|6704|FAILED|0:9|1795409561|n2
6705|6705|PENDING|0:0|Unknown|None assigned
6706|6706|FAILED|0:53|1795409564|n2
"""
"""`sacct -X -n -P -o JobID,JobIDRaw,State,ExitCode,Start,NodeList`, SLURM_TIME_FORMAT=%s."""


class Cluster:
    """A folder for PATH with programs that say what they were told to, and note each call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def say(self, program: str, output: str, errors: str = "", code: int = 0) -> None:
        """From now on ``program`` prints this and exits with ``code``."""
        (self.folder / f"{program}.out").write_text(output)
        (self.folder / f"{program}.err").write_text(errors)
        self._write(
            program,
            f'/bin/cat "{self.folder}/{program}.out"',
            f'/bin/cat "{self.folder}/{program}.err" >&2',
            f"exit {code}",
        )

    def hang(self, program: str) -> None:
        """From now on ``program`` gives no answer."""
        self._write(program, "exec /bin/sleep 60")

    def calls(self) -> list[str]:
        """The words of each call so far."""
        noted = self.folder / "calls"
        return noted.read_text().splitlines() if noted.exists() else []

    def _write(self, program: str, *lines: str) -> None:
        path = self.folder / program
        note = f'echo "{program} $*" >> "{self.folder}/calls"'
        path.write_text("\n".join(["#!/bin/sh", note, *lines]) + "\n")
        path.chmod(0o755)
