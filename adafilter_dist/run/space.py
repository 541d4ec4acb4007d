"""How much room a run takes on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adafilter_dist.recipe import Recipe
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.disk import require_space

if TYPE_CHECKING:
    from torch import Tensor


def space_of_run(state: Mapping[str, Tensor], recipe: Recipe) -> int:
    """Bytes of the checkpoints kept, one being written, the frozen copies and best/.

    ``state`` is that of the model.
    """
    weights = sum(tensor.nbytes for tensor in state.values())
    averaged = 1 if recipe.ema.decay else 0
    one = weights * (1 + recipe.optim.states + averaged)
    return one * (recipe.checkpoint.keep + 1) + 3 * weights


def require_run_space(run: Path, needed: int) -> None:
    """UserError unless what the run still needs of ``needed`` bytes is free where it lies."""
    have = sum(f.stat().st_size for f in RunFiles(run).checkpoints.rglob("*") if f.is_file())
    advice = "make room or choose another place with run_dir=PATH"
    require_space(run, needed - have, "the run with its checkpoints", advice)
