"""``model:`` and ``method:``, the pre-trained network and how it is fine-tuned, gates included."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from adafilter_dist.recipe.sections.base import (
    Fraction,
    NotNegative,
    Positive,
    Section,
)

_FILES = (".safetensors", ".pth", ".pt", ".bin")


def is_weights_file(weights: str) -> bool:
    """Whether ``model.weights`` is a local file, and not the name of published weights."""
    return weights.endswith(_FILES) or "/" in weights


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return value


class Model(Section):
    """The pre-trained network."""

    name: str = Field("resnet50", description="torchvision's name, timm/NAME, or a bundled one")
    weights: str | None = Field(
        "DEFAULT",
        description="torchvision's name (IMAGENET1K_V2), a local file, or null for random weights",
    )
    head: Literal["new", "pretrained"] = Field(
        "new",
        description="the classifier at the start: drawn from the seed, or the one of the weights, "
        "where these tell the same classes apart",
    )
    ungated: Literal["train", "freeze"] = Field(
        "train", description="what happens to convolutions and BatchNorms that no gate covers"
    )
    dropout: bool = Field(
        True, description="dropout and stochastic depth of the network in training, as published"
    )
    bn_momentum: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="share of a step in the running statistics; default the network's own"
    )


class Gate(Section):
    """The recurrent gate shared by all gated layers."""

    hidden: Annotated[int, Field(ge=1, le=65_536)] = Field(
        128, description="common size d and LSTM width"
    )
    estimator: Literal["straight_through", "identity", "gumbel", "semhash"] = "straight_through"
    temperature: Positive = 1.0
    input_norm: Literal["layer_norm", "none"] = "layer_norm"
    init_scale: Positive = Field(4.0, description="factor on the logit weights at the start")
    bias: Annotated[float, Field(ge=-1e4, le=1e4)] = Field(
        0.0, description="logit bias at the start; 0 is balanced"
    )


class Sparsity(Section):
    """Regulariser of the gates (not in the paper)."""

    kind: Literal["none", "l1", "target", "decide"] = "none"
    weight: NotNegative = 0.0
    target: Fraction = Field(0.5, description="wanted mean gate for kind=target")

    @model_validator(mode="after")
    def _check(self) -> Sparsity:
        if self.kind == "none" and self.weight:
            raise ValueError("weight is set but kind is none; choose kind=l1, target or decide")
        return self


class AdaFilter(Section):
    """AdaFilter (Guo et al., AAAI 2020)."""

    name: Literal["adafilter"] = "adafilter"
    gate: Gate = Gate()
    sparsity: Sparsity = Sparsity()
    layers: Annotated[str, AfterValidator(_expression)] = Field(
        ".*", description="regular expression; convolutions it matches are gated"
    )
    fixed_statistics: Literal["none", "frozen", "both"] = Field(
        "none",
        description="branches whose BatchNorm keeps the pre-trained statistics in training; there "
        "filters that no image of a micro-batch selects are not computed",
    )


class FineTune(Section):
    """Plain fine-tuning of every weight."""

    name: Literal["finetune"] = "finetune"


class LinearProbe(Section):
    """A linear head on frozen features (BatchNorm in evaluation mode)."""

    name: Literal["linear_probe"] = "linear_probe"


Method = Annotated[AdaFilter | FineTune | LinearProbe, Field(discriminator="name")]
