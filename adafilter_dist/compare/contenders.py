"""What can take part in a comparison: a name, words of its recipe, and what its trials search.

A contender is a line in ``CONTENDERS``. Every contender gets the same number of trials, at the same
points of the unit cube (`design`), however many keys it searches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adafilter_dist.compare.space import Dimension
from adafilter_dist.errors import UserError, nearest, shown

# The bounds of SGD with momentum 0.9; the best rates of fine-tuning lie well inside of them.
RATE = Dimension("optim.lr", 1e-3, 0.3, adamw=(1e-5, 3e-3))
# A head on frozen features takes, and needs, higher rates.
HEAD_RATE = Dimension("optim.lr", 1e-2, 3.0, adamw=(1e-4, 3e-2))
DECAY = Dimension("optim.weight_decay", 1e-6, 1e-2)


@dataclass(frozen=True)
class Contender:
    """One side of a comparison: its ``title`` in tables, ``words`` and search space."""

    title: str
    words: tuple[str, ...]
    space: tuple[Dimension, ...] = (RATE, DECAY)


_PAPER = (
    "method.gate.recipe=paper",
    "method.gate.decision=filter",
    "method.batchnorm=all",
    "method.sparsity.kind=none",
    "method.sparsity.weight=0",
)


def _adafilter(title: str, *words: str) -> Contender:
    return Contender(title, ("method=adafilter", *words))


CONTENDERS: dict[str, Contender] = {
    "finetune": Contender("fine-tuning", ("method=finetune",)),
    "finetune_last": Contender("last layers alone", ("method=finetune_last",)),
    "l2sp": Contender(
        "L2-SP",
        ("method=l2sp",),
        space=(RATE, Dimension("method.alpha", 1e-4, 1.0), Dimension("method.beta", 1e-4, 1.0)),
    ),
    "layerwise_decay": Contender(
        "layer-wise rates",
        ("method=layerwise_decay",),
        space=(RATE, DECAY, Dimension("method.decay", 0.5, 1.0, "linear")),
    ),
    "lp_ft": Contender("LP-FT", ("method=lp_ft",)),
    "co_tuning": Contender(
        "Co-Tuning",
        ("method=co_tuning", "augment.mixup=0", "augment.cutmix=0"),
        space=(RATE, DECAY, Dimension("method.strength", 0.1, 10.0)),
    ),
    "bi_tuning": Contender(
        "Bi-Tuning",
        ("method=bi_tuning", "augment.mixup=0", "augment.cutmix=0"),
        space=(RATE, DECAY, Dimension("method.strength", 0.03, 3.0)),
    ),
    "delta": Contender(
        "DELTA",
        ("method=delta",),
        # From the published strength downwards: above it training diverges, the sooner the fewer
        # pixels its maps have.
        space=(RATE, Dimension("method.alpha", 1e-6, 1e-2), Dimension("method.beta", 1e-4, 1.0)),
    ),
    "bss": Contender(
        "BSS", ("method=bss",), space=(RATE, DECAY, Dimension("method.eta", 1e-5, 0.1))
    ),
    "stochnorm": Contender(
        "StochNorm",
        ("method=stochnorm",),
        space=(RATE, DECAY, Dimension("method.p", 0.0, 1.0, "linear")),
    ),
    "spd": Contender(
        "SPD", ("method=spd",), space=(RATE, DECAY, Dimension("method.strength", 0.1, 10.0))
    ),
    "auto_rgn": Contender("Auto-RGN", ("method=auto_rgn",)),
    "spottune": Contender(
        "SpotTune",
        ("method=spottune",),
        space=(RATE, DECAY, Dimension("method.policy_rate", 0.01, 1.0)),
    ),
    "ema": Contender(
        "fine-tuning, weights averaged along the way",
        ("method=finetune",),
        space=(RATE, DECAY, Dimension("ema.decay", 0.9, 0.999, "linear")),
    ),
    "linear_probe": Contender("linear probe", ("method=linear_probe",), space=(HEAD_RATE, DECAY)),
    "adafilter": _adafilter("AdaFilter"),
    "adafilter-paper": _adafilter("AdaFilter, the paper's form", *_PAPER),
    "adafilter-paper-bias1": _adafilter(
        "the paper's form, gates start open", *_PAPER, "method.gate.bias=1"
    ),
    "adafilter-bias1": _adafilter("AdaFilter, gates start open", "method.gate.bias=1"),
    # Ablations: without one of its parts.
    "adafilter-shared": _adafilter("AdaFilter, one BatchNorm", "method.shared_batchnorm=true"),
    "adafilter-alone": _adafilter("AdaFilter, gates without state", "method.gate.recurrent=false"),
    # Controls: their gates learn nothing.
    "adafilter-frozen": _adafilter("frozen random gate", "method.gate.mode=frozen"),
    "adafilter-partition": _adafilter("fixed random bits", "method.gate.mode=partition"),
    "adafilter-bernoulli": _adafilter("bits drawn anew", "method.gate.mode=bernoulli"),
    "adafilter-constant": _adafilter("constant blend", "method.gate.mode=constant"),
    "adafilter-ones": _adafilter(
        "all gates 1", "method.gate.mode=constant", "method.gate.probability=1"
    ),
}
"""By the name that ``methods=`` takes."""


def require_contenders(names: Sequence[str]) -> None:
    """UserError with a line for each name that is not known, with the nearest, or stands twice."""
    known = ", ".join(CONTENDERS)
    mistakes = [
        f"methods={shown(name)}: not known{nearest(name, CONTENDERS)}; there are: {known}"
        for name in names
        if name not in CONTENDERS
    ]
    mistakes += [
        f"methods={shown(name)}: stands there twice"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if mistakes:
        raise UserError("\n".join(mistakes))
