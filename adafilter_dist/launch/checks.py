"""What can be known on the login node before anything is submitted: so that mistakes end there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.identity import numbers_of
from adafilter_dist.recipe.shares import require_job_shares

if TYPE_CHECKING:
    from torch import nn

_SOME_CLASSES = 10


class Checks:
    """Checks of recipes that are submitted together; what they share is looked at once."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def check(self, recipe: Recipe, run: Path) -> None:
        """Open the data, load the weights, convert, and see whether the run fits on its disk.

        Raises UserError with what to do, e.g. the line that prepares data and weights.
        """
        from adafilter_dist.distributed.deepspeed_import import require_deepspeed
        from adafilter_dist.run.space import require_run_space, space_of_run

        require_job_shares(recipe)
        if recipe.launch.python is None:  # another Python has other packages
            require_deepspeed(recipe)
        numbers = numbers_of(recipe)
        same = json.dumps(
            [numbers["data"], numbers["model"], numbers["method"], str(recipe.data.prepared)],
            sort_keys=True,
        )
        if same not in self._seen:
            self._seen[same] = 0  # said once, whatever is wrong with it
            self._seen[same] = space_of_run(_trainable(recipe, run).state_dict(), recipe)
        require_run_space(run, self._seen[same])


def planned_space(recipe: Recipe, run: Path) -> tuple[int, int]:
    """Bytes of the network that a run leaves behind, and of all that it has while it trains.

    Raises UserError where data or weights are missing.
    """
    from adafilter_dist.run.space import space_of_run

    state = _trainable(recipe, run).state_dict()
    return sum(tensor.nbytes for tensor in state.values()), space_of_run(state, recipe)


def require_network(recipe: Recipe) -> None:
    """UserError where the method cannot take the network, whatever its weights and data are."""
    from dataclasses import replace

    from torch import nn

    from adafilter_dist.methods import build_method
    from adafilter_dist.models.backbone.backbones import load_backbone

    random = recipe.model.model_copy(update={"weights": None, "head": "new"})
    backbone = load_backbone(recipe.model_copy(update={"model": random}), _SOME_CLASSES)
    if recipe.model.weights is not None:
        # The classifier that comes with the weights.
        head = backbone.module.get_submodule(backbone.head)
        assert isinstance(head, nn.Linear)
        source = nn.Linear(head.in_features, _SOME_CLASSES)
        backbone = replace(backbone, source_head=source)
    build_method(backbone, recipe)


def _trainable(recipe: Recipe, run: Path) -> nn.Module:
    from adafilter_dist.data.stored.prepared import open_prepared
    from adafilter_dist.methods import build_method
    from adafilter_dist.models.backbone.backbones import load_backbone
    from adafilter_dist.training.run_data import read_run_data

    data = read_run_data(run)
    prepared = open_prepared(recipe, known=data.fingerprint if data else None)
    return build_method(load_backbone(recipe, prepared.classes), recipe).model
