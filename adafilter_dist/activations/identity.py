"""What activations depend on, as keys: the same key means the same bits.

One part is common to all batches of a run and names a folder. The rest is hashed for each batch:
its pictures in their order, and what was done to them. A key is of a whole batch, because the bits
of a convolution depend on how many pictures it is given.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.ops.native import processor
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.data import Augment

_FORMAT = 1
"""Raised where the code here would give other activations under the same key."""

_LIBRARIES = (
    *("torch", "torchvision", "timm", "efficientnet-lite-pytorch"),
    *("numpy", "pillow", "ffcv", "opencv-python-headless"),
)
# What kernels of the CPU may be chosen by.
_VARIABLES = ("ATEN_CPU_CAPABILITY", "DNNL_", "ONEDNN_", "MKL_")


def common(
    recipe: Recipe,
    fingerprint: str,
    preprocess: Preprocess,
    decoder: str,
    *,
    sha256: str,
    cut: str,
    precision: str,
) -> dict[str, Any]:
    """What all batches have in common, as plain JSON types.

    `sha256` and `cut` are those of the frozen part, `fingerprint` is that of the prepared data,
    `decoder` the library that reads training pictures.
    """
    return {
        "format": _FORMAT,
        "network": recipe.model.name,
        "weights": recipe.model.weights,
        "cut": cut,
        "frozen_sha256": sha256,
        "data": fingerprint,
        "preprocess": json.loads(json.dumps(preprocess.to_dict())),
        "precision": precision,
        "channels_last": recipe.train.channels_last,
        "matmul_precision": recipe.train.matmul_precision,
        "deterministic": recipe.deterministic,
        "decoder": decoder,
        "threads": torch.get_num_threads(),
        "processor": hashlib.sha256(processor().encode()).hexdigest()[:16],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)
        },
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


def folder_name(about: dict[str, Any]) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def training_key(
    store: str,
    crops: NDArray[np.int64],
    index: NDArray[np.int64],
    augment: Augment,
    *,
    seed: int,
    epoch: int,
    step: int,
    micro_batches: Sequence[int],
) -> str:
    """The key of the training pictures `index` (n,) of one forward, seen as `crops` (n, 6)."""
    drawn: dict[str, Any] = {}
    if augment.policy != "none":
        settings = [augment.policy, augment.randaugment_ops, augment.randaugment_magnitude]
        drawn["policy"] = [*settings, seed, epoch]
    if augment.erasing:
        drawn["erasing"] = [augment.erasing, seed, epoch]
    if augment.mixup or augment.cutmix:
        mixing = [augment.mixup, augment.cutmix, seed, step]
        drawn["mixing"] = [*mixing, list(micro_batches)]
    # Policy and erasing are drawn by position in the split.
    return _key(["training", store, drawn], crops, index if drawn else index[:0])


def evaluation_key(store: str, records: NDArray[np.int64]) -> str:
    """The key of a batch of pictures seen as in evaluation: the `records` (n,) of a store."""
    return _key(["evaluation", store], records)


def _key(words: list[Any], *arrays: NDArray[np.int64]) -> str:
    digest = hashlib.sha256(json.dumps(words).encode())
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()[:40]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
