"""Bi-Tuning: its losses, its queues and the network that makes the keys, each against a formula."""

from __future__ import annotations

import copy
import math
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from adafilter_dist.errors import UserError
from adafilter_dist.methods import TrainableModel, build_method
from adafilter_dist.methods.bi_tuning import BiTuningNet
from adafilter_dist.methods.export import export_model, load
from adafilter_dist.methods.key_queues import KeyQueues
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.models.gating import step_statistics
from adafilter_dist.models.gating.micro_batches import in_micro_batches
from adafilter_dist.recipe.schema import Recipe
from tests.methods.test_export import PREPROCESS

CLASSES, BATCH = 4, 6


def build(**words: Any) -> TrainableModel:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "fashion_mnist"},
            "model": {"name": "small_resnet", "weights": "FASHION_MNIST"},
            "method": {"name": "bi_tuning", "queue": 3, "projection": 5, "strength": 0.5},
            "train": {"global_batch": BATCH, "micro_batch": BATCH},
            **words,
        }
    )
    trainable = build_method(load_backbone(recipe, CLASSES), recipe)
    trainable.model.double().train()
    return trainable


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(BATCH, 3, 28, 28, generator=draw).double(), torch.tensor([0, 1, 2, 2, 0, 0])


def inner(trainable: TrainableModel) -> BiTuningNet:
    assert isinstance(trainable.model, BiTuningNet)
    return trainable.model


def by_hand(net: BiTuningNet, head: nn.Linear, x: Tensor, y: Tensor) -> float:
    """Both losses, picture by picture and key by key, at the first step."""

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        net.query.backbone(images)
        handle.remove()
        (h,) = seen
        z = h @ net.query.projector.weight.T + net.query.projector.bias
        return normalize(torch.cat([h, torch.ones(len(h), 1).double()], 1)), normalize(z)

    (h, z), (_, key) = encode(x), encode(x.flip(3))
    w = normalize(torch.cat([head.weight, head.bias[:, None]], 1))
    total = 0.0
    for i, label in enumerate(y.tolist()):
        for queue, anchor, own in (
            (net.features.keys, w[label], w[label] @ h[i]),
            (net.projections.keys, z[i], z[i] @ key[i]),
        ):
            positive = [own, *(anchor @ one for one in queue[label])]
            every = [*positive, *(anchor @ k for c in range(4) if c != label for k in queue[c])]
            norm = sum(math.exp(float(one) / 0.07) for one in every)
            for one in positive:
                share = 1 / len(positive)
                total += share * (math.log(share) - float(one) / 0.07 + math.log(norm)) / len(y)
    return total


def test_the_penalty_is_both_losses_picture_by_picture() -> None:
    trainable, (x, y) = build(), batch()
    head = trainable.model.get_submodule(trainable.classifier)
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        wanted = 0.5 * by_hand(inner(trainable), head, x, y)
    trainable.model(x)
    penalty = trainable.penalty(y)
    assert float(penalty.detach()) == pytest.approx(wanted, rel=1e-9)

    # It reaches the backbone and the projection; no key, and not the classifier's rows.
    penalty.backward()
    grads = {name for name, p in trainable.model.named_parameters() if p.grad is not None}
    assert "query.projector.weight" in grads
    assert not {f"{trainable.classifier}.weight", f"{trainable.classifier}.bias"} & grads
    names = {name for name, _ in trainable.model.named_parameters()}
    assert grads | {f"{trainable.classifier}.weight", f"{trainable.classifier}.bias"} == names
    assert all(name.startswith("query.") for name in names)


def test_without_mirrored_pictures_the_key_is_of_the_picture_itself() -> None:
    trainable, (x, y) = build(augment={"flip": 0.0}), batch()
    net = inner(trainable)
    net(x)
    net.losses(y)
    # The key encoder is the query encoder still.
    torch.testing.assert_close(
        net.projections.waiting[:, :5], net.query(x)[2].detach(), rtol=0, atol=1e-12
    )


