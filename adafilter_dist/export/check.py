"""Whether an exported program computes what the network does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adafilter_dist.errors import CheckFailedError

TOLERANCE = 1e-3
"""Of the largest logit of a picture."""
AT_GATE = 1e-3
"""Gates whose logit is nearer to 0 may flip by rounding (docs/inference.md)."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Logits (N, C) of pictures, and those of their gates (N, F), layers side by side."""

    logits: Tensor
    gates: Tensor


@dataclass(frozen=True)
class Check:
    """``largest``: the largest difference of a logit, of the pictures whose gates are the same.

    ``flipped`` of the ``pictures`` have another path, because a gate's logit was almost zero;
    ``same_top1`` have the same predicted class. ``scale`` is the largest logit.
    """

    pictures: int
    largest: float
    scale: float
    same_top1: int
    flipped: int
    on: str

    def line(self) -> str:
        """In words."""
        paths = f"; {self.flipped} took another path at a gate of almost 0"
        return (
            f"{self.pictures} pictures of {self.on}: largest difference of a logit "
            f"{self.largest:.2g} (they go to {self.scale:.3g}), the same class for "
            f"{self.same_top1}{paths if self.flipped else ''}"
        )


def compare(
    network: Answers, exported: Answers, layers: Sequence[tuple[str, int]], on: str
) -> Check:
    """Compare what the exported program says with what the network says.

    ``layers``: name and number of gates, in the order of the columns. CheckFailedError where a
    logit differs by more than rounding, or a gate that was not almost 0 is another one.
    """
    if exported.logits.shape != network.logits.shape:
        raise CheckFailedError(
            f"the exported program gives {tuple(exported.logits.shape)} for pictures for which "
            f"the network gives {tuple(network.logits.shape)}"
        )
    finite = torch.isfinite(exported.logits).all(1)
    if not bool(finite.all()):
        raise CheckFailedError(
            f"the exported program gives no finite numbers for {int((~finite).sum())} of "
            f"{len(finite)} pictures"
        )
    flipped = _flipped(network.gates, exported.gates, layers)
    scale = network.logits.abs().amax(1)
    difference = (network.logits - exported.logits).abs().amax(1)
    wrong = (difference > TOLERANCE * scale.clamp_min(1.0)) & ~flipped
    if bool(wrong.any()):
        worst = int(torch.where(wrong, difference, -1).argmax())
        raise CheckFailedError(
            f"the exported program is wrong: logits differ by up to {float(difference[worst]):.3g} "
            f"(they go to {float(scale[worst]):.3g}) on {int(wrong.sum())} of {len(wrong)} pictures"
        )
    if len(flipped) and bool(flipped.sum() * 2 > len(flipped)):
        raise CheckFailedError(
            f"gates of almost 0 flip on {int(flipped.sum())} of {len(flipped)} pictures, so that "
            "the exported program cannot be checked on them"
        )
    return Check(
        pictures=len(difference),
        largest=float(difference[~flipped].max()),
        scale=float(scale.max()),
        same_top1=int((network.logits.argmax(1) == exported.logits.argmax(1)).sum()),
        flipped=int(flipped.sum()),
        on=on,
    )


def _flipped(network: Tensor, exported: Tensor, layers: Sequence[tuple[str, int]]) -> Tensor:
    """(N,) whether a picture's path differs; CheckFailedError where that is no rounding.

    After the first layer in which a gate differs the pictures go different ways: later ones
    differ by right.
    """
    flipped = torch.zeros(len(network), dtype=torch.bool)
    differ = (network > 0) != (exported > 0)
    first = 0
    for name, width in layers:
        part = slice(first, first + width)
        first += width
        sure = differ[:, part] & (network[:, part].abs() > AT_GATE)
        wrong = sure.any(1) & ~flipped
        if bool(wrong.any()):
            worst = float(network[:, part].abs()[sure & wrong[:, None]].max())
            raise CheckFailedError(
                f"the exported program is wrong: a gate of layer {name}, whose logit is "
                f"{worst:.3g}, is another one on {int(wrong.sum())} of {len(wrong)} pictures"
            )
        flipped |= differ[:, part].any(1)
    return flipped
