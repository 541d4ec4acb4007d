"""The frozen part of a network: what it gives, and the network computed from there on.

Inside `FrozenPart.skipped` the network takes these activations in the place of pictures. The
modules of the frozen part then hand on NaN, and the last of them gives the activations. So a layer
that reads anything else of the frozen part gives NaN, and not a wrong number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adafilter_dist.models.backbone.kept_prefix import forward_is
from adafilter_dist.models.backbone.weights import sha256_of_tensors


@dataclass(frozen=True)
class Cut:
    """Where the frozen part ends; paths in the backbone.

    `at` is the module whose output is kept. `before` are the modules that are called before it and
    never again, without those inside them.
    """

    at: str
    before: tuple[str, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules of the frozen part."""
        return (*self.before, self.at)


class _Reached(Exception):
    """Ends a forward at the cut."""


class FrozenPart:
    """The frozen part of one model, and of the copies of it that the model holds.

    `sha256` is that of its weights and of how its modules are set up. AdaFilter holds a copy of the
    pre-trained network for the decision on pictures, which begins with the same layers.
    """

    def __init__(self, cut: Cut, networks: list[nn.Module], sha256: str) -> None:
        self.cut = cut
        self.sha256 = sha256
        self._networks = networks

    @classmethod
    def of(cls, model: nn.Module, cut: Cut) -> FrozenPart | None:
        """The frozen part of the first network in `model` that has the modules of `cut`."""
        networks = [module for module in model.modules() if has_modules(module, cut.modules)]
        if not networks:
            return None
        main = networks[0]
        state = _state(main, cut)
        copies = [other for other in networks[1:] if _equal(state, _state(other, cut))]
        return cls(cut, [main, *copies], _sha256(main, cut, state))

    def has_weights_of(self, other: FrozenPart) -> bool:
        """Whether the weights are the same; kernels may still differ, by layout."""
        states = [_state(part._networks[0], part.cut) for part in (self, other)]
        return _equal(*states)

    @property
    def identity(self) -> tuple[str, int]:
        """What is the same as long as weights, set-up and copies are."""
        return self.sha256, len(self._networks)

    @torch.no_grad()
    def run(self, images: Tensor) -> Tensor:
        """The activations of normalised images (N, 3, H, W): (N, ...), nothing behind them."""
        network = self._networks[0]
        outputs: list[Tensor] = []

        def stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs.append(output)
            raise _Reached

        handle = network.get_submodule(self.cut.at).register_forward_hook(stop)
        try:
            network(images)
        except _Reached:
            pass
        finally:
            handle.remove()
        return outputs[0].detach()

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Inside, the model takes activations in the place of images."""
        with ExitStack() as stack:
            for network in self._networks:
                held: list[Tensor] = []
                stack.enter_context(forward_is(network, _from(network.forward, held)))
                stack.enter_context(forward_is(network.get_submodule(self.cut.at), _give(held)))
                for name in self.cut.before:
                    stack.enter_context(forward_is(network.get_submodule(name), _hand_on))
            yield


def _from(forward: Callable[..., Any], held: list[Tensor]) -> Callable[..., Any]:
    def start(activations: Tensor, *args: Any, **kwargs: Any) -> Any:
        held[:] = [activations]
        nothing = activations.new_full((len(activations), 1, 1, 1), math.nan)
        return forward(nothing, *args, **kwargs)

    return start


def _give(held: list[Tensor]) -> Callable[..., Tensor]:
    # A copy: what follows may write into it, and the same batch may be run again.
    return lambda *args, **kwargs: held[0].clone()


def _hand_on(x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


def has_modules(module: nn.Module, paths: Sequence[str]) -> bool:
    """Whether there are modules at these paths below `module`."""
    try:
        for path in paths:
            module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _state(network: nn.Module, cut: Cut) -> dict[str, Tensor]:
    """Tensors of the frozen part by name, and those of the modules around its modules."""
    state: dict[str, Tensor] = {}
    for path in cut.modules:
        module = network.get_submodule(path)
        state |= {f"{path}.{name}": tensor for name, tensor in module.state_dict().items()}
        *above, _ = path.split(".")
        for depth in range(len(above) + 1):
            around = ".".join(above[:depth])
            owner = network.get_submodule(around)
            own = [*owner._parameters.items(), *owner._buffers.items()]
            state |= {f"{around}/{name}": tensor for name, tensor in own if tensor is not None}
    return state


def _equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in state.items()
    )


def _sha256(network: nn.Module, cut: Cut, state: Mapping[str, Tensor]) -> str:
    # The layout of weights may decide which kernel runs. BatchNorms of ours compute as torch's do.
    layouts = {f"layout of {name}": torch.tensor(each.stride()) for name, each in state.items()}
    modules = {
        f"{path}: {network.get_submodule(path)!r}".replace("MicroBatchNorm", "BatchNorm"): each
        for path, each in zip(cut.modules, torch.zeros(len(cut.modules)), strict=True)
    }
    return sha256_of_tensors({**state, **layouts, **modules})
