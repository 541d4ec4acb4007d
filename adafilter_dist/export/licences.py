"""What is known of the licences of data and of pre-trained weights; no advice, and no guess."""

from __future__ import annotations

from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.model import is_weights_file

_UNKNOWN = "not known here: enter it before you hand the model on"
_IMAGENET = "pre-trained on ImageNet, whose pictures are for non-commercial research and education"

DATA = {
    "food101": "the pictures are from Foodspotting and belong to their owners; for research",
    "caltech256": "Caltech-256: CC BY 4.0",
    "fashion_mnist": "Fashion-MNIST: Zalando SE, MIT licence",
    "mixed_domains": "made of Fashion-MNIST: Zalando SE, MIT licence",
    "stanford_dogs": "the pictures are ImageNet's: non-commercial research and education",
    "fgvc_aircraft": "non-commercial research only; the photographers keep the copyright",
    "indoor67": "for research only",
    "ucf101": "none is stated; the videos are YouTube's, for research",
    "omniglot": "Omniglot: MIT licence",
}
"""By ``data.name``; the comment at the head of each recipe says the same."""


def of_data(recipe: Recipe) -> str:
    """The licence of the training pictures."""
    return DATA.get(recipe.data.name, f"your own pictures; their licence is {_UNKNOWN}")


def of_weights(recipe: Recipe) -> str:
    """The licence of the weights that training began with."""
    name, weights = recipe.model.name, recipe.model.weights
    if weights is None:
        return "none: the network began with random weights"
    if is_weights_file(weights):
        return f"{weights}: a file of your own; its licence is {_UNKNOWN}"
    if name.startswith("timm/"):
        return f"{name}: {_of_timm(name, weights)}"
    if name == "small_resnet":
        return "small_resnet: this project's own (Apache-2.0), pre-trained on Fashion-MNIST (MIT)"
    if name.startswith("efficientnet_lite"):
        return f"{name}: Apache-2.0; {_IMAGENET}"
    imagenet = f"; {_IMAGENET}" if weights == "DEFAULT" or "IMAGENET" in weights else ""
    return f"{name}, {weights} of torchvision: BSD-3-Clause{imagenet}"


def _of_timm(name: str, weights: str) -> str:
    """As timm itself says of the weights."""
    import timm

    tag = "" if weights == "DEFAULT" else weights
    base = name.removeprefix("timm/")
    about = timm.get_pretrained_cfg(base if "." in base or not tag else f"{base}.{tag}")
    licence = getattr(about, "license", None) or _UNKNOWN
    return f"{licence}, says timm {timm.__version__}; look up what they were trained on"
