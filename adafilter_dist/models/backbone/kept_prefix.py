"""A network run again and again on the same pictures, of which a late layer alone changes.

What is computed before that layer is the same each time. It is kept, and handed out in place of
calling the modules again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_SAMPLE = 2  # pictures that tell which outputs are needed


@torch.no_grad()
@contextmanager
def prefix_kept(model: nn.Module, path: str, images: Tensor) -> Iterator[None]:
    """Inside, ``model(images)`` does not call the modules that end before the one at ``path``.

    ``images`` (N, 3, H, W); the model is in evaluation mode, its other weights stay as they are,
    and it takes no other pictures. Its outputs are the same to the bit. Of the outputs before
    ``path`` only the last that the rest needs are in memory: which these are is tried on two
    pictures, with NaN in the place of the others.
    """
    sample = images[:_SAMPLE]
    with torch.no_grad():
        expected, outputs = model(sample), outputs_before(model, path, sample)
        names, count = list(outputs), 1
        while count < len(names):
            needed = names[-count:]
            with _handed_out(model, outputs, needed):
                if _is_equal(model, sample, expected):
                    break
            count *= 2
        needed = names[-count:]
        outputs = outputs_before(model, path, images, needed)
    with _handed_out(model, outputs, needed):
        yield


def outputs_before(
    model: nn.Module, path: str, images: Tensor, needed: list[str] | None = None
) -> dict[str, Tensor | None]:
    """By name, in the order of their ends, the modules that end before ``path``, with outputs.

    Modules inside of such modules are left out, and those that are called twice. None stands for
    the output of one that is not among ``needed``.
    """
    ended: dict[str, Tensor | None] = {}
    calls: dict[str, int] = {}
    reached = False

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            nonlocal reached
            calls[name] = calls.get(name, 0) + 1
            reached = reached or name == path

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if reached or not isinstance(output, Tensor):
                return
            for inner in [each for each in ended if each.startswith(f"{name}.")]:
                del ended[inner]
            # A copy: what follows may write into it.
            ended[name] = output.clone() if needed is None or name in needed else None

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(before(name)).remove)
            stack.callback(module.register_forward_hook(after(name)).remove)
        model(images)
    return {name: output for name, output in ended.items() if calls[name] == 1}


def modules_until(model: nn.Module, path: str, images: Tensor) -> list[nn.Module]:
    """All modules whose call begins before that of the module at ``path``, and that module."""
    begun: dict[str, nn.Module] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if path not in begun:
                begun[name] = module

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(before(name)).remove)
        model(images)
    return list(begun.values())


def _is_equal(model: nn.Module, images: Tensor, expected: Tensor) -> bool:
    try:
        return torch.equal(model(images), expected)
    except (RuntimeError, TypeError):  # a layer that minds the shape of what stands for an output
        return False


@contextmanager
def _handed_out(
    model: nn.Module, outputs: dict[str, Tensor | None], needed: list[str]
) -> Iterator[None]:
    """Inside, these modules give their kept outputs, or NaN of one pixel."""
    with ExitStack() as stack:
        for name, output in outputs.items():
            kept = output if name in needed else None
            stack.enter_context(forward_is(model.get_submodule(name), _give(kept)))
        yield


def _give(kept: Tensor | None) -> Callable[..., Any]:
    def give(x: Any, *args: Any, **kwargs: Any) -> Any:
        if kept is not None:
            return kept.clone()
        return x.new_full((len(x), 1, 1, 1), math.nan) if isinstance(x, Tensor) else x

    return give


@contextmanager
def forward_is(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, calls of the module go to ``forward``."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
