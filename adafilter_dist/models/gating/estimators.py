"""From logits to hard gates that still pass a gradient.

Every estimator maps logits (N, C), already divided by the temperature, to gates (N, C).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adafilter_dist.models.gating.micro_batches import draw


def threshold(logits: Tensor) -> Tensor:
    """1 where the logit is positive, else 0; no gradient. The only rule in evaluation."""
    return (logits > 0).to(logits.dtype)


def straight_through(logits: Tensor) -> Tensor:
    """Threshold forward, the sigmoid's gradient backward."""
    return _with_gradient_of(torch.sigmoid(logits), threshold(logits))


def identity(logits: Tensor) -> Tensor:
    """Threshold forward, the gradient handed to the logits as it is."""
    return _with_gradient_of(logits, threshold(logits))


def gumbel(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Hard binary Gumbel-softmax: 1 with probability sigmoid(logit), the relaxation's gradient."""
    noisy = logits + gumbel_noise(logits, temperature)
    return _with_gradient_of(torch.sigmoid(noisy), threshold(noisy))


def gumbel_noise(logits: Tensor, temperature: float) -> Tensor:
    """What `gumbel` adds to the logits."""
    uniform = draw(torch.rand, logits).clamp(1e-6, 1 - 1e-6)
    noise = uniform.log() - (-uniform).log1p()  # the difference of two Gumbels is logistic
    return noise / temperature


def semantic_hashing(logits: Tensor) -> Tensor:
    """Improved semantic hashing: Gaussian noise and a saturating sigmoid's gradient.

    As published, half of the images (drawn anew) get the saturating sigmoid itself, so this is
    the one estimator whose gates are not all 0 or 1 in training.
    """
    noisy = logits + draw(torch.randn, logits)
    soft = (1.2 * torch.sigmoid(noisy) - 0.1).clamp(0, 1)
    hard = _with_gradient_of(soft, threshold(noisy))
    take_hard = draw(torch.rand, logits, 1) < 0.5
    return torch.where(take_hard, hard, soft)


def binarise(logits: Tensor, kind: str, temperature: float, training: bool) -> Tensor:
    """Gates (N, C) from logits (N, C); noise comes from torch's default generator, or from
    those of the micro-batches.

    `kind` is straight_through, identity, gumbel or semhash. In evaluation: the threshold.
    """
    if not training:
        return threshold(logits)
    scaled = logits / temperature
    if kind == "straight_through":
        return straight_through(scaled)
    if kind == "identity":
        return identity(scaled)
    if kind == "gumbel":
        return gumbel(scaled, temperature)
    if kind == "semhash":
        return semantic_hashing(scaled)
    raise ValueError(f"unknown estimator {kind!r}")


def _with_gradient_of(soft: Tensor, hard: Tensor) -> Tensor:
    # The bracket is exactly zero forward, so the gates are exactly 0 or 1.
    return hard + (soft - soft.detach())
