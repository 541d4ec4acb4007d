"""BatchNorm over the images that chose a filter: what a branch makes of others does not count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d, Rate
from adafilter_dist.models.ops import passes_reference
from adafilter_dist.models.ops.norm import Choosers, Norm
from adafilter_dist.models.ops.passes import Passes

BatchNormKind = Literal["selected", "all", "shared"]
"""Of which images of a micro-batch a branch takes its statistics: the filter's choosers, or all.

shared: there is one BatchNorm, of the outputs that were chosen."""
PRIOR = 1.0
"""Images that the running statistics stand in for where nobody chose the filter."""


def rate_factor(share: Tensor) -> Tensor:
    """How much of `momentum` a filter takes that this share of the global batch chose.

    From a quarter of the images on all of it, below in proportion.
    """
    return (4 * share).clamp(max=1)


class SelectedBatchNorm2d(MicroBatchNorm2d):
    """A branch's BatchNorm whose statistics are those of the images that chose the filter.

    Of a micro-batch of N images, image n weighs W = G (tuned branch) or 1 - G (`tuned` False), and
    the running statistics weigh k = PRIOR (1 - sum W / N) images. So they are plain BatchNorm's
    where all chose the filter, and the running ones where nobody did. Gates get no gradient through
    statistics. After the step the running ones move towards the mean over micro-batches of the
    choosers' own, each by its share, at `momentum` times `rate_factor`. The state's keys are those
    of `nn.BatchNorm2d`. Needs running statistics.
    """

    tuned = True
    _rows = 3  # of step_sums: mean and variance, times the share of choosers, and that share

    def _micro_batch(self, x: Tensor, gates: Tensor | None) -> Tensor:
        assert gates is not None, "training needs the gates"
        self._check_input_dim(x)
        moments = passes_reference.chosen_moments(x, self._choosers(gates))
        mean, var, _ = moments.taken
        self._add(moments.sums)
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.to(scale.dtype)
        shift = -mean * scale if self.bias is None else self.bias.to(mean.dtype) - mean * scale
        # One operation, which keeps nothing for backward but x and the scale.
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None]).to(x.dtype)

    def _norm_of_micro_batch(self, x: Tensor, passes: Passes, gates: Tensor) -> Norm:
        moments = passes.chosen_moments(x, self._choosers(gates))
        mean, var, total = moments.taken.unbind()
        self._add(moments.sums)
        return Norm(self.weight, self.bias, mean, var, self.eps, batch=True, total=total)

    def _choosers(self, gates: Tensor) -> Choosers:
        assert self.running_mean is not None and self.running_var is not None
        return Choosers(gates.detach(), self.tuned, self.running_mean, self.running_var, PRIOR)

    @torch.no_grad()
    def _add(self, sums: Tensor) -> None:
        self.step_sums[:-1] += sums.flatten()
        self.step_sums[-1] += 1

    @staticmethod
    def _rates(
        more: Sequence[Tensor], count: Tensor, kept: Rate, rate: Rate
    ) -> tuple[Tensor, Rate, Rate]:
        (shares,) = more
        factor = rate_factor(shares / (count + (count == 0)))
        return shares, (1 - factor) + kept * factor, rate * factor
