"""The optimizer, and its state by parameter name (not by position, which engines change)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.methods.base import UpdateRule
from adafilter_dist.recipe.sections.training import Optim


def build_optimizer(
    groups: list[dict[str, Any]], optim: Optim, rule: UpdateRule | None = None
) -> torch.optim.Optimizer:
    """SGD or AdamW over ``groups`` (params, lr, weight_decay each), ``rule`` around its steps."""
    optimizer = _plain_optimizer(groups, optim)
    if rule is not None:
        # Hooks run only where a step is taken, so not where fp16 skips it.
        optimizer.register_step_pre_hook(lambda own, args, kwargs: rule.before(own))
        optimizer.register_step_post_hook(lambda own, args, kwargs: rule.after(own))
    return optimizer


def _plain_optimizer(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
    )


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Each tensor of state as ``<parameter name>/<key>``, e.g. ``fc.weight/momentum_buffer``."""
    names = _names(model)
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def put_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Replace the optimizer's state by ``tensors``; UserError for a name it does not train."""
    parameters = {name: parameter for parameter, name in _names(model).items()}
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    optimizer.state.clear()
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or parameter not in trained:
            raise UserError(f"the checkpoint has optimizer state for {name}, not trained here")
        # AdamW's step count stays on the CPU; what has the parameter's shape goes beside it.
        if value.shape == parameter.shape:
            placed = torch.empty_like(parameter, memory_format=torch.preserve_format)
            placed.copy_(value)
        else:
            placed = value.clone()
        optimizer.state[parameter][key] = placed
