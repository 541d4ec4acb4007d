"""From ``launch:`` to an sbatch script and its job, by submitit."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adafilter_dist
from adafilter_dist.errors import UserError, printable
from adafilter_dist.launch.job import Job
from adafilter_dist.recipe.sections.base import seconds
from adafilter_dist.recipe.sections.launch import Launch, minutes

_INSTALL = "pip install 'adafilter-dist[slurm]'"
# Signals before Python has its handlers would end the task, and with it the job as failed.
_DEAF = """bash -c 'trap "" USR1 USR2 TERM; exec "$@"' adafilter"""


@dataclass(frozen=True)
class Batch:
    """One sbatch script: ``name`` of the job, ``folder`` for pickles and logs, ``code`` to run."""

    launch: Launch
    name: str
    folder: Path
    code: Path | None

    @property
    def path(self) -> Path | None:
        """What goes on PYTHONPATH: the copy, or the clone; None for an installed package."""
        home = Path(adafilter_dist.__file__).resolve().parent.parent
        installed = home.name in ("site-packages", "dist-packages")
        return self.code or (None if installed else home)

    def script(self, members: int) -> str:
        """The sbatch script, as it is submitted for so many members."""
        _submitit()
        from adafilter_dist.launch.percent import sbatch_text

        count = {"map_count": members} if members > 1 else {}
        return sbatch_text(self._command(), self._patterns(), **self.parameters(), **count)

    def submit(self, jobs: Sequence[Job]) -> list[str]:
        """Submit one job, or several as an array; their ids (1234, or 1234_0, 1234_1 ...).

        Raises UserError with what sbatch says where it refuses.
        """
        slurm = _submitit()
        from adafilter_dist.launch.percent import literal_folder

        executor = slurm.SlurmExecutor(self._patterns(), python=self._python())
        executor.update_parameters(**self.parameters())
        stderr = io.StringIO()
        try:
            # submitit passes on what its error holds, too.
            with literal_folder(), contextlib.redirect_stderr(stderr):
                if len(jobs) == 1:
                    submitted = [executor.submit(jobs[0])]
                else:
                    with executor.batch():
                        submitted = [executor.submit(job) for job in jobs]
        except slurm.utils.FailedJobError as error:
            raise UserError(f"sbatch refuses: {' '.join(str(error).split())}") from None
        print(stderr.getvalue(), end="", file=sys.stderr)  # a site's words on a job it takes
        return [str(job.job_id) for job in submitted]

    def test(self) -> None:
        """Let sbatch look at the script without submitting it; UserError if it would refuse."""
        # Not an array: its tasks need what one of them needs.
        try:
            done = subprocess.run(
                ["sbatch", "--test-only"],
                input=self.script(1),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError("sbatch gave no answer within 60 s: ask `scontrol ping`") from None
        if done.returncode:
            messages = [line for line in done.stderr.splitlines() if line.strip()]
            raise UserError(
                "\n".join(f"SLURM refuses: {line}" for line in messages) or "SLURM refuses"
            )

    def parameters(self) -> dict[str, Any]:
        """The words of submitit's SLURM executor."""
        launch = self.launch
        more: dict[str, Any] = {"requeue": True}
        if launch.mem:
            more["mem"] = launch.mem
        wanted: dict[str, Any] = {
            "job_name": self.name,
            "time": minutes(launch.time),
            "nodes": launch.nodes,
            "ntasks_per_node": launch.processes_per_node,
            "cpus_per_task": launch.cpus_per_task,
            "signal_delay_s": round(seconds(launch.signal_before)),
            "stderr_to_stdout": True,
            "wckey": None,  # submitit's own is refused where wckeys are kept
            "setup": self._setup(),
            "srun_args": [
                "--kill-on-bad-exit=1",
                f"--cpus-per-task={launch.cpus_per_task}",  # not passed on since SLURM 22.05
                *launch.srun_args,
            ],
            **self._gpus(),
        }
        for key in (
            *("partition", "account", "qos", "constraint", "exclude"),
            *("mail_user", "mail_type"),
        ):
            if getattr(launch, key) is not None:
                wanted[key] = getattr(launch, key)
        if launch.parallel is not None:
            wanted["array_parallelism"] = launch.parallel
        parameters = launch.additional_parameters
        wanted["additional_parameters"] = more | {
            k: v for k, v in parameters.items() if v is not False
        }
        return wanted

    def _gpus(self) -> dict[str, Any]:
        launch = self.launch
        if not launch.gpus_per_node or launch.gpu_request == "none":
            return {}
        kind = f"{launch.gpu_type}:" if launch.gpu_type else ""
        if launch.gpu_request == "gres":
            return {"gres": f"gpu:{kind}{launch.gpus_per_node}"}
        if launch.gpu_request == "gpus_per_task":
            return {"gpus_per_task": f"{kind}1"}
        return {"gpus_per_node": f"{kind}{launch.gpus_per_node}"}

    def _setup(self) -> list[str]:
        lines = list(self.launch.setup)
        if self.path is not None:
            # After the site's own lines: a module may set PYTHONPATH.
            code = shlex.quote(str(self.path))
            lines.append(f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}")
            lines.append("export PYTHONSAFEPATH=1  # the folder of submission may be a clone")
        lines += [
            f"export {name}={shlex.quote(str(value))}"
            for name, value in self.launch.environment.items()
        ]
        return lines

    def _patterns(self) -> Path:
        """The folder, unless SLURM cannot write logs there; a percent sign is no hindrance."""
        odd = next((c for c in str(self.folder) if c == "\\" or not c.isprintable()), None)
        if odd is not None:
            raise UserError(
                f"{printable(self.folder)}: SLURM cannot write logs to a path with "
                f"{printable(odd)} in it; submit from another folder, or set run_dir"
            )
        return self.folder

    def _python(self) -> str:
        return f"{_DEAF} {self.launch.python or shlex.quote(sys.executable)}"

    def _command(self) -> str:
        return f"{self._python()} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"


def _submitit() -> Any:
    """submitit's module of its SLURM executor, or one line."""
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "WARNING")
    try:
        from submitit.slurm import slurm
    except ImportError:
        raise UserError(
            f"launch.cluster=slurm submits with submitit, which is not installed: {_INSTALL}; "
            "or use the scripts in slurm/"
        ) from None
    return slurm
