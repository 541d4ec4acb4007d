"""What a method hands to the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.backbones import Backbone
from adafilter_dist.models.backbone.linear_fit import Features
from adafilter_dist.models.gating.conversion_report import ConversionReport
from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.recipe.schema import Recipe
from adafilter_dist.recipe.sections.training import Optim


class UpdateRule:
    """Changes what an update does, on every rank alike; for methods that cannot say it as a loss.

    It sees the whole gradients of a step, after they were reduced, unscaled and clipped: engines
    that share them out (ZeRO 1 to 3) refuse it. Rules inherit from this
    class, which changes nothing.
    """

    def begin(self, epoch: int) -> None:
        """Once a step, before `before`: the epoch that the step belongs to, from 0."""

    def before(self, optimizer: torch.optim.Optimizer) -> None:
        """Just before the optimizer's step, the rates of this step in its groups."""

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Just after the optimizer's step; neither is called where fp16 skips the step."""


@dataclass(frozen=True)
class Pictures:
    """Images (n, 3, H, W) as evaluation sees them, normalised, and labels int64 (n,).

    On the device, all of them on every rank.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class StartData:
    """The splits as the untrained network sees them in evaluation mode; ``val`` may be missing.

    A start that takes long calls ``tick`` every second or so, and says by ``say`` how far it is.
    """

    train: Features
    val: Features | None
    num_classes: int
    device: torch.device  # where a fit is quick; the features lie on the CPU
    pictures: Pictures | None = None  # as many as the method's `start_pictures`
    tick: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Start:
    """New ``values`` of parameters and persistent buffers by name, and what to tell about them."""

    values: dict[str, Tensor]
    line: str


@dataclass
class TrainableModel:
    """A model ready to be trained.

    `groups` are torch optimizer groups with name, params, lr and weight_decay. `penalty(labels)` is
    the weighted regulariser of the last forward, a 0-d tensor, the mean over the micro-batches of
    that forward; labels are int64 (N,), those of the pictures before any mixing. `gates` and
    `report` are there for AdaFilter only. `classifier` is the path of the nn.Linear that gives the
    logits in `model`. `method`, `name` and `head` (the same layer's path in the architecture) are
    what an export needs to build it again.

    `start` is called once, before the first step of a run, and gives new values of parameters and
    persistent buffers of `model`: a function of its argument and the weights alone, without draws
    of its own. `start_pictures` training pictures come with it, or as many as there are. `rule`
    changes what updates do. `exported` takes the state of `model` and leaves what an export holds,
    for methods whose network has parts that only training needs. `reads_host` says, in words that
    end a sentence, what in forward or penalty depends on numbers of the host that change, or makes
    the host read the device: such steps cannot be recorded (``train.graph``).
    """

    model: nn.Module
    groups: list[dict[str, Any]]
    penalty: Callable[[Tensor], Tensor]
    num_classes: int
    name: str
    head: str
    classifier: str
    method: str
    gates: RecurrentGate | None = None
    report: ConversionReport | None = None
    start: Callable[[StartData], Start] | None = None
    start_pictures: int = 0
    rule: UpdateRule | None = None
    exported: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    reads_host: str = ""

    def keep_beside(self, name: str, part: nn.Module) -> None:
        """Make `part` the model's module `name`: in checkpoints, and not in exports."""
        self.model.add_module(name, part)
        prefix = f"{name}."
        self.exported = lambda state: {
            key: value for key, value in state.items() if not key.startswith(prefix)
        }


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    lr_gate: float | None = None,
    lr_head: float | None = None,
    weight_decay: float = 0.0,
    head: str | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: trunk, gate and head, each with and without weight decay.

    Only what is trained is in them. Parameters of one dimension (biases, BatchNorm) do not decay.
    Rates that are None are `lr`. `head` is the classifier's path; a converted network knows it.
    """
    prefix = _head_prefix(model, head)
    rates = {"trunk": lr, "gate": lr_gate or lr, "head": lr_head or lr}
    groups: dict[str, dict[str, Any]] = {}
    for part, rate in rates.items():
        for suffix, decay in (("", weight_decay), ("_no_decay", 0.0)):
            name = part + suffix
            groups[name] = {"name": name, "params": [], "lr": rate, "weight_decay": decay}
    gates = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, RecurrentGate)
        for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "gate" if id(parameter) in gates else "trunk"
            part = "head" if prefix and name.startswith(prefix) else part
            groups[part + ("" if parameter.ndim > 1 else "_no_decay")]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def groups_of(model: nn.Module, optim: Optim, head: str) -> list[dict[str, Any]]:
    """`parameter_groups` with the recipe's rates and decay."""
    return parameter_groups(
        model,
        lr=optim.lr,
        lr_gate=optim.lr_gate,
        lr_head=optim.lr_head,
        weight_decay=optim.weight_decay,
        head=head,
    )


def without_gates(
    model: nn.Module, backbone: Backbone, recipe: Recipe, head: str
) -> TrainableModel:
    """What a method without gates hands over; `head` is the classifier's path in `model`."""
    parameter = next(model.parameters())
    return TrainableModel(
        model=model,
        groups=groups_of(model, recipe.optim, head),
        penalty=lambda labels: parameter.new_zeros(()),
        num_classes=_classes(model, head),
        name=backbone.name,
        head=backbone.head,
        classifier=head,
        method=recipe.method.name,
    )


def require_whole_pictures(recipe: Recipe) -> None:
    """UserError where pictures are mixed, for methods whose penalty goes by a picture's class."""
    mixing = [key for key in ("mixup", "cutmix") if getattr(recipe.augment, key)]
    if mixing:
        raise UserError(
            f"method={recipe.method.name} goes by the class of each picture, and "
            f"augment.{mixing[0]} mixes pictures of several; set augment.{mixing[0]}=0"
        )


def _classes(model: nn.Module, head: str) -> int:
    linear = model.get_submodule(head)
    assert isinstance(linear, nn.Linear)
    return linear.out_features


def _head_prefix(model: nn.Module, head: str | None) -> str | None:
    if head is None:
        own = getattr(model, "head", None)
        head = f"backbone.{own}" if isinstance(own, str) else None
    return None if head is None else head + "."
