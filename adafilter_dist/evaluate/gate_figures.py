"""Figures of the learned gates themselves: by layer, over all filters, and by domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adafilter_dist.data.stored.prepared import Domains
from adafilter_dist.evaluate.gate_groups import GroupCounts

MOST_DOMAINS = 1000
"""Gates are counted by filter and domain; with more domains they are not."""


@dataclass(frozen=True)
class LayerGates:
    """Gates of one layer over all images. 1 = fine-tuned filter, 0 = pre-trained filter.

    ``variance`` is over images: the mean over filters of p(1-p), p the filter's mean gate; 0.25 at
    most. ``constant`` is the share of filters whose gate is the same for every image. ``between``
    is the variance between classes, ``information`` the mutual information of gate and domain in
    bits (`GroupCounts`); means over filters, None where they are not known. ``domains`` is the mean
    gate of each domain that has pictures, by name; None without domains.
    """

    name: str
    filters: int
    mean: float
    variance: float
    constant: float
    between: float | None = None
    information: float | None = None
    domains: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class GateFigures:
    """Means over all filters.

    ``between`` and ``within`` are variances over pictures between and within classes
    (`GroupCounts.variances`); None where no class has two pictures. ``information`` is the mutual
    information of gate and domain in bits, at most ``domain_entropy``; None without domains.
    """

    mean: float
    between: float | None
    within: float | None
    information: float | None = None
    domain_entropy: float | None = None

    @staticmethod
    def of(classes: GroupCounts, domains: GroupCounts | None = None) -> GateFigures:
        """From the counts by class and by domain."""
        variances = classes.variances()
        return GateFigures(
            mean=float(classes.means.mean()),
            between=None if variances is None else float(variances[0].mean()),
            within=None if variances is None else float(variances[1].mean()),
            information=None if domains is None else float(domains.information().mean()),
            domain_entropy=None if domains is None else domains.entropy(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class DomainGates:
    """A domain of the pictures: how many there are, and their mean gate."""

    name: str
    n: int
    mean: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.__dict__)


def group_counts(
    bits: NDArray[np.uint8],
    filters: int,
    labels: Tensor,
    num_classes: int,
    domains: Domains | None,
) -> tuple[GroupCounts, GroupCounts | None]:
    """Counts of packed gates by class and by domain; None without domains, or with too many."""
    classes = GroupCounts.of(bits, filters, labels.numpy(), num_classes)
    if domains is None or len(domains.names) > MOST_DOMAINS:
        return classes, None
    return classes, GroupCounts.of(bits, filters, domains.numbers, len(domains.names))


def layer_gates(
    names: list[str],
    widths: list[int],
    classes: GroupCounts,
    domains: GroupCounts | None,
    domain_names: Sequence[str] = (),
) -> list[LayerGates]:
    """Each layer's gates, in order of execution; ``domain_names`` are those of ``domains``."""
    variances = classes.variances()
    information = None if domains is None else domains.information()
    means: dict[str, NDArray[np.float64]] = {}
    if domains is not None:
        sizes = zip(domain_names, domains.sizes, strict=True)
        means = {name: domains.mean_of(number) for number, (name, size) in enumerate(sizes) if size}
    described, start = [], 0
    for name, width in zip(names, widths, strict=True):
        part = slice(start, start + width)
        start += width
        p = classes.means[part]
        described.append(
            LayerGates(
                name=name,
                filters=width,
                mean=float(p.mean()),
                variance=float((p * (1 - p)).mean()),
                constant=float(((p == 0) | (p == 1)).mean()),
                between=None if variances is None else float(variances[0][part].mean()),
                information=None if information is None else float(information[part].mean()),
                domains={name: float(p[part].mean()) for name, p in means.items()} or None,
            )
        )
    return described


def domain_gates(domains: Domains, counts: GroupCounts) -> list[DomainGates]:
    """The mean gate of each domain that has pictures."""
    return [
        DomainGates(name, int(size), float(counts.mean_of(number).mean()))
        for number, (name, size) in enumerate(zip(domains.names, counts.sizes, strict=True))
        if size
    ]
