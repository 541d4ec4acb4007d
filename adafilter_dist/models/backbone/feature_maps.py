"""Which convolutions give the feature maps that stand for a network's behaviour."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_MAPS = 4
_SHORTCUT = re.compile(r"downsample|shortcut")


@dataclass(frozen=True)
class FeatureMap:
    """The output (N, channels, H, W) of the convolution at `path`.

    `changed` says that a later layer writes into it, as an activation in place does.
    """

    path: str
    channels: int
    changed: bool


def feature_maps(module: nn.Module, example: Tensor, pattern: str | None) -> list[FeatureMap]:
    """The convolutions whose path `pattern` matches, in order of definition.

    Without a pattern, the last convolution at each of the last four resolutions, shortcuts aside:
    in a ResNet those of its four stages. One forward of `example` (N, 3, H, W) in evaluation mode
    tells; the mode is restored.
    """
    sizes, changed = _record(module, example)
    convolutions = {
        path: each
        for path, each in module.named_modules()
        if isinstance(each, nn.Conv2d) and path in sizes
    }
    if pattern is not None:
        chosen = [path for path in convolutions if re.search(pattern, path)]
    else:
        last: dict[torch.Size, str] = {}
        for unit in _units(module, ""):
            for path in convolutions:
                inside = path == unit or path.startswith(f"{unit}.")
                if inside and sizes[path] == sizes.get(unit) and not _SHORTCUT.search(path):
                    last[sizes[path]] = path
        chosen = list(last.values())[-_MAPS:]
    return [FeatureMap(path, convolutions[path].out_channels, path in changed) for path in chosen]


def _record(module: nn.Module, example: Tensor) -> tuple[dict[str, torch.Size], set[str]]:
    """Height and width of what each module gives, and whose output is written into later."""
    sizes: dict[str, torch.Size] = {}
    outputs: dict[str, tuple[Tensor, int]] = {}

    def hook(path: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                sizes[path] = output.shape[2:]
                outputs[path] = output, output._version

        return note

    modes = [(each, each.training) for each in module.modules()]
    with ExitStack() as stack:
        for path, each in module.named_modules():
            stack.callback(each.register_forward_hook(hook(path)).remove)
        try:
            with torch.no_grad():
                module.eval()(example)
        finally:
            for each, mode in modes:
                each.training = mode
    return sizes, {path for path, (output, was) in outputs.items() if output._version != was}


def _units(module: nn.Module, path: str) -> Iterator[str]:
    """The blocks and layers of a network, through its sequences."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, nn.Sequential):
            yield from _units(child, inner)
        else:
            yield inner
