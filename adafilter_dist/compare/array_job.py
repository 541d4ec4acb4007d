"""A member of a comparison's arrays: one rank of a trial, or of a final run.

What a final run trains is chosen when it starts, from its contender's trials, which are over then.
Like `launch.job.Job`, objects of this class are pickled: keep module, name and fields.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.compare.plan import Plan
from adafilter_dist.compare.runs import final_recipe, trial_recipe
from adafilter_dist.compare.tidy import remove_checkpoints
from adafilter_dist.compare.tuning import choose
from adafilter_dist.errors import UserError
from adafilter_dist.launch.job import Job
from adafilter_dist.recipe import Recipe
from adafilter_dist.run.files import RunFiles
from adafilter_dist.training.preemption import StopFlag


@dataclass(frozen=True)
class ArrayJob(Job):
    """Trains one run of the comparison in ``comparison``; ``number`` is of a trial, or a seed."""

    comparison: Path = Path()
    kind: str = "trial"
    contender: str = ""
    number: int = 0

    def recipe(self) -> Recipe:
        """The recipe of the run; UserError, noted in its folder, where nothing can be chosen."""
        plan = Plan.read(self.comparison)
        if self.kind == "trial":
            return trial_recipe(plan, self.comparison, self.contender, self.number)
        try:
            settings = choose(plan, self.comparison, self.contender).settings
        except UserError as error:
            if os.environ["RANK"] == "0" and self.run is not None:
                files = RunFiles(self.run)
                files.note_state(files.read_status(), "failed", str(error))
            raise
        return final_recipe(plan, self.comparison, self.contender, self.number, settings)

    def _train(self, run: Path, flag: StopFlag) -> int:
        code = super()._train(run, flag)
        if os.environ["RANK"] == "0" and RunFiles(run).read_status().get("state") == "finished":
            remove_checkpoints(run)
        return code
