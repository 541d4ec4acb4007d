"""Keys of activations: equal exactly where the network sees the same pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adafilter_dist.activations import identity
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.data import Augment

INDEX = np.array([4, 2, 7])
CROPS = np.array([[14, 0, 0, 24, 24, 0], [12, 1, 0, 20, 24, 1], [17, 0, 2, 28, 26, 0]])
HERE: dict[str, Any] = {"seed": 1, "epoch": 2, "step": 9, "micro_batches": range(1, 2)}


def key(augment: Augment, **other: Any) -> str:
    values = {"store": "train.beton", "crops": CROPS, "index": INDEX, **HERE, **other}
    arrays = [values.pop(name) for name in ("store", "crops", "index")]
    return identity.training_key(*arrays, augment, **values)


def test_unmixed_crops_are_the_same_wherever_they_are_seen() -> None:
    plain = key(Augment())
    # Boxes and flips are what seed and epoch decide; the position in the split decides nothing.
    for other in ({"seed": 5}, {"epoch": 3}, {"step": 8}, {"index": INDEX + 1}):
        assert key(Augment(), **other) == plain
    assert key(Augment(scale=(0.5, 1.0), flip=0.1)) == plain
    others = {
        key(Augment(), store="test.beton"),
        key(Augment(), crops=CROPS[::-1]),
        key(Augment(), crops=CROPS + np.array([0, 1, 0, 0, 0, 0])),
        key(Augment(), crops=CROPS[:2]),
        identity.evaluation_key("train.beton", CROPS[:, 0]),
        identity.evaluation_key("train.beton", CROPS[::-1, 0]),
    }
    assert len(others | {plain}) == 7


@pytest.mark.parametrize(
    ("settings", "drawn_by"),
    [
        ({"policy": "randaugment"}, ("seed", "epoch", "index")),
        ({"erasing": 0.5}, ("seed", "epoch", "index")),
        ({"mixup": 0.2}, ("seed", "step", "micro_batches")),
        ({"cutmix": 0.2}, ("seed", "step", "micro_batches")),
    ],
)
def test_what_is_drawn_counts(settings: dict[str, Any], drawn_by: tuple[str, ...]) -> None:
    augment = Augment(**settings)
    changed = {"seed": 5, "epoch": 3, "step": 8, "micro_batches": range(2, 3), "index": INDEX + 1}
    drawn = key(augment)
    assert drawn != key(Augment())
    for name in drawn_by:
        assert key(augment, **{name: changed[name]}) != drawn, name


def test_the_folder_is_of_all_that_the_bits_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.model_validate({"name": "t", "data": {"name": "fashion_mnist"}})
    preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, "bilinear", 32, 28)

    def folder(decoder: str = "ffcv", **other: str) -> str:
        words = {"sha256": "a", "cut": "layer3", "precision": "fp32", **other}
        return identity.folder_name(
            identity.common(recipe, "f", preprocess, decoder, **words)  # type: ignore[arg-type]
        )

    names = {folder(), folder("torchvision"), folder(sha256="b"), folder(precision="bf16")}
    assert len(names) == 4 and folder() in names
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    names.add(folder())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        names.add(folder())
    finally:
        torch.set_num_threads(threads)
    assert len(names) == 6
