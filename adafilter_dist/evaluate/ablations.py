"""Other gates in the place of the learned ones, to see what accuracy they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafilter_dist.data.stored.prepared import Domains
from adafilter_dist.evaluate.gate_donors import (
    NO_DONOR,
    Draw,
    donors_across,
    donors_within,
    partners,
)
from adafilter_dist.evaluate.gate_groups import GroupCounts, unpacked
from adafilter_dist.evaluate.scores import Difference, Evaluation, Outcomes

TITLES = {
    "all_1": "all gates 1 (fine-tuned)",
    "all_0": "all gates 0 (pre-trained)",
    "mean": "each filter's mean gate",
    "permuted": "another picture's gates",
    "same_class": "... same class",
    "other_class": "... another class",
    "same_domain": "... same domain",
    "other_domain": "... another domain",
    "domain_mean": "each domain's mean gate",
    "oracle": "gates named by domain",
}
"""What each ablation is, in the order in which they are reported."""


@dataclass(frozen=True)
class Ablation:
    """Accuracy with other gates; ``difference`` is learned minus that, on the same pictures.

    Where some pictures have no other picture to take gates from, both are of the rest.
    """

    evaluation: Evaluation
    difference: Difference

    @staticmethod
    def between(
        learned: Outcomes,
        other: Outcomes,
        measured: Tensor | None,
        num_classes: int,
        domains: Domains | None,
    ) -> Ablation:
        """From what happened to each picture; ``measured`` bool (n,): to which of them."""
        if measured is not None:
            learned, other = learned.at(measured), other.at(measured)
            if domains is not None:
                domains = Domains(domains.names, domains.numbers[measured.numpy()])
        return Ablation(
            Evaluation.of(other, num_classes, domains), Difference.between(learned, other)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the confusion matrix."""
        return {
            **self.evaluation.to_dict(),
            "learned_minus_this": self.difference.to_dict(),
        }


@dataclass(frozen=True)
class OtherGates:
    """``at(positions)`` gives gates (b or 1, filters); ``measured`` bool (n,): which pictures."""

    at: Callable[[Tensor], Tensor]
    measured: Tensor | None = None


def ablations_of(
    bits: NDArray[np.uint8],
    filters: int,
    labels: Tensor,
    classes: GroupCounts,
    domains: Domains | None,
    by_domain: GroupCounts | None,
    oracle: Tensor | None,
    seed: int,
) -> dict[str, OtherGates]:
    """The gates of each ablation that the pictures allow, by the names of ``TITLES``.

    ``bits`` (n, bytes) are the learned gates, packed; ``classes`` and ``by_domain`` their counts;
    ``oracle`` (domains, filters) are the gates named for each domain.
    """
    means = classes.means[None]
    replacements = {
        "all_1": OtherGates(lambda positions: torch.ones(1, filters)),
        "all_0": OtherGates(lambda positions: torch.zeros(1, filters)),
        "mean": OtherGates(lambda positions: torch.from_numpy(means)),
    }

    # Another picture's gates: of any picture, and by class and domain.
    groups: dict[Draw, NDArray[np.int64]] = {"permuted": partners(len(labels), seed)}
    groups["same_class"] = donors_within(labels.numpy(), seed, "same_class")
    groups["other_class"] = donors_across(labels.numpy(), seed, "other_class")
    if domains is not None:
        groups["same_domain"] = donors_within(domains.numbers, seed, "same_domain")
        groups["other_domain"] = donors_across(domains.numbers, seed, "other_domain")
    for name, donors in groups.items():
        if (donors != NO_DONOR).any():
            replacements[name] = _donated(bits, filters, donors)

    # What a gate would give that knows the domain and nothing else.
    if domains is not None and by_domain is not None:
        of, counts = domains.numbers, by_domain
        replacements["domain_mean"] = OtherGates(
            lambda positions: torch.from_numpy(counts.mean_of(of[positions.numpy()]))
        )
        if oracle is not None:
            replacements["oracle"] = OtherGates(lambda positions: oracle[of[positions.numpy()]])
    return replacements


def _donated(bits: NDArray[np.uint8], filters: int, donors: NDArray[np.int64]) -> OtherGates:
    """The learned gates of each picture's donor; a picture without one keeps its own."""
    some = donors != NO_DONOR
    source = np.where(some, donors, np.arange(len(donors)))
    return OtherGates(
        lambda positions: torch.from_numpy(unpacked(bits[source[positions.numpy()]], filters)),
        measured=torch.from_numpy(some),
    )
