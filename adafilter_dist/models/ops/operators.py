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

    What is returned calls `body` itself where nobody would see the operator: no mode, no compiler,
    no profiler. The operator is `torch.ops.adafilter.<name>.default`.
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
    dispatched = getattr(torch.ops.adafilter, name).default

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or _seen():
            return dispatched(*arguments)
        with _below_autograd():  # as the dispatcher calls it
            return body(*arguments)

    return call


def _seen() -> bool:
    """Whether a mode or a profiler watches what is dispatched."""
    return _modes() > 0 or _transforms() is not None or _profiled()


_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_transforms: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
_profiled: Callable[[], bool] = torch._C._autograd._profiler_enabled
_below_autograd: Callable[[], Any] = torch._C._AutoDispatchBelowAutograd
