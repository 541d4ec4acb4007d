"""DELTA: feature maps are kept near those of the pre-trained network, some channels more.

Li, Xiong, Wang, Rao, Liu, Chen, Huan, DELTA: Deep Learning Transfer using Feature Map with
Attention for Convolutional Networks, ICLR 2019. For pictures x, and for each chosen feature map j
with C channels of h w pixels,

    penalty = alpha/2 sum_x sum_j C/(h w) sum_c W_jc ||FM_jc(x) - FM_jc^0(x)||^2
              + beta/2 ||head||^2

in place of weight decay. That is the code of the authors (lixingjian/DELTA, train.py) and of the
Transfer-Learning-Library (tllib/regularization/delta.py), with alpha = beta = 0.01: squares are
divided by the pixels of a map and multiplied by its channels (W sums to 1 over them), and summed
over the pictures of a batch, not averaged, beside a cross entropy that is averaged. So their alpha
goes with their batch of 64: here the sum is 64 times the mean over the pictures, for any
train.micro_batch. FM^0 is the frozen network's in evaluation mode, FM that of the trained one in
training mode. The maps are the outputs of the last convolution of each of four stages.

Attention W_j is the softmax over channels of z/5, where z are the standardised rises of the loss
when a filter is set to zero (channel_eval.py): measured before the first step on the pre-trained
network with a head fitted to its features, on 128 training pictures (4 batches of 32 in run.sh).
Theirs are random crops with a head of ten epochs of SGD; ours are seen as in evaluation, with the
head of the report's linear probe.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adafilter_dist.errors import UserError
from adafilter_dist.methods.base import Pictures, Start, StartData, TrainableModel
from adafilter_dist.methods.finetune import build_finetune
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.backbone.feature_maps import FeatureMap, feature_maps
from adafilter_dist.models.backbone.kept_prefix import modules_until, prefix_kept
from adafilter_dist.models.backbone.linear_fit import fit_linear
from adafilter_dist.models.ops.dtypes import accumulation_dtype
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.baselines import Delta
from adafilter_dist.recipe.sections.engine import DeepSpeed

_BATCH = 64  # of the authors' code
_SOFTENING = 5.0
_AT_ONCE = 64  # pictures of a forward that measures


class Reference(nn.Module):
    """The pre-trained network, which is neither trained nor moved, and W of each feature map.

    Before W is measured all channels have the same.
    """

    def __init__(self, network: nn.Module, maps: list[FeatureMap]) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        like = next(network.parameters())
        for number, each in enumerate(maps):
            even = torch.full_like(like.detach()[:0].new_empty(each.channels), 1 / each.channels)
            self.register_buffer(f"attention_{number}", even)
        self.train(self.training)

    def train(self, mode: bool = True) -> Reference:
        """Without effect on the network, which stays in evaluation."""
        super().train(mode)
        self.network.eval()
        return self

    def attention(self, number: int) -> Tensor:
        """W (C,) of the map of that number."""
        return self.get_buffer(f"attention_{number}")


def build_delta(backbone: Backbone, recipe: Recipe) -> TrainableModel:
    """Plain fine-tuning beside the frozen network.

    UserError where no convolution is chosen, and under ZeRO-3, where no rank has the whole head.
    """
    method, engine = recipe.method, recipe.engine
    assert isinstance(method, Delta)
    if isinstance(engine, DeepSpeed) and engine.zero_stage == 3:
        raise UserError(
            "method=delta: penalises the whole head in each step, which engine.zero_stage=3 shares "
            "out among the ranks; use engine.zero_stage=2 or less"
        )
    network, crop = copy.deepcopy(backbone.module), backbone.preprocess.crop
    example = torch.zeros(2, 3, crop, crop, dtype=next(network.parameters()).dtype)
    maps = feature_maps(network, example, method.maps)
    if not maps:
        paths = [path for path, m in network.named_modules() if isinstance(m, nn.Conv2d)]
        raise UserError(
            f"method.maps={method.maps}: no convolution of {backbone.name} matches; its last is "
            f"{paths[-1] if paths else 'none'}"
        )
    trainable = build_finetune(backbone, recipe)
    for group in trainable.groups:
        group["weight_decay"] = 0.0
    model, reference = trainable.model, Reference(network, maps)
    head = model.get_submodule(trainable.classifier)

    # The maps of the last forward in training, of both networks.
    own: dict[int, Tensor] = {}
    frozen: dict[int, Tensor] = {}
    for number, each in enumerate(maps):
        tuned = model.get_submodule(each.path)
        tuned.register_forward_hook(_keep(own, number, model, each.changed))
        source = network.get_submodule(each.path)
        source.register_forward_hook(_keep(frozen, number, model, each.changed))

    def beside(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # What a forward that was broken off has left belongs to other pictures.
        own.clear()
        frozen.clear()
        if module.training:
            with torch.no_grad():
                network(inputs[0])

    model.register_forward_pre_hook(beside)
    trainable.keep_beside("reference", reference)

    def penalty(labels: Tensor) -> Tensor:
        # A map that neither network computes lies in a frozen part, whose activations are kept
        # (train.cache): it is the same in both.
        of_maps = [
            weighted_distance(own.pop(number), frozen.pop(number), reference.attention(number))
            for number in sorted(own.keys() | frozen.keys())
        ]
        of_head = torch.stack([p.square().sum() for p in head.parameters()]).sum()
        behaviour = torch.stack(of_maps).sum() if of_maps else torch.zeros_like(of_head)
        return method.alpha * _BATCH / 2 * behaviour + method.beta / 2 * of_head

    def start(data: StartData) -> Start:
        assert data.pictures is not None
        values: dict[str, Tensor] = {}
        measured: list[FeatureMap] = []
        with _with_fitted_head(trainable, data):
            for number, each in enumerate(maps):
                where = f"{each.path}, feature map {number + 1} of {len(maps)}"
                if not _moves(model, each.path, data.pictures.images[:2]):
                    data.say(f"method=delta: {where}, is not trained")
                    continue
                data.say(
                    f"method=delta: the loss without each of {each.channels:,} filters of {where}"
                )
                measured.append(each)
                rises = rises_without(model, each.path, data.pictures, data.tick)
                values[f"reference.attention_{number}"] = attention_of(rises)
        names = ", ".join(each.path for each in measured) or "none"
        filters, pictures = sum(each.channels for each in measured), len(data.pictures.labels)
        return Start(
            values, f"attention to {filters:,} channels of {names}, measured on {pictures} pictures"
        )

    trainable.penalty = penalty
    trainable.start, trainable.start_pictures = start, method.pictures
    return trainable


def _keep(
    maps: dict[int, Tensor], number: int, model: nn.Module, changed: bool
) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if model.training:
            maps[number] = output.clone() if changed else output

    return hook


def weighted_distance(own: Tensor, frozen: Tensor, attention: Tensor) -> Tensor:
    """Mean over the pictures of C/(h w) sum_c W_c ||own_c - frozen_c||^2; maps (N, C, h, w)."""
    channels, height, width = own.shape[1:]
    wide = accumulation_dtype(own.dtype)
    squares = (own.to(wide) - frozen.to(wide)).square().sum((2, 3)).mean(0)
    return channels / (height * width) * (attention * squares).sum()


@torch.no_grad()
def rises_without(
    model: nn.Module, path: str, pictures: Pictures, tick: Callable[[], None]
) -> Tensor:
    """By how much the loss rises without each filter of the convolution at `path`: (C,).

    The mean cross entropy over the pictures, of a model in evaluation mode. The weights are as
    before at the end. `tick` is called before each filter.
    """
    convolution = model.get_submodule(path)
    assert isinstance(convolution, nn.Conv2d)
    sums = []
    split = pictures.images.split(_AT_ONCE), pictures.labels.split(_AT_ONCE)
    for images, labels in zip(*split, strict=True):
        # The loss as it is, then without each filter; only what follows the filter is computed.
        with prefix_kept(model, path, images):
            of_part = [functional.cross_entropy(model(images), labels, reduction="sum")]
            for weight in convolution.weight.unbind():
                tick()
                kept = weight.clone()
                weight.zero_()
                of_part.append(functional.cross_entropy(model(images), labels, reduction="sum"))
                weight.copy_(kept)
        sums.append(torch.stack(of_part))
    losses = torch.stack(sums, 1).sum(1) / len(pictures.labels)
    return losses[1:] - losses[0]


@torch.no_grad()
def _moves(model: nn.Module, path: str, example: Tensor) -> bool:
    """Whether the output of the module at ``path`` changes in training.

    It does not where no weight up to there is trained, and no BatchNorm is in training mode.
    """
    modules = modules_until(model.eval(), path, example)
    model.train()
    moving = any(
        any(parameter.requires_grad for parameter in each.parameters(recurse=False))
        or (each.training and hasattr(each, "running_mean") and not getattr(each, "frozen", False))
        for each in modules
    )
    model.eval()
    return moving


def attention_of(rises: Tensor) -> Tensor:
    """Softmax of a fifth of the standardised rises (C,); even where no filter differs."""
    spread = rises.std(correction=0)
    standard = (rises - rises.mean()) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return torch.softmax(standard / _SOFTENING, 0)


@contextmanager
def _with_fitted_head(trainable: TrainableModel, data: StartData) -> Iterator[None]:
    """The network in evaluation, with a head that fits its features; as before at the end."""
    head, training = trainable.model.get_submodule(trainable.classifier), trainable.model.training
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    fit = fit_linear(data.train, data.val, data.num_classes, data.device)
    head.load_state_dict(dict(zip(("weight", "bias"), fit.folded(), strict=True)))
    trainable.model.eval()
    try:
        yield
    finally:
        head.load_state_dict(state)
        trainable.model.train(training)
