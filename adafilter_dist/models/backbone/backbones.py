"""Pre-trained networks: architecture, weights, preprocessing, and a fresh classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.head import find_head, keep_head, replace_head, source_head
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.backbone.weights import (
    load_trunk,
    read_state,
    sha256_of_state,
)
from adafilter_dist.models.backbone.zoo import WeightsFile, Zoo, without_download, zoo_of
from adafilter_dist.models.backbone.zoo.lite import EfficientNetLite
from adafilter_dist.recipe.command import prepare_line
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.system.sealed_files import sha256_of

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass
class Backbone:
    """A pre-trained network with a classifier for the data's classes.

    `head` is the module path of its nn.Linear; `source` says in words where the weights are from,
    `sha256` is that of their file, or of the state itself where there is none. `source_head` is
    the classifier that the weights had, None where they had none.
    """

    module: nn.Module
    head: str
    preprocess: Preprocess
    name: str
    source: str
    sha256: str
    source_head: nn.Linear | None = None


def resolve_preprocess(recipe: Recipe) -> Preprocess:
    """The weights' own constants, overridden by what the recipe's data section says."""
    weights, data = recipe.model.weights, recipe.data
    named = weights is not None and not _is_file(weights)
    base = zoo_of(recipe.model.name).preprocess(weights if named else None)
    crop = data.resolution or base.crop
    resize = data.eval_resize or round(base.resize * crop / base.crop)
    if resize < crop:
        raise UserError(
            f"data.eval_resize={resize} is smaller than the crop of {crop} px behind it; "
            "give at least data.resolution"
        )
    return Preprocess(
        data.mean or base.mean,
        data.std or base.std,
        data.interpolation or base.interpolation,
        resize,
        crop,
        data.stored_size,
    )


def load_backbone(recipe: Recipe, classes: int | Sequence[str]) -> Backbone:
    """The recipe's network with its weights from disk and its head; opens no network.

    `classes` is their number, or their names, which model.head=pretrained compares with those of
    the weights. A new head, and random weights where model.weights is null, are a function of
    recipe.seed. Raises UserError with the `adafilter prepare` line where weights are missing, and
    where the head of the weights is not one for these classes.
    """
    name, weights = recipe.model.name, recipe.model.weights
    preprocess = resolve_preprocess(recipe)
    zoo = zoo_of(name)
    module = build_architecture(name, preprocess.crop, recipe.seed)
    _require_size(module, recipe, preprocess.crop)
    head = find_head(module)
    keep = recipe.model.head == "pretrained"
    source_classifier: nn.Linear | None = None
    if weights is None:
        if keep:
            raise UserError("model.head=pretrained: model.weights=null has no head; use new")
        source, digest = f"random weights of seed {recipe.seed}", sha256_of_state(module)
    else:
        file = _locate(zoo, weights)
        if not file.path.is_file():
            raise UserError(
                f"{file.source}: no weights at {file.path}; fetch them with: {prepare_line(recipe)}"
            )
        digest = _verify(file)
        state = zoo.adapt(read_state(file.path))
        load_trunk(module, head, state, str(file.path))
        source_classifier = source_head(module, head, state)
        if keep:
            known = None if _is_file(weights) else zoo.classes(weights)
            keep_head(module, head, state, classes, known)
        source = f"{file.source} ({file.path.name})"
    if not keep:
        number = classes if isinstance(classes, int) else len(classes)
        replace_head(module, head, number, recipe.seed)
    if not recipe.model.dropout:
        zoo.switch_off_dropout(module)
    if recipe.model.bn_momentum is not None:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = recipe.model.bn_momentum
    return Backbone(module, head, preprocess, name, source, digest, source_classifier)


def _require_size(module: nn.Module, recipe: Recipe, crop: int) -> None:
    """UserError where the network cannot take pictures of another size than its usual one."""
    weights = recipe.model.weights
    named = weights is not None and not _is_file(weights)
    usual = zoo_of(recipe.model.name).preprocess(weights if named else None).crop
    if crop == usual:
        return
    module.eval()
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, crop, crop))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"data.resolution={crop}: {recipe.model.name} cannot take pictures of {crop} px "
            f"({reason}); it is made for data.resolution={usual}"
        ) from None
    module.train()


def fetch_weights(recipe: Recipe) -> str:
    """Make sure that the recipe's weights lie on disk, whole; says in a line what was found.

    The only place that opens the network for weights, and only where they are missing. Raises
    UserError if they cannot be had or their sha256 is wrong.
    """
    weights = recipe.model.weights
    zoo = zoo_of(recipe.model.name)
    if weights is None:
        return f"{recipe.model.name}: random weights, nothing to fetch"
    file = _locate(zoo, weights)
    how = "found"
    if not file.path.is_file():
        if _is_file(weights):
            raise UserError(f"model.weights={weights}: no such file")
        try:
            zoo.download(weights)
        except UserError as error:
            hint = without_download() if zoo.name != EfficientNetLite.NAME else ""
            raise UserError(f"{error}. {hint}" if hint else str(error)) from error
        how, file = "downloaded", _locate(zoo, weights)
    digest = _verify(file)
    return f"{file.source}: {how}, {file.path} (sha256 {digest[:16]})"


def build_architecture(name: str, size: int, seed: int = 0) -> nn.Module:
    """The network `name` for pictures of `size` px, weights drawn from `seed`, original head."""
    zoo = zoo_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return zoo.build(size)


def _is_file(weights: str) -> bool:
    return weights.endswith(_SUFFIXES) or "/" in weights


def _locate(zoo: Zoo, weights: str) -> WeightsFile:
    if _is_file(weights):
        return WeightsFile(Path(weights).expanduser(), f"file for {zoo.name}")
    return zoo.locate(weights)


def _verify(file: WeightsFile) -> str:
    digest = sha256_of(file.path)
    if file.sha256 and not digest.startswith(file.sha256):
        raise UserError(
            f"{file.path} is damaged: its sha256 begins with {digest[: len(file.sha256)]}, "
            f"published is {file.sha256}; delete it and fetch it again"
        )
    return digest
