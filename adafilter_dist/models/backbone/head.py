"""The classifier at the end of a network."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import skip_init

from adafilter_dist.errors import UserError


def find_head(model: nn.Module) -> str:
    """Path of the last nn.Linear of `model`; UserError if it has none."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise UserError(
            f"{type(model).__name__} has no nn.Linear to use as its classifier; "
            "choose a network that ends in one"
        )
    return names[-1]


def replace_head(model: nn.Module, head: str, num_classes: int, seed: int) -> None:
    """Put a fresh nn.Linear(in_features, num_classes) at the path `head`, drawn from `seed` alone.

    Weights uniform in +-1/sqrt(in_features), biases zero.
    """
    old = model.get_submodule(head)
    assert isinstance(old, nn.Linear)
    # Without torch's own initialisation, which would draw from the global generator.
    new = skip_init(
        nn.Linear,
        old.in_features,
        num_classes,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        values = torch.rand(new.weight.shape, generator=generator)
        new.weight.copy_((2 * values - 1) * old.in_features**-0.5)
        nn.init.zeros_(new.bias)
    model.set_submodule(head, new)
