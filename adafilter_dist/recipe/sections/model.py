"""``model:`` and ``method:``, the pre-trained network, AdaFilter with its gates, all methods."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from adafilter_dist.recipe.sections.base import (
    DomainGates,
    Expression,
    Fraction,
    NotNegative,
    Positive,
    Section,
)
from adafilter_dist.recipe.sections.baselines import (
    BSS,
    L2SP,
    SPD,
    AutoRGN,
    BiTuning,
    CoTuning,
    Delta,
    FineTune,
    FineTuneLast,
    LayerwiseDecay,
    LinearProbe,
    LpFt,
    SpotTune,
    StochNorm,
)

_FILES = (".safetensors", ".pth", ".pt", ".bin")


def is_weights_file(weights: str) -> bool:
    """Whether ``model.weights`` is a local file, and not the name of published weights."""
    return weights.endswith(_FILES) or "/" in weights


class Model(Section):
    """The pre-trained network."""

    name: str = Field(
        "resnet50",
        description="torchvision's name, timm/NAME, or one that needs no download: "
        "efficientnet_lite0 (extra demo; ImageNet), small_resnet (28 px; Fashion-MNIST)",
    )
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
        "train",
        description="what happens to convolutions and BatchNorms that no gate covers; with other "
        "methods, to those that a gate would not cover",
    )
    dropout: bool = Field(
        True, description="dropout and stochastic depth of the network in training, as published"
    )
    bn_momentum: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="share of a step in the running statistics; default the network's own"
    )


class Gate(Section):
    """What chooses between fine-tuned and pre-trained filters."""

    # ``default=`` by name: type checkers that know nothing of pydantic ask users for it otherwise.
    recipe: Literal["staged", "paper"] = Field(
        default="staged",
        description="paper: the paper's form, as far as it is known (decision=filter, "
        "method.batchnorm=all); staged: a decision on each picture first, this project's own",
    )
    mode: Literal["learned", "frozen", "oracle", "partition", "bernoulli", "constant"] = Field(
        default="learned",
        description="learned, or a control: frozen (random start, never trained), oracle (the "
        "gate named for the picture's domain), partition (a fixed random bit a filter), "
        "bernoulli (bits drawn anew in training), constant (a blend of both filters)",
    )
    probability: Fraction = Field(
        default=0.5, description="of mode partition and bernoulli, and the blend of mode constant"
    )
    oracle: DomainGates | None = Field(
        default=None,
        description="of mode oracle: the gate of each domain of the data, 0 pre-trained to 1 "
        "fine-tuned, {original: 0, changed: 1}; or one for each group of consecutive layers, "
        "{inverted: [1, 0], relabelled: [0, 1]}",
    )
    decision: Literal["picture", "filter"] = Field(
        default="picture",
        description="picture: one decision a picture, measured by its losses, in front of the "
        "filters' own; filter: only each filter's own, by gradient",
    )
    groups: Annotated[int, Field(ge=1, le=3)] = Field(
        default=1, description="groups of consecutive layers that decision=picture decides on"
    )
    warmup: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.15,
        description="share of the steps with all gates 1, before the picture's decision",
    )
    lean: Annotated[float, Field(ge=-100.0, le=100.0)] = Field(
        default=0.1, description="nats by which fine-tuned filters must beat pre-trained ones"
    )
    ridge: Positive = Field(
        default=3e-4, description="penalty on the weights of the picture's decision"
    )
    contrast: NotNegative = Field(
        default=4.0,
        description="nats by which two pictures with different decisions must be better off, "
        "together, than with these exchanged; else all are fine-tuned; 0: not asked",
    )
    look_ahead: Fraction = Field(
        default=0.5,
        description="share of the gated layers whose pre-trained outputs the picture's decision "
        "sees: as much of one more forward; 0: none, but the picture's own mean colour, "
        "normalised as the gate's inputs are",
    )
    margin: Annotated[float, Field(gt=0.0, le=100.0)] = Field(
        default=4.0, description="logits that the picture's decision adds to each filter's own"
    )
    pictures: Annotated[int, Field(ge=2, le=1_000_000)] = Field(
        default=4096, description="training pictures measured for the decision, at most"
    )
    hidden: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=128, description="common size d and LSTM width"
    )
    recurrent: bool = Field(
        default=True,
        description="false, an ablation: each layer decides alone, without the LSTM's state from "
        "earlier layers",
    )
    estimator: Literal["straight_through", "identity", "gumbel", "semhash"] = Field(
        default="straight_through", description="how a gradient passes the threshold of a gate"
    )
    temperature: Positive = Field(default=1.0, description="divides the gate's logits in training")
    input_norm: Literal["layer_norm", "none"] = Field(
        default="layer_norm", description="of each layer's pooled activations, before the LSTM"
    )
    init_scale: Positive = Field(
        default=4.0, description="factor on the logit weights at the start"
    )
    bias: Annotated[float, Field(ge=-1e4, le=1e4)] = Field(
        default=0.0, description="logit bias at the start; 0 is balanced"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_paper(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("recipe") == "paper":
            return {"decision": "filter", "contrast": 0.0} | value
        return value

    @model_validator(mode="after")
    def _check(self) -> Gate:
        if self.recipe == "paper" and self.decision != "filter":
            raise ValueError(
                "recipe=paper has no decision=picture; leave out one of them (decision=filter)"
            )
        if (self.mode == "oracle") != (self.oracle is not None):
            raise ValueError(
                "mode=oracle needs the gate of each domain, and no other mode takes it: "
                "method.gate.oracle={original: 0, changed: 1}"
            )
        return self

    @property
    def is_control(self) -> bool:
        """Whether nothing of the gate computes: what it gives is drawn, fixed or named."""
        return self.mode not in ("learned", "frozen")

    @property
    def decides_pictures(self) -> bool:
        """Whether pictures are decided on as a whole, once their losses have been measured."""
        return self.decision == "picture" and self.mode in ("learned", "frozen")

    @property
    def is_trained(self) -> bool:
        """Whether gradients train the gate of each filter."""
        return self.mode == "learned"


class Sparsity(Section):
    """Regulariser of the gates (not in the paper)."""

    kind: Literal["none", "l1", "target", "decide"] = Field(
        "none",
        description="l1: few fine-tuned filters; target: a wanted mean gate; decide: gates that "
        "are decided and differ by picture",
    )
    weight: NotNegative = Field(0.0, description="factor on the regulariser in the loss")
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
    layers: Expression = Field(
        ".*", description="regular expression; convolutions it matches are gated"
    )
    batchnorm: Literal["selected", "all"] = Field(
        "selected",
        description="whose statistics a branch's BatchNorm takes in training: of the images that "
        "chose the filter, or of all images",
    )
    shared_batchnorm: bool = Field(
        False,
        description="an ablation: one BatchNorm behind the choice, with the statistics of the "
        "chosen outputs of all images, instead of one for each branch",
    )
    fixed_statistics: Literal["none", "frozen", "both"] = Field(
        "none",
        description="branches whose BatchNorm keeps the pre-trained statistics in training; there "
        "filters that no image of a micro-batch selects are not computed",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_paper(cls, value: Any) -> Any:
        return {"batchnorm": "all"} | value if _is_paper(value) else value

    @model_validator(mode="after")
    def _check_paper(self) -> AdaFilter:
        if self.gate.recipe == "paper" and self.batchnorm != "all":
            raise ValueError(
                f"gate.recipe=paper has no batchnorm={self.batchnorm}; leave out one of them "
                "(batchnorm=all)"
            )
        if self.shared_batchnorm and self.fixed_statistics == "frozen":
            raise ValueError(
                "fixed_statistics=frozen is for a branch's own BatchNorm, and "
                "shared_batchnorm=true has one for both; use fixed_statistics=none or both"
            )
        return self


def _is_paper(method: Any) -> bool:
    gate = method.get("gate") if isinstance(method, dict) else None
    return (
        gate.get("recipe") if isinstance(gate, dict) else getattr(gate, "recipe", "")
    ) == "paper"


Method = Annotated[
    AdaFilter
    | FineTune
    | FineTuneLast
    | L2SP
    | LayerwiseDecay
    | LinearProbe
    | LpFt
    | BSS
    | SpotTune
    | StochNorm
    | CoTuning
    | BiTuning
    | SPD
    | AutoRGN
    | Delta,
    Field(discriminator="name"),
]
