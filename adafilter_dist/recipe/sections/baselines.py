"""``method:``, the methods that AdaFilter is compared with."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from adafilter_dist.recipe.sections.base import (
    Count,
    Expression,
    Fraction,
    NotNegative,
    Positive,
    Section,
)


class Baseline(Section):
    """What all methods but AdaFilter have in common."""

    # Whether `layers` changes what is trained under model.ungated: it is part of the run's hash
    # there, and nowhere else.
    layers_count_with: ClassVar[tuple[str, ...]] = ("freeze",)

    layers: Expression | None = Field(
        ".*",
        description="regular expression; with model.ungated=freeze, the convolutions it matches "
        "are trained with their BatchNorms, as AdaFilter would gate them, and the head; null: all "
        "layers are trained, whatever model.ungated says",
    )


class FineTune(Baseline):
    """Plain fine-tuning of every weight."""

    name: Literal["finetune"] = "finetune"


class LinearProbe(Baseline):
    """A linear head on frozen features (BatchNorm in evaluation mode)."""

    layers_count_with: ClassVar[tuple[str, ...]] = ()

    name: Literal["linear_probe"] = "linear_probe"


class LpFt(Baseline):
    """LP-FT (Kumar et al., ICLR 2022): a head fitted on frozen features, then all weights."""

    name: Literal["lp_ft"] = "lp_ft"


class CoTuning(Baseline):
    """Co-Tuning (You et al., NeurIPS 2020): the pre-trained classifier is trained along."""

    name: Literal["co_tuning"] = "co_tuning"
    strength: NotNegative = Field(2.3, description="weight of the source classes' cross entropy")
    relation: Literal["direct", "calibrated"] = Field(
        "direct",
        description="p(source class | class): mean prediction of the source classifier on the "
        "training pictures; or from a regression of the classes on those predictions, "
        "calibrated on the validation split, by Bayes",
    )


class BiTuning(Baseline):
    """Bi-Tuning (Zhong et al., 2020): two contrastive losses over queues of keys."""

    name: Literal["bi_tuning"] = "bi_tuning"
    strength: NotNegative = Field(1.0, description="weight of each of the two losses")
    queue: Annotated[int, Field(ge=1, le=65_536)] = Field(40, description="keys kept of each class")
    momentum: Fraction = Field(0.999, description="of the network that makes the keys")
    temperature: Positive = Field(0.07, description="of both contrastive losses")
    projection: Annotated[int, Field(ge=1, le=65_536)] = Field(
        128, description="size of the projections that are compared"
    )


class BSS(Baseline):
    """Batch spectral shrinkage (Chen et al., NeurIPS 2019)."""

    name: Literal["bss"] = "bss"
    eta: NotNegative = Field(
        1e-3, description="weight of the smallest squared singular values of a micro-batch"
    )
    k: Count = Field(1, description="how many singular values are shrunk")


class StochNorm(Baseline):
    """Stochastic normalisation (Kou et al., NeurIPS 2020)."""

    name: Literal["stochnorm"] = "stochnorm"
    p: Fraction = Field(
        0.5,
        description="probability that a channel is normalised by its micro-batch in training, and "
        "not by the running statistics",
    )


class FineTuneLast(Baseline):
    """Fine-tuning of the last layers and the head."""

    layers_count_with: ClassVar[tuple[str, ...]] = ("train", "freeze")

    name: Literal["finetune_last"] = "finetune_last"
    last: Annotated[int, Field(ge=1, le=10_000)] = Field(
        3,
        description="how many convolutions with a BatchNorm are trained, counted from the end in "
        "order of execution, of those that match layers; all others are frozen, whatever "
        "model.ungated says",
    )


class L2SP(Baseline):
    """L2-SP (Li, Grandvalet, Davoine, ICML 2018), in place of optim.weight_decay."""

    name: Literal["l2sp"] = "l2sp"
    alpha: NotNegative = Field(0.01, description="strength of the pull to the pre-trained weights")
    beta: NotNegative = Field(0.01, description="strength of the pull of a new head to zero")


class LayerwiseDecay(Baseline):
    """Fine-tuning with a learning rate that falls with the distance from the head."""

    name: Literal["layerwise_decay"] = "layerwise_decay"
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.75, description="factor on the rate from each layer to the one before it"
    )


class SPD(Baseline):
    """Selective projection decay (Tian et al., NeurIPS 2024)."""

    name: Literal["spd"] = "spd"
    strength: Positive = Field(
        1.0,
        description="share of the way back to the distance of before, for layers that the gradient "
        "pulls back to their start; 1: all of it",
    )


class AutoRGN(Baseline):
    """Surgical fine-tuning by relative gradient norms (Lee et al., ICLR 2023)."""

    name: Literal["auto_rgn"] = "auto_rgn"
    scaling: Literal["max", "min_max"] = Field(
        "max",
        description="factors on the learning rates: relative gradient norms over the largest, or "
        "from 0 for the smallest to 1 for the largest",
    )
    train_batchnorm: bool = Field(
        False, description="whether weights and biases of BatchNorms are trained, too"
    )


class SpotTune(Baseline):
    """SpotTune (Guo et al., CVPR 2019): blocks pre-trained or fine-tuned, by picture."""

    # The blocks that hold a matching convolution are the ones that the policy chooses for.
    layers_count_with: ClassVar[tuple[str, ...]] = ("train", "freeze")

    name: Literal["spottune"] = "spottune"
    temperature: Positive = Field(5.0, description="of the policy's Gumbel-softmax in training")
    sample: bool = Field(
        False,
        description="draw in evaluation too, as published, by the picture and the seed; false: the "
        "likelier block",
    )
    policy_rate: Positive = Field(0.1, description="factor on optim.lr for the policy network")
    policy_weight_decay: NotNegative = Field(1e-3, description="of the policy network")


class Delta(Baseline):
    """DELTA (Li et al., ICLR 2019), in place of optim.weight_decay."""

    name: Literal["delta"] = "delta"
    alpha: NotNegative = Field(
        0.01, description="strength of the pull of feature maps to the pre-trained network's"
    )
    beta: NotNegative = Field(0.01, description="strength of the pull of the head to zero")
    maps: Expression | None = Field(
        None,
        description="regular expression; the outputs of the convolutions it matches are the "
        "feature maps; default the last convolution at each of the last four resolutions",
    )
    pictures: Count = Field(
        128, description="training pictures on which the attention to each channel is measured"
    )
