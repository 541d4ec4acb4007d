"""Which modules draw random numbers of their own in a training forward, as dropout does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.micro_batches import grouped


def find_random_modules(model: nn.Module, size: int) -> list[str]:
    """Paths of the modules, innermost first, that moved torch's default generator.

    Found by one training forward on the CPU of noise (4, 3, size, size), two micro-batches whose
    gates draw elsewhere: so what a module's code draws is noticed, whatever its class. Leaves the
    generator and the gathered statistics as they were.
    """
    found: list[str] = []
    generators = [torch.Generator().manual_seed(number) for number in range(2)]
    reference = next(model.parameters())
    training = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for name, module in model.named_modules():
            before, after = _hooks(name, found)
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(grouped(2, generators))
        stack.enter_context(torch.no_grad())
        noise = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
        try:
            model.train()(noise.to(reference.dtype))
        finally:
            for module, mode in training:
                module.training = mode
            step_statistics.discard(model)
    return found


def _hooks(name: str, found: list[str]) -> tuple[Callable[..., None], Callable[..., None]]:
    states: list[tuple[Tensor, int]] = []

    def before(module: nn.Module, inputs: Any) -> None:
        states.append((torch.default_generator.get_state(), len(found)))

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        state, known = states.pop()
        moved = not torch.equal(state, torch.default_generator.get_state())
        # Where a module inside has drawn, that is the one to name.
        if moved and len(found) == known:
            found.append(name)

    return before, after
