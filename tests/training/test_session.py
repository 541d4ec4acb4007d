"""What a session refuses before anything is trained."""

from __future__ import annotations

import pytest

from adafilter_dist.errors import UserError
from adafilter_dist.methods import build_method
from adafilter_dist.models.backbone.backbones import load_backbone, resolve_preprocess
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.training.session import require_same_random_numbers


def check(together: int, dropout: bool) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "fashion_mnist", "resolution": 32},
            "model": {"name": "mobilenet_v3_small", "weights": None, "dropout": dropout},
            "method": {"name": "finetune"},
            "train": {"micro_batches_per_forward": together},
        }
    )
    trainable = build_method(load_backbone(recipe, 5), recipe)
    require_same_random_numbers(trainable, recipe, resolve_preprocess(recipe))


def test_dropout_does_not_go_with_several_micro_batches_in_a_forward() -> None:
    check(1, dropout=True)
    check(2, dropout=False)
    with pytest.raises(UserError) as caught:
        check(2, dropout=True)
    line = str(caught.value)
    assert "train.micro_batches_per_forward=2: classifier.2 (Dropout) of mobilenet_v3_small" in line
    assert "micro_batches_per_forward=1, or model.dropout=false" in line
