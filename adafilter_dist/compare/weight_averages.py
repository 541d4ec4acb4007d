"""Averages of the weights of trained networks: WiSE-FT, the greedy soup and the uniform soup.

Every tensor of the state is averaged, running statistics of BatchNorm included, as in the published
code of both papers; they are not computed anew. Whole numbers (counters) are the last network's.
The moving average during training is a key of the recipe, `ema.decay`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Accuracy = Callable[[dict[str, Tensor]], float]
"""Validation accuracy, a share, of the network with a state."""

SHARES = tuple(step / 10 for step in range(11))
"""Shares of the fine-tuned weights that WiSE-FT tries by default."""


@dataclass(frozen=True)
class Interpolated:
    """``share`` of the fine-tuned weights, and the validation accuracy of each that was tried."""

    share: float
    accuracies: dict[float, float]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Soup:
    """``members``: indices of the averaged networks; ``accuracy``: validation of the average."""

    members: tuple[int, ...]
    accuracy: float
    state: dict[str, Tensor]


def interpolate(
    start: State, tuned: State, share: float, keep: Collection[str] = ()
) -> dict[str, Tensor]:
    """(1 - share) start + share tuned, tensor by tensor; those named in ``keep`` are ``tuned``'s.

    ValueError where the states are not of the same network.
    """
    _require_same(start, tuned)
    return {
        name: value if name in keep else _mean([start[name], value], [1 - share, share])
        for name, value in tuned.items()
    }


def wise_ft(
    start: State,
    tuned: State,
    accuracy: Accuracy,
    shares: Sequence[float] = SHARES,
    keep: Collection[str] = (),
) -> Interpolated:
    """Interpolate between pre-trained and fine-tuned weights; validation chooses the share.

    Of equal accuracies the largest share wins, the nearest to fine-tuning. Wortsman et al., "Robust
    fine-tuning of zero-shot models" (CVPR 2022), who interpolate zero-shot CLIP, the classifier
    included, and call the share alpha. A classifier that has no pre-trained weights cannot be:
    name it in ``keep``.
    """
    accuracies = {s: accuracy(interpolate(start, tuned, s, keep)) for s in shares}
    best = max(accuracies, key=lambda share: (accuracies[share], share))
    return Interpolated(best, accuracies, interpolate(start, tuned, best, keep))


def uniform_soup(states: Sequence[State], accuracy: Accuracy) -> Soup:
    """The mean of all networks (Wortsman et al., "Model soups", ICML 2022)."""
    state = _average(states)
    return Soup(tuple(range(len(states))), accuracy(state), state)


def greedy_soup(states: Sequence[State], accuracies: Sequence[float], accuracy: Accuracy) -> Soup:
    """The mean of the networks that do not lower its validation accuracy, the best tried first.

    ``accuracies`` are those of each network on the same validation pictures. Recipe 1 of Wortsman
    et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time" (ICML 2022). It is never worse in validation than the best network.
    Their code adds a network only where accuracy rises; the paper, and this, also where it stays.
    """
    order = sorted(range(len(states)), key=lambda index: (-accuracies[index], index))
    members, best = [order[0]], accuracies[order[0]]
    for index in order[1:]:
        candidate = accuracy(_average([states[member] for member in (*members, index)]))
        if candidate >= best:
            members.append(index)
            best = candidate
    return Soup(tuple(members), best, _average([states[member] for member in members]))


def _average(states: Sequence[State]) -> dict[str, Tensor]:
    for state in states[1:]:
        _require_same(states[0], state)
    weights = [1 / len(states)] * len(states)
    return {name: _mean([state[name] for state in states], weights) for name in states[0]}


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """In float64, given in the dtype of the tensors."""
    if not tensors[0].is_floating_point():
        return tensors[-1].clone()
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        # What has no weight is left out, also where it is not finite.
        if weight:
            total += weight * tensor.double()
    return total.to(tensors[0].dtype)


def _require_same(one: State, other: State) -> None:
    if one.keys() != other.keys():
        odd = sorted(one.keys() ^ other.keys())[0]
        raise ValueError(f"the networks differ: only one of them has {odd}")
    for name, tensor in one.items():
        if tensor.shape != other[name].shape:
            raise ValueError(f"the networks differ: {name} has another shape")
