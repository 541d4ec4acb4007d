"""A user's code that calls all of the public API: `mypy --strict` has nothing to say of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import adafilter_dist
from adafilter_dist import (
    AdaFilterNet,
    Classifier,
    DecisionSummary,
    Gate,
    InferenceNet,
    UserError,
    capture,
    convert,
    decide,
    for_inference,
    load,
    observe_gates,
    override_gates,
    parameter_groups,
    update_statistics,
)


def train(backbone: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> AdaFilterNet:
    gate = Gate(decision="picture", hidden=64)
    net = convert(backbone, size=224, gate=gate, layers="layer[34]", batchnorm="all", seed=1)
    shares: list[float] = [net.report.gated_share, float(net.gate.last_mean.mean())]
    print(net.report, shares, list(net.gated_layers), adafilter_dist.__version__)
    groups = parameter_groups(net, lr=0.01, lr_gate=0.1, lr_head=0.05, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    for images, labels in batches:
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward([loss])  # Tensor.backward has no types
        optimizer.step()
        update_statistics(net)
    summary: DecisionSummary = decide(net, batches, seed=0)
    print(f"{summary.tuned:.0%} of {summary.pictures}, contrast {summary.contrast or 0.0:.2f}")
    return net


def predict(folder: Path, picture: Path) -> str:
    try:
        model, transform = load(folder, fast=True)
    except UserError as error:
        raise SystemExit(str(error)) from None
    named: Classifier = model
    classes: list[str] = named.classes
    logits: Tensor = model(transform(picture)[None])
    return classes[int(logits.argmax())]


def look(net: AdaFilterNet, images: Tensor) -> dict[str, float]:
    means: dict[str, float] = {}

    def note(index: int, name: str, gates: Tensor, probabilities: Tensor) -> None:
        means[name] = float(gates.mean())

    def tuned(index: int, gates: Tensor) -> Tensor:
        return torch.ones_like(gates)

    with observe_gates(net, note), override_gates(net, tuned):
        net(images)
    return means


def faster(net: AdaFilterNet, images: Tensor) -> Tensor:
    fast: InferenceNet = for_inference(net)
    if images.is_cuda:
        return capture(fast, images)(images)
    logits: Tensor = fast(images)
    return logits
