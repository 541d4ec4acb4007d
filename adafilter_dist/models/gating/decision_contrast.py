"""How far apart a decision sets the pictures, measured on pictures that it was not fitted to.

Dividing pictures has a price that their losses do not show yet: each kind of filters has fewer
pictures to train on afterwards. Where all pictures are much alike, it is all that is had.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adafilter_dist.models.gating.picture_decision import PictureDecision, fit_decision

FOLDS = 4


def cross_validated_contrast(
    features: Tensor, losses: Tensor, choices: Tensor, *, lean: float, ridge: float
) -> float:
    """The `contrast` of choices that each fold gets by a decision fitted to the others.

    Arguments are those of `fit_decision`. Picture i is in fold i modulo `FOLDS`.
    """
    features, losses = features.double(), losses.double()
    fold = torch.arange(len(features)) % FOLDS
    chosen = torch.zeros(len(features), dtype=torch.int64)
    for number in range(min(FOLDS, len(features))):
        apart, rest = fold == number, fold != number
        fitted = fit_decision(features[rest], losses[rest], choices, lean=lean, ridge=ridge)
        decision = PictureDecision(features.shape[1], choices.shape[1], dtype=torch.float64)
        decision.decide(fitted, 1.0)
        chosen[apart] = decision.choice(features[apart])
    return contrast(losses, chosen)


def contrast(losses: Tensor, chosen: Tensor) -> float:
    """What two pictures of different choices would lose together by exchanging these, in nats.

    The mean over all pairs. `losses` (N, J) under each choice, `chosen` (N,) of each picture. With
    two choices it is the mean gain by fine-tuned filters of the pictures that get these, minus that
    of the others. 0 where all have the same.
    """
    share = torch.bincount(chosen, minlength=losses.shape[1]).to(losses) / len(losses)
    different = 1 - share.square().sum()
    if float(different) < 0.5 / len(losses):
        return 0.0
    own = losses.gather(1, chosen[:, None])[:, 0]
    return float(2 * (losses @ share - own).mean() / different)
