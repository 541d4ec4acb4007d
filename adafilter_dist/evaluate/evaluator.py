"""Evaluates models on prepared data, as a recipe says."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from adafilter_dist.activations.cache import ActivationCache
from adafilter_dist.data.loading.loader import EvalLoader
from adafilter_dist.data.stored.prepared import Prepared, SplitName
from adafilter_dist.distributed.world import World
from adafilter_dist.evaluate.forward_pass import ForwardSettings, evaluate
from adafilter_dist.evaluate.scores import Evaluation
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.recipe import Recipe
from adafilter_dist.system.progress import Counting, no_counting

_LEAST_BATCH = 64


@dataclass(frozen=True)
class Evaluator:
    """The data, the recipe and the ranks that evaluate a model together.

    ``counting`` shows on this rank how far each pass is.
    """

    recipe: Recipe
    prepared: Prepared
    preprocess: Preprocess
    world: World
    cache: ActivationCache | None = None
    counting: Counting = no_counting

    @property
    def num_classes(self) -> int:
        """Classes of the data."""
        return len(self.prepared.classes)

    @property
    def settings(self) -> ForwardSettings:
        """How a model is run, by the recipe."""
        train = self.recipe.train
        return ForwardSettings(
            self.preprocess,
            self.world.device,
            train.precision,
            train.channels_last,
            self.cache,
            self.counting,
        )

    def loader(self, split: SplitName, batch_size: int | None = None) -> EvalLoader:
        """This rank's share of a split, each sample once over all ranks."""
        return EvalLoader(
            self.prepared,
            split,
            self.recipe,
            self.preprocess,
            rank=self.world.rank,
            world_size=self.world.world_size,
            batch_size=batch_size or max(_LEAST_BATCH, self.recipe.train.micro_batch),
        )

    def evaluate(self, model: nn.Module, split: SplitName) -> Evaluation:
        """Figures of a model (not wrapped, on the rank's device) on a split; collective."""
        return evaluate(model, self.loader(split), self.settings, self.num_classes)
