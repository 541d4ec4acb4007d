"""BatchNorm whose running statistics are updated once a step, by the mean of all micro-batches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating import micro_batches
from adafilter_dist.models.gating.step_statistics import StepStatistics
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.models.ops.norm import Norm
from adafilter_dist.models.ops.passes import Passes

Rate = Tensor | float
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class MicroBatchNorm2d(nn.BatchNorm2d, StepStatistics):
    """Normalises (N, C, H, W) by the micro-batch; running statistics are updated after the step.

    If a forward holds several micro-batches, each is normalised by its own statistics. In training
    forward changes no buffer of the state: mean and unbiased variance are added to sums. In
    evaluation it is `nn.BatchNorm2d`.
    """

    step_sums: Tensor
    frozen = False
    _rows = 2  # of step_sums: mean and variance

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        # [a row each | micro-batches]: a module that did not run (a branch that is left out,
        # evaluation mode) has a count of zero and keeps its running statistics.
        sums = torch.zeros(self._rows * num_features + 1, device=device, dtype=dtype)
        self.register_buffer("step_sums", sums, persistent=False)

    @classmethod
    def from_batchnorm(cls, source: nn.BatchNorm2d) -> MicroBatchNorm2d:
        """A copy of `source` with its own tensors, in the same mode."""
        like = source.weight if source.affine else source.running_mean
        copy = cls(
            source.num_features,
            source.eps,
            source.momentum,
            source.affine,
            source.track_running_stats,
            device=None if like is None else like.device,
            dtype=None if like is None else like.dtype,
        )
        copy.load_state_dict(
            {key: value for key, value in source.state_dict().items() if key in copy.state_dict()}
        )
        for own, other in zip(copy.parameters(), source.parameters(), strict=False):
            own.requires_grad_(other.requires_grad)
        return copy.train(source.training)

    def freeze(self) -> None:
        """From now on compute as in evaluation: with running statistics, and nothing is trained."""
        self.frozen = True
        self.requires_grad_(False)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """x normalised. Gates (N, C) of a gated layer are for a subclass that weighs by them."""
        if self.frozen and self.running_mean is not None:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        if not self.training:
            return super().forward(x)
        split = micro_batches.current.split_or_none
        parts = list(zip(split(x), split(gates), strict=True))
        if len(parts) == 1:
            return self._micro_batch(x, gates)
        # Slice by slice, not one call with micro-batches folded into channels: that fold would copy
        # x in either memory layout, just as the joining here does.
        return torch.cat([self._micro_batch(*part) for part in parts])

    def _micro_batch(self, x: Tensor, gates: Tensor | None) -> Tensor:
        if self.running_mean is None:
            return super().forward(x)
        self._check_input_dim(x)
        # With momentum 1 torch's kernel leaves exactly this batch's mean and unbiased variance
        # in the buffers it is given: no second pass over x.
        batch = torch.zeros(2, self.num_features, device=x.device, dtype=self.step_sums.dtype)
        y = F.batch_norm(x, batch[0], batch[1], self.weight, self.bias, True, 1.0, self.eps)
        with torch.no_grad():
            self.step_sums[:-1] += batch.flatten()
            self.step_sums[-1] += 1
        return y

    def affine_pair(self) -> tuple[Tensor, Tensor]:
        """Weight and bias (C,), one and zero where it has none."""
        kind = {"dtype": self.step_sums.dtype, "device": self.step_sums.device}
        weight = torch.ones(self.num_features, **kind) if self.weight is None else self.weight
        bias = torch.zeros(self.num_features, **kind) if self.bias is None else self.bias
        return weight, bias

    def norm_of(self, x: Tensor, passes: Passes, gates: Tensor) -> Norm:
        """The statistics by which a fused layer normalises x; in training they are added up too."""
        if self.training and not self.frozen:
            with torch.no_grad():
                return self._norm_of_micro_batch(x, passes, gates)
        assert self.running_mean is not None and self.running_var is not None
        wide = accumulation_dtype(x.dtype)
        mean, var = self.running_mean.to(wide), self.running_var.to(wide)
        return Norm(self.weight, self.bias, mean, var, self.eps, batch=False)

    def _norm_of_micro_batch(self, x: Tensor, passes: Passes, gates: Tensor) -> Norm:
        mean, var = passes.moments(x)
        count = x.numel() // self.num_features
        unbiased = var * (count / (count - 1)) if count > 1 else var
        self.step_sums[:-1] += torch.cat((mean, unbiased))
        self.step_sums[-1] += 1
        return Norm(self.weight, self.bias, mean, var, self.eps, batch=True)

    def step_statistics(self) -> list[Tensor]:
        return list(self.step_sums.split(self.statistic_sizes()))

    def flat_statistics(self) -> Tensor:
        return self.step_sums

    def statistic_sizes(self) -> list[int]:
        return [*[self.num_features] * self._rows, 1]

    @torch.no_grad()
    def apply_step_statistics(self, means: list[Tensor]) -> None:
        self.discard_step_statistics()
        if self.running_mean is None or self.running_var is None:
            return
        *rows, count = means
        tracked = self.num_batches_tracked
        assert tracked is not None
        tracked += count[0] > 0
        rate = self.momentum if self.momentum is not None else 1 / tracked.clamp(min=1).to(count)
        weight, kept, rate = self._rates(rows[2:], count, 1 - rate, rate)
        for running, value in zip((self.running_mean, self.running_var), rows, strict=False):
            running.copy_(_moved(running, value, weight, kept, rate))

    @staticmethod
    def _rates(
        more: Sequence[Tensor], count: Tensor, kept: Rate, rate: Rate
    ) -> tuple[Tensor, Rate, Rate]:
        """What the sums are divided by, what is kept of the running statistics, and the rest.

        From what `step_statistics` has beside means and variances, how many micro-batches that is
        of, and the same two numbers by `momentum` alone. Where the first is zero nothing moves.
        """
        return count, kept, rate

    @classmethod
    @torch.no_grad()
    def apply_together(
        cls, modules: Sequence[MicroBatchNorm2d], flat: Tensor, places: Sequence[int]
    ) -> None:
        """Update all modules in a dozen operations instead of a dozen each, to the same bits."""
        # Their dictionaries: asking a module for an attribute takes ten times as long.
        tensors: list[dict[str, Any]] = [m._buffers for m in modules]
        if not _alike(modules, tensors):
            return super().apply_together(modules, flat, places)
        torch._foreach_zero_([each["step_sums"] for each in tensors])
        # A row for the means of all modules, one for their variances, and what else there is.
        widths = tuple([m.num_features for m in modules])
        width = sum(widths)
        ordered = flat[_by_row(widths, tuple(places), cls._rows, flat.device)]
        sizes = [2 * width, *[width] * (cls._rows - 2), len(modules)]
        both, *more, counts = ordered.split(sizes)
        tracked = [t for each in tensors if (t := each["num_batches_tracked"]) is not None]
        torch._foreach_add_(tracked, list((counts > 0).long().unbind()))
        rates = tuple([m.momentum or 0.0 for m in modules])
        numbers, kept, rate = _by_channel(widths, rates, counts.dtype, counts.device)
        weight, *by_filter = cls._rates(more, counts[numbers], kept, rate)
        buffers = [each[name] for name in ("running_mean", "running_var") for each in tensors]
        moved = _moved(torch.cat(buffers).view(2, -1), both.view(2, -1), weight, *by_filter)
        torch._foreach_copy_(buffers, list(moved.flatten().split(widths * 2)))
        return None

    def discard_step_statistics(self) -> None:
        self.step_sums.zero_()


def _alike(modules: Sequence[MicroBatchNorm2d], tensors: Sequence[dict[str, Any]]) -> bool:
    if any(m.momentum is None for m in modules):
        return False
    if any(each["running_mean"] is None for each in tensors):
        return False
    return (
        len({(t.dtype, t.device) for each in tensors if (t := each["step_sums"]) is not None}) == 1
    )


def _moved(running: Tensor, value: Tensor, weight: Tensor, kept: Rate, rate: Rate) -> Tensor:
    none = weight == 0
    moved = kept * running + rate * (value / (weight + none))
    return torch.where(none, running, moved)


# Kept, because bringing a list of numbers to a GPU makes the host wait for it.
@functools.lru_cache(maxsize=8)
def _by_channel(
    widths: tuple[int, ...], rates: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """For each channel of all modules: its module's number, 1 - its rate, its rate."""
    places = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
    rate = torch.tensor(rates, dtype=torch.float64)
    kept, rate = (1 - rate)[places], rate[places]
    return places.to(device), kept.to(device, dtype), rate.to(device, dtype)


