"""Folders with a percent sign in their path, which SLURM and submitit read as patterns.

In names of files SLURM replaces %j, %t, %x and more, and takes %% for a percent sign. submitit
replaces %j, %t, %A and %a in the whole path.

    python -m adafilter_dist.launch.percent FOLDER

is what a task of such a job runs instead of ``python -m submitit.core._submit FOLDER``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from submitit.core import utils
from submitit.core.submission import submitit_main
from submitit.slurm import slurm

_BACK = """bash -c 'cd "$0" && exec "$@"' "$here\""""
_MARK = "\ue000"  # a character that nobody has in a path, and that the shell's quoting leaves alone
_TASK, _OWN_TASK = "-m submitit.core._submit ", "-m adafilter_dist.launch.percent "


def sbatch_text(command: str, folder: Path, **parameters: Any) -> str:
    """The sbatch script that submitit writes, with % doubled where SLURM reads a pattern."""
    if "%" not in str(folder):
        text: str = slurm._make_sbatch_string(command=command, folder=folder, **parameters)
        return text
    marked = str(folder).replace("%", _MARK)
    command = f"{_BACK} {command.replace(_TASK, _OWN_TASK)}"
    text = slurm._make_sbatch_string(command=command, folder=marked, **parameters)
    # srun (22.05) takes %%j%%t for %j and the rank. So it gets a name in the folder it stands in,
    # and the tasks go back to where the script began.
    log = "%A_%a_%t_log.out" if parameters.get("map_count") else "%j_%t_log.out"
    head, srun, tail = text.partition("srun --unbuffered ")
    tail = tail.replace(shlex.quote(f"{marked}/{log}"), log, 1)
    place = f"here=$PWD\ncd {shlex.quote(str(folder))} || exit\n"
    return f"{head.replace(_MARK, '%%')}{place}{srun}{tail}"


@contextmanager
def literal_folder() -> Iterator[None]:
    """Within it, submitit takes its folder as it is, and writes scripts by `sbatch_text`."""
    paths: Any = utils.JobPaths
    executor: Any = slurm.SlurmExecutor
    format_id, text_of = paths._format_id, executor._make_submission_file_text
    first_folder = paths.get_first_id_independent_folder

    def in_name(self: Any, path: Path | str) -> Path:
        path = Path(path)
        return path if path == self._folder else path.parent / format_id(self, path.name)

    def text(self: Any, command: str, uid: str) -> str:
        return sbatch_text(command, self.folder, **self.parameters)

    paths._format_id = in_name
    paths.get_first_id_independent_folder = staticmethod(lambda folder: Path(folder).absolute())
    executor._make_submission_file_text = text
    try:
        yield
    finally:
        paths._format_id = format_id
        paths.get_first_id_independent_folder = staticmethod(first_folder)
        executor._make_submission_file_text = text_of


if __name__ == "__main__":
    with literal_folder():
        submitit_main()
