"""The gate's decision on a whole picture: which groups of layers use their fine-tuned filters.

One bit a picture and group, linear in what the pre-trained network sees (`LookAhead`). It is not
trained by gradient: the loss rises when a few filters change sides, from either end, so that the
gradient of single bits points the wrong way. Instead the losses of the training pictures are
measured once under every choice (`fit_decision`), while the fine-tuned filters are little trained.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The margin before the decision: every gate is 1, and no gradient reaches a logit.
UNDECIDED = 1e4


class PictureDecision(nn.Module):
    """Features (N, D) -> logits (N, K): `+margin` where a group of layers is to be fine-tuned.

    Before `decide` every logit is so large that all gates are 1. All of its state is in buffers.
    Where the choice is the same for every picture, the features are not needed (`needs_features`).
    `choices` (J, K) holds the J = 2^K choices that a picture has, one bit a group; the first is
    all pre-trained.
    """

    feature_mean: Tensor
    feature_scale: Tensor
    weight: Tensor
    bias: Tensor
    margin: Tensor
    choices: Tensor

    def __init__(
        self,
        width: int,
        groups: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        bits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=groups)))
        tensors = {
            "feature_mean": torch.zeros(width),
            "feature_scale": torch.ones(width),
            "weight": torch.zeros(len(bits), width),
            # All fine-tuned, until the decision.
            "bias": bits.prod(1),
            "margin": torch.tensor(UNDECIDED),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(device, dtype))
        self.register_buffer("choices", bits.to(device, dtype), persistent=False)
        self.measuring = False
        self._known: tuple[tuple[int, int], bool] | None = None

    @property
    def is_made(self) -> bool:
        """Whether `decide` was called, also by the run that these tensors come from."""
        return float(self.margin) < UNDECIDED

    def needs_features(self) -> bool:
        """Whether the choice depends on the picture, or its features are being measured."""
        if self.measuring or self.weight.is_inference():
            return True
        # Looked at once for each value of the weights: a GPU's answer takes the host's time.
        version = (self.weight.data_ptr(), self.weight._version)
        if self._known is None or self._known[0] != version:
            self._known = (version, bool(self.weight.any()))
        return self._known[1]

    def forward(self, features: Tensor | None) -> Tensor:
        """Logits (N, K) of the picture's choice, or (1, K) without features; no gradient."""
        with torch.no_grad():
            choice = self.bias.argmax()[None] if features is None else self.choice(features)
            return (2 * self.choices[choice] - 1) * self.margin

    def choice(self, features: Tensor) -> Tensor:
        """Which of `choices` each picture gets (N,)."""
        standard = standardise(
            features.to(self.weight.dtype), self.feature_mean, self.feature_scale
        )
        return F.linear(standard, self.weight, self.bias).argmax(1)

    def __deepcopy__(self, memo: dict[int, Any]) -> PictureDecision:
        # What is known of the weights belongs to these tensors.
        known, self._known = self._known, None
        try:
            copied = type(self).__new__(type(self))
            memo[id(self)] = copied
            copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        finally:
            self._known = known
        return copied

    @torch.no_grad()
    def decide(self, fitted: dict[str, Tensor], margin: float) -> None:
        """Take over what `fit_decision` or `random_decision` found."""
        for name, tensor in fitted.items():
            getattr(self, name).copy_(tensor)
        self.margin.fill_(margin)


def standardise(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Features with mean 0 and variance 1 / D, so that the ridge means the same for any D."""
    return (features - mean) / (scale * math.sqrt(features.shape[1]))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    scale = features.std(0, unbiased=False)
    # A feature that is the same for all pictures tells nothing, and must not divide by zero.
    return features.mean(0), torch.where(scale > 1e-6 * scale.max(), scale, scale.max() + 1e-12)


def fit_decision(
    features: Tensor, losses: Tensor, choices: Tensor, *, lean: float, ridge: float
) -> dict[str, Tensor]:
    """The linear decision that costs the pictures the least loss.

    `features` (N, D), `losses` (N, J) in nats under each of the `choices` (J, K). `lean` is added
    to a choice's loss in proportion to its share of fine-tuned groups: a start towards the
    pre-trained filters, which the fine-tuned ones must beat. Minimised is a logistic loss in which
    each picture weighs as much as its choice matters (its losses' differences to the worst
    choice), plus `ridge` * |weight|^2; it is convex, so the answer does not depend on a start.
    Returns the buffers of `PictureDecision` by name, in float64.
    """
    features, choices = features.double(), choices.double()
    cost = losses.double() + lean * choices.mean(1)
    mean, scale = _moments(features)
    standard = standardise(features, mean, scale)

    # What a choice saves against the worst one; a picture to which all are equal has no say.
    saved = cost.amax(1, keepdim=True) - cost
    saved = saved / saved.sum().clamp_min(1e-12)
    weight = torch.zeros(len(choices), features.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(len(choices), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=500,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> float:
        optimizer.zero_grad()
        log_probability = F.log_softmax(F.linear(standard, weight, bias), 1)
        # The biases add a tiny term: shared constants of them change nothing else.
        value = -(saved * log_probability).sum() + ridge * weight.square().sum()
        value = value + 1e-9 * bias.square().sum()
        value.backward()
        return float(value.detach())

    with torch.enable_grad():
        optimizer.step(objective)
    weight, bias = weight.detach(), bias.detach()

    # The same for all of these pictures: then it is for any, and nothing has to be looked at.
    fitted = {"feature_mean": mean, "feature_scale": scale, "weight": weight, "bias": bias}
    choice = F.linear(standard, weight, bias).argmax(1)
    return same_for_all(fitted, int(choice[0])) if bool((choice == choice[0]).all()) else fitted


def same_for_all(fitted: dict[str, Tensor], choice: int) -> dict[str, Tensor]:
    """The decision `fitted` with one choice for every picture."""
    bias = F.one_hot(torch.tensor(choice), len(fitted["bias"])).to(fitted["bias"])
    return fitted | {"weight": torch.zeros_like(fitted["weight"]), "bias": bias}


def is_same_for_all(fitted: dict[str, Tensor], choice: int) -> bool:
    """Whether the decision `fitted` is this one choice for every picture."""
    return not fitted["weight"].any() and int(fitted["bias"].argmax()) == choice


def random_decision(
    features: Tensor, choices: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """A decision as large as a fitted one, but drawn: the control of `fit_decision`."""
    features = features.double()
    mean, scale = _moments(features)
    weight = torch.randn(len(choices), features.shape[1], generator=generator, dtype=torch.double)
    return {
        "feature_mean": mean,
        "feature_scale": scale,
        "weight": weight,
        "bias": torch.zeros(len(choices), dtype=torch.double),
    }


def group_of_layers(layers: int, groups: int) -> list[int]:
    """The group of each layer: consecutive layers, as many in each as can be."""
    return [index * groups // layers for index in range(layers)]
