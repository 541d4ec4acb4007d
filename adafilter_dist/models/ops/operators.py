"""Operators of the package: one each to torch's dispatcher and compiler, whatever they launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

BODIES: dict[str, Callable[..., Any]] = {}
"""What each computes, by its name: `adafilter::choose`."""
_LIBRARY = torch.library.Library("adafilter", "FRAGMENT")


def operator(
    name: str,
    body: Callable[..., Any],
    fake: Callable[..., Any] | None = None,
    *,
    mutates: Sequence[str] = (),
) -> Any:
    """`body` as the operator `adafilter::<name>`; the schema is that of its annotations.

    It has no gradient: call it inside of a torch.autograd.Function, or without gradients. `fake`
    makes empty results for torch.compile; without it the operator cannot be compiled. Results may
    be views of each other, not of arguments. `mutates` names the arguments that it writes to.
    `torch.library.custom_op` does the same, but its checks take three times as long as a call.
    """
    full = f"adafilter::{name}"
    _LIBRARY.define(
        name + torch.library.infer_schema(body, mutates_args=mutates),
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    _LIBRARY.impl(name, body, "CompositeExplicitAutograd")
    if fake is not None:
        torch.library.register_fake(full, fake, lib=_LIBRARY)
    BODIES[full] = body
    return getattr(torch.ops.adafilter, name).default