@functools.lru_cache(maxsize=8)
def _by_row(
    widths: tuple[int, ...], places: tuple[int, ...], rows: int, device: torch.device
) -> Tensor:
    """Where in the flat means each module's first row is, then each one's second, at last counts.

    A module's means begin at its place: `rows` of its width, and a count.
    """
    of_rows = [
        torch.arange(place + row * width, place + (row + 1) * width)
        for row in range(rows)
        for width, place in zip(widths, places, strict=True)
    ]
    ends = [place + rows * width for width, place in zip(widths, places, strict=True)]
    return torch.cat([*of_rows, torch.tensor(ends)]).to(device)


class MicroBatchNormAct2d(MicroBatchNorm2d):
    """`MicroBatchNorm2d` followed by the dropping and activation that timm keeps in its BN."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(x, gates)))
        return y


def has_activation(module: nn.Module) -> bool:
    """Whether this is timm's BatchNorm that applies an activation as well."""
    return (
        isinstance(module, nn.BatchNorm2d)
        and type(module).forward is not nn.BatchNorm2d.forward
        and isinstance(getattr(module, "drop", None), nn.Module)
        and isinstance(getattr(module, "act", None), nn.Module)
    )


def is_plain(module: nn.Module) -> bool:
    """Whether this BatchNorm2d computes what torch's does, timm's activation aside."""
    return (
        isinstance(module, nn.BatchNorm2d)
        and (type(module).forward is nn.BatchNorm2d.forward or has_activation(module))
        and "forward" not in module.__dict__
        and not parametrize.is_parametrized(module)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks are registered on the module's forward or backward."""
    own = module.__dict__
    return any([own[name] for name in _HOOKS])


def replace_batchnorm(model: nn.Module) -> nn.Module:
    """Make every BatchNorm2d of `model` (in place) a `MicroBatchNorm2d`; returns the model.

    Raises UserError for a BatchNorm of another kind: its statistics would differ from rank to rank.
    """
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        return _replacement(model, "the model itself")
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                path = f"{name}.{child_name}".lstrip(".")
                setattr(module, child_name, _replacement(child, path))
    return model


def _replacement(source: nn.Module, path: str) -> nn.Module:
    if isinstance(source, MicroBatchNorm2d):
        return source
    if parametrize.is_parametrized(source) or "forward" in source.__dict__:
        raise UserError(
            f"{path} is a BatchNorm2d whose weight is parametrised or whose forward was replaced, "
            "which would be lost; use a plain one there (parametrize.remove_parametrizations)"
        )
    if not isinstance(source, nn.BatchNorm2d) or not is_plain(source):
        raise UserError(
            f"{path} is a {type(source).__name__}; only BatchNorm2d can be trained here, because "
            "running statistics are reduced over ranks once a step. Replace it by nn.BatchNorm2d"
        )
    if has_activation(source):
        copy = MicroBatchNormAct2d.from_batchnorm(source)
        copy.drop, copy.act = source.drop, source.act
        return with_hooks(copy, source)
    return with_hooks(MicroBatchNorm2d.from_batchnorm(source), source)


def with_hooks(copy: nn.Module, source: nn.Module) -> nn.Module:
    """`copy`, with the hooks of `source` from now on."""
    # The same dictionaries, not copies, so that the handles of the hooks can still remove them.
    for name in _HOOKS:
        setattr(copy, name, getattr(source, name))
    return copy
