"""The classifier at the end of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from adafilter_dist.errors import UserError, nearest, printable


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


def keep_head(
    model: nn.Module,
    head: str,
    state: Mapping[str, Tensor],
    classes: int | Sequence[str],
    known: Sequence[str] | None,
) -> None:
    """Put the classifier of `state` at the path `head`, its rows in the order of `classes`.

    `classes` is their number, or their names, which must be those of the weights where these are
    `known`. Raises UserError where the weights tell other classes apart, or have no classifier.
    """
    weight, bias = state.get(f"{head}.weight"), state.get(f"{head}.bias")
    if weight is None:
        raise UserError(f"model.head=pretrained: the weights have no {head}.weight; use new")
    number = classes if isinstance(classes, int) else len(classes)
    if len(weight) != number:
        raise UserError(
            f"model.head=pretrained: the weights tell {len(weight)} classes apart, the data have "
            f"{number}; use model.head=new"
        )
    if known is not None and not isinstance(classes, int):
        missing = [name for name in classes if name not in known]
        if missing:
            raise UserError(
                f"model.head=pretrained: the weights know no class {printable(missing[0])!r}"
                f"{nearest(missing[0], known)}; use model.head=new"
            )
        rows = [known.index(name) for name in classes]
        weight, bias = weight[rows], None if bias is None else bias[rows]
    new = skip_init(nn.Linear, weight.shape[1], number, dtype=weight.dtype)
    with torch.no_grad():
        new.weight.copy_(weight)
        nn.init.zeros_(new.bias) if bias is None else new.bias.copy_(bias)
    model.set_submodule(head, new)


def source_head(model: nn.Module, head: str, state: Mapping[str, Tensor]) -> nn.Linear | None:
    """The classifier of `state`, whatever it tells apart; None where it has none for this network.

    A bias that is missing is zero.
    """
    own = model.get_submodule(head)
    assert isinstance(own, nn.Linear)
    weight, bias = state.get(f"{head}.weight"), state.get(f"{head}.bias")
    if weight is None or weight.shape[1:] != (own.in_features,):
        return None
    kept = skip_init(nn.Linear, *weight.shape[::-1], dtype=weight.dtype)
    with torch.no_grad():
        kept.weight.copy_(weight)
        nn.init.zeros_(kept.bias) if bias is None else kept.bias.copy_(bias)
    return kept
