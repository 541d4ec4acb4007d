"""Finds modules that draw random numbers in a training forward, as dropout does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.micro_batches import in_micro_batches


def find_random_modules(model: nn.Module, size: int) -> list[str]:
    """Paths of the modules, innermost first, that moved torch's default generator.

    One training forward of noise (4, 3, size, size) runs on the CPU, as two micro-batches whose
    gates draw from other generators. A module that moves the default one is found whatever its
    class. The generator and the summed statistics are left as they were.
    """
    paths: list[str] = []
    generators = [torch.Generator().manual_seed(number) for number in range(2)]
    reference = next(model.parameters())
    training = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for name, module in model.named_modules():
            before, after = _hooks(name, paths)
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(in_micro_batches(2, generators))
        stack.enter_context(torch.no_grad())
        noise = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
        try:
            model.train()(noise.to(reference.dtype))
        finally:
            for module, mode in training:
                module.training = mode
            step_statistics.discard(model)
    return paths


def _hooks(name: str, paths: list[str]) -> tuple[Callable[..., None], Callable[..., None]]:
    states: list[tuple[Tensor, int]] = []

    def before(module: nn.Module, inputs: Any) -> None:
        states.append((torch.default_generator.get_state(), len(paths)))

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        state, count = states.pop()
        moved = not torch.equal(state, torch.default_generator.get_state())
        # Where a module inside has drawn, that is the one to name.
        if moved and len(paths) == count:
            paths.append(name)

    return before, after
