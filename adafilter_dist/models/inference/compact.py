"""Drops the unused one of two filters if the gate between them is the same for every image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from adafilter_dist.errors import UserError
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.models.inference.selected_conv import InferenceNet, SelectedConv, for_inference

# One character a filter in config.json.
_LETTERS = {-1: "-", 0: "0", 1: "1"}


def constant_gates(counts: Mapping[str, Tensor], images: int) -> dict[str, Tensor]:
    """From how many of ``images`` chose each tuned filter, int64 (C_out,) by layer: int8 (C_out,).

    1 where all did, 0 where none did, -1 where that depends on the image.
    """
    return {
        name: torch.where(count == 0, 0, torch.where(count == images, 1, -1)).to(torch.int8)
        for name, count in counts.items()
    }


def compact(net: AdaFilterNet, constant: Mapping[str, Tensor]) -> InferenceNet:
    """`for_inference(net)` with gates taken for granted: int8 (C_out,) by layer, 1, 0 or -1.

    Where those gates really are so, it computes the same to the bit. UserError for a layer or a
    number of filters that the network does not have.
    """
    layers = net.gated_layers
    for name, values in constant.items():
        filters = layers[name].conv.out_channels if name in layers else None
        if filters != len(values):
            raise UserError(
                f"compact: {len(values)} gates for layer {name}, the network has {filters or 'no'}"
            )
    return for_inference(net, constant)


def count_dropped(net: InferenceNet, constant: Mapping[str, Tensor]) -> tuple[int, int]:
    """(filters that lost their other one, all gated filters)."""
    layers = net.gated_layers
    dropped = sum(
        int((values >= 0).sum())
        for name, values in constant.items()
        if isinstance(layers[name], SelectedConv)
    )
    return dropped, sum(into.out_features for into in net.gate.outputs)  # type: ignore[misc]


def write_constant(constant: Mapping[str, Tensor]) -> dict[str, Any]:
    """The entry of config.json: by layer one of ``0``, ``1`` and ``-`` for each filter."""
    return {
        "gates": {
            name: "".join(_LETTERS[value] for value in values.tolist())
            for name, values in constant.items()
        }
    }


def read_constant(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `write_constant`."""
    values = {letter: value for value, letter in _LETTERS.items()}
    return {
        name: torch.tensor([values[letter] for letter in _letters(name, text)], dtype=torch.int8)
        for name, text in entry["gates"].items()
    }


def _letters(name: str, text: str) -> Iterable[str]:
    if not set(text) <= set(_LETTERS.values()):
        raise UserError(f"config.json is damaged: the gates of {name} are more than 0, 1 and -")
    return text