def test_queues_take_keys_in_order_from_any_number_of_ranks() -> None:
    """Beside plain lists: micro-batches of two ranks, classes that overflow, several steps."""
    draw = torch.Generator().manual_seed(1)
    ranks = [KeyQueues(3, 2, 5, 12, torch.Generator().manual_seed(0)).double() for _ in range(2)]
    lists = [deque(ranks[0].keys[label].tolist(), maxlen=2) for label in range(3)]
    for _ in range(4):
        keys = torch.randn(12, 5, generator=draw, dtype=torch.float64)
        labels = torch.randint(3, (12,), generator=draw)
        labels[:4] = 1  # twice as many as its queue holds
        # Micro-batches 0 and 1 in one forward of the first rank, 2 and 3 of the second.
        for rank, numbers in ((0, (0, 1)), (1, (2, 3))):
            mine = slice(6 * rank, 6 * rank + 6)
            with in_micro_batches(2, (), numbers):
                ranks[rank].add(keys[mine], labels[mine])
        rows = (ranks[0].waiting + ranks[1].waiting).flatten() / 4
        for queues in ranks:
            queues.take(rows.clone())
        for key, label in zip(keys.tolist(), labels.tolist(), strict=True):
            lists[label].append(key)
        for queues in ranks:
            assert not queues.waiting.any()
            for label in range(3):
                oldest = int(queues.places[label])
                found = queues.keys[label].roll(-oldest, 0)
                wanted = torch.tensor(list(lists[label]), dtype=torch.float64)
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_rows_that_nobody_filled_move_nothing() -> None:
    queues = KeyQueues(3, 2, 5, 4, torch.Generator().manual_seed(0))
    before = copy.deepcopy(queues.state_dict())
    queues.take(queues.waiting.flatten())
    assert all(torch.equal(queues.state_dict()[name], one) for name, one in before.items())
    torch.testing.assert_close(queues.keys.norm(dim=2), torch.ones(3, 2))


def test_keys_come_from_the_moving_average_of_the_weights() -> None:
    trainable, (x, y) = build(), batch()
    net = inner(trainable)
    start = {name: p.detach().clone() for name, p in net.query.named_parameters()}
    history: list[dict[str, Tensor]] = []
    optimizer = torch.optim.SGD(trainable.groups, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (net(x).square().mean() + trainable.penalty(y)).backward()
        optimizer.step()
        step_statistics.update_statistics(net)
        history.append({name: p.detach().clone() for name, p in net.query.named_parameters()})
    keys = dict(net.key.named_buffers())
    for name, first in start.items():
        wanted = 0.999**2 * first + 0.001 * (0.999 * history[0][name] + history[1][name])
        torch.testing.assert_close(keys[name], wanted, rtol=0, atol=1e-12)
    moved = [n for n in start if not torch.equal(keys[n], start[n])]
    assert len(moved) == len(start)
    # All of it is in checkpoints.
    state = net.state_dict()
    assert {f"key.{name}" for name in start} < state.keys()
    assert {"features.keys", "features.places", "projections.keys"} < state.keys()
    assert not any("waiting" in name for name in state)


def test_a_skipped_step_leaves_queues_and_keys() -> None:
    trainable, (x, y) = build(), batch()
    before = {n: t.clone() for n, t in trainable.model.state_dict().items()}
    trainable.model(x)
    trainable.penalty(y)
    step_statistics.discard(trainable.model)
    step_statistics.apply(trainable.model, step_statistics.collect(trainable.model))
    after = trainable.model.state_dict()
    still = [n for n in before if "queue" in n or n.startswith(("features", "projections"))]
    assert len(still) == 4 and all(torch.equal(after[n], before[n]) for n in still)


def test_an_export_is_the_plain_network(tmp_path: Path) -> None:
    trainable, (x, _) = build(), batch()
    export_model(tmp_path, trainable, classes=list("abcd"), preprocess=PREPROCESS)
    model, _ = load(tmp_path)
    assert torch.equal(model(x), trainable.model.eval()(x))
    assert not any(name.startswith(("query", "key")) for name in model.state_dict())


def test_where_it_cannot_run() -> None:
    with pytest.raises(UserError, match=r"engine\.zero_stage=3 has them on no rank"):
        build(engine={"name": "deepspeed", "zero_stage": 3})
    with pytest.raises(UserError, match=r"set augment\.mixup=0"):
        build(augment={"mixup": 0.2})
