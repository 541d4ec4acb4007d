"""Figures of an evaluation: right, of every image once, and the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.device import to_device
from adafilter_dist.data.stored.prepared import Domains
from adafilter_dist.evaluate import (
    Difference,
    Evaluation,
    ForwardSettings,
    Outcomes,
    evaluate,
    evaluate_gates,
)
from adafilter_dist.evaluate.gate_donors import partners
from adafilter_dist.evaluate.rows import Rows
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gate import find_gate
from adafilter_dist.models.gating.gate_overrides import observe_gates, override_gates
from adafilter_dist.recipe.sections.model import Gate
from tests.distributed import forked
from tests.shared.evaluation_set import PREPROCESS, SIDE, Shared, pictures

CLASSES = 7
CPU = torch.device("cpu")
SETTINGS = ForwardSettings(PREPROCESS, CPU)
TIMEOUT = 240.0
N = 11  # images in the test that takes them one by one


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def labels() -> Tensor:
    return torch.randint(CLASSES, (40,), generator=torch.Generator().manual_seed(1))


def gated_resnet18() -> AdaFilterNet:
    """A converted ResNet-18 whose fine-tuned filters have moved away from the frozen ones."""
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=CLASSES)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    gated = convert(net, size=SIDE, gate=Gate(decision="filter", hidden=16))
    with torch.no_grad():
        for name, parameter in gated.named_parameters():
            if name.endswith("conv.weight"):
                parameter.add_(torch.randn_like(parameter), alpha=float(parameter.std()))
    return gated


def normalised(images: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    batch = MicroBatch(images=images[positions], labels=labels()[positions], index=positions)
    return to_device(batch, PREPROCESS, CPU, torch.float32, True)


def test_figures_against_a_count_by_hand() -> None:
    logits = torch.tensor(
        [
            [9, 8, 7, 6, 5, 4, 3.0],
            [1, 2, 3, 4, 5, 6, 9.0],
            [0, 5, 1, 1, 1, 1, 1.0],
            [3, 0, 0, 0, 0, 0, 9.0],
        ]
    )
    truth = torch.tensor([0, 0, 1, 0])
    found = Evaluation.of(Outcomes.of(logits, truth), CLASSES)
    assert (found.n, found.top1, found.top5) == (4, 0.5, 0.75)
    assert found.mean_per_class == pytest.approx((1 / 3 + 1) / 2)
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, truth)))
    sure = torch.softmax(logits, 1).gather(1, logits.argmax(1, keepdim=True))[:, 0]
    assert torch.allclose(Outcomes.of(logits, truth).confidences.float(), sure)
    wanted = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    wanted[0, 0], wanted[0, 6], wanted[1, 1] = 1, 2, 1
    assert torch.equal(found.confusion, wanted)
    assert found.to_dict(confusion=True)["confusion"] == wanted.tolist()
    assert Evaluation.of(Outcomes.of(logits[:, :5], torch.tensor([0, 0, 1, 0])), 5).top5 is None


def test_a_difference_is_paired() -> None:
    def outcomes(predictions: list[int]) -> Outcomes:
        zeros = torch.zeros(4)
        return Outcomes(
            torch.zeros(4, dtype=torch.int64), torch.tensor(predictions), zeros, zeros, zeros
        )

    found = Difference.between(outcomes([0, 0, 0, 1]), outcomes([0, 0, 1, 1]))
    assert (found.low, found.high) == (0.0, 0.75)  # of 4 draws, each 1 with 1/4: 0 to 3 ones
    assert found.value == 0.25
    assert found.standard_error == pytest.approx(float(np.std([0, 0, 1, 0], ddof=1)) / 2)
    same = Difference.between(outcomes([0, 1, 0, 1]), outcomes([0, 1, 0, 1]))
    assert (same.value, same.standard_error, same.low, same.high) == (0, 0, 0, 0)


def test_an_interval_is_that_of_resampled_images() -> None:
    n, better, worse = 10_000, 700, 200
    labels = torch.zeros(n, dtype=torch.int64)
    zeros = torch.zeros(n)

    def outcomes(wrong: slice) -> Outcomes:
        predictions = labels.clone()
        predictions[wrong] = 1
        return Outcomes(labels, predictions, zeros, zeros, zeros)

    found = Difference.between(outcomes(slice(0, worse)), outcomes(slice(n - better, n)))
    spread = ((better + worse) / n - 0.05**2) ** 0.5 / n**0.5  # of the mean of -1, 0 and 1
    assert found.value == 0.05 and found.standard_error == pytest.approx(spread, rel=1e-3)
    assert found.low == pytest.approx(0.05 - 1.96 * spread, abs=0.0003)
    assert found.high == pytest.approx(0.05 + 1.96 * spread, abs=0.0003)


def test_a_model_is_evaluated_in_evaluation_mode_on_every_image_once() -> None:
    net = torchvision.models.resnet18(num_classes=CLASSES).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = evaluate(net, Shared(labels(), batch_size=6), SETTINGS, CLASSES)
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    images, truth = normalised(pictures(), torch.arange(40))
    with torch.no_grad():
        logits = net.eval()(images)
    wanted = Evaluation.of(Outcomes.of(logits, truth), CLASSES)
    assert torch.equal(found.confusion, wanted.confusion)
    assert found.loss == pytest.approx(wanted.loss, abs=1e-5)


def test_domains_are_told_apart_with_their_mean() -> None:
    numbers = np.arange(40) % 3 // 2 * 2  # two thirds are of 0, one of 2, none of 1
    domains = Domains(["photo", "absent", "ink"], numbers)
    torch.manual_seed(0)
    net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES))
    loader = Shared(labels(), batch_size=6, domains=domains)
    found = evaluate(net, loader, SETTINGS, CLASSES)
    with torch.no_grad():
        right = net(normalised(pictures(), torch.arange(40))[0]).argmax(1) == labels()
    wanted = {
        name: float(right[numbers == number].double().mean())
        for name, number in (("photo", 0), ("ink", 2))
    }
    assert {one.name: one.top1 for one in found.domains} == pytest.approx(wanted)
    assert [one.n for one in found.domains] == [27, 13]
    mean = sum(wanted.values()) / 2
    assert found.mean_of_domains == pytest.approx(mean) != found.top1
    assert found.row()["top1/ink"] == found.to_dict()["domains"][1]["top1"]
    assert found.row()["mean_of_domains"] == found.mean_of_domains
    few = Shared(labels()[:4], batch_size=4, domains=Domains(["a", "b"], np.array([0, 1, 1, 1])))
    gates = evaluate_gates(gated_resnet18(), few, SETTINGS, CLASSES)
    for figures in (gates.learned, gates.ablations["mean"].evaluation):
        assert [one.n for one in figures.domains] == [1, 3]
    plain = evaluate(net, Shared(labels(), batch_size=6), SETTINGS, CLASSES)
    assert list(plain.row()) == ["loss", "top1", "top5"] and "domains" not in plain.to_dict()


def test_progress_counts_every_picture_of_every_pass() -> None:
    seen: dict[str, list[int]] = {}

    @contextmanager
    def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
        assert total == 40
        yield seen.setdefault(what, []).append

    settings = replace(SETTINGS, counting=counting)
    gates = evaluate_gates(gated_resnet18(), Shared(labels(), batch_size=15), settings, CLASSES)
    others = f"evaluating with {len(gates.ablations)} other gates"
    assert seen == {"evaluating": [15, 30, 40], others: [15, 30, 40]}


def test_half_precision_and_double_precision() -> None:
    net = torchvision.models.resnet18(num_classes=CLASSES).eval()
    losses = {}
    for precision in ("fp32", "bf16", "fp64"):
        model = net.double() if precision == "fp64" else net
        loader = Shared(labels()[:8], batch_size=8)
        losses[precision] = evaluate(
            model, loader, replace(SETTINGS, precision=precision), CLASSES
        ).loss
    assert losses["fp64"] == pytest.approx(losses["fp32"], abs=1e-5)
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.1)


class Wrong(Shared):
    """A loader that loses its last batch, or brings it twice."""

    def __init__(self, times: int) -> None:
        super().__init__(labels(), batch_size=6)
        self._times = times

    def __iter__(self) -> Iterator[MicroBatch]:
        *batches, last = super().__iter__()
        return iter([*batches, *[last] * self._times])


@pytest.mark.parametrize(
    ("times", "words"), [(0, "4 were not evaluated and 0 more"), (2, "0 were not .* and 4 more")]
)
def test_a_lost_or_doubled_image_is_an_error(times: int, words: str) -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    with pytest.raises(RuntimeError, match=f"of 40 images {words}"):
        evaluate(net, Wrong(times), SETTINGS, CLASSES)


def test_another_number_of_classes_is_an_error() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 9))
    with pytest.raises(ValueError, match="9 classes apart, the data have 7"):
        evaluate(net, Shared(labels(), batch_size=6), SETTINGS, CLASSES)


def test_rows_outside_the_data_set_are_an_error() -> None:
    rows = Rows(2, CPU)
    rows.add(torch.tensor([0, 2]), x=torch.zeros(2))
    with pytest.raises(RuntimeError, match=r"outside 0\.\.1"):
        rows.complete(x=torch.empty(0))


def test_gates_against_one_image_at_a_time() -> None:
    net, truth = gated_resnet18(), labels()[:N]
    # The last batch is a single image.
    found = evaluate_gates(net, Shared(truth, batch_size=5), SETTINGS, CLASSES, seed=5)
    net.eval()
    images, _ = normalised(pictures(), torch.arange(N))
    own: list[list[Tensor]] = []
    with torch.no_grad():
        for image in images:
            seen: list[Tensor] = []
            with observe_gates(net, lambda i, name, gates, p, seen=seen: seen.append(gates)):
                net(image[None])
            own.append(seen)
        logits = net(images)
        others = []
        for image, partner in zip(images, partners(N, seed=5), strict=True):
            with override_gates(net, lambda i, gates, partner=partner: own[partner][i]):
                others.append(net(image[None]))
        means = [torch.cat([gates[i] for gates in own]).mean(0) for i in range(len(own[0]))]
        with override_gates(net, lambda i, gates: means[i].expand_as(gates)):
            averaged = net(images)
    for evaluation, wanted in (
        (found.learned, logits),
        (found.ablations["permuted"].evaluation, torch.cat(others)),
        (found.ablations["mean"].evaluation, averaged),
    ):
        expected = Evaluation.of(Outcomes.of(wanted, truth), CLASSES)
        assert torch.equal(evaluation.confusion, expected.confusion)
        assert evaluation.loss == pytest.approx(expected.loss, abs=1e-4)
    losses = {found.learned.loss, *(one.evaluation.loss for one in found.ablations.values())}
    assert len(losses) == found.forwards == 7
    assert [layer.name for layer in found.layers] == find_gate(net).names
    for layer, p in zip(found.layers, means, strict=True):
        assert layer.filters == len(p)
        assert layer.mean == pytest.approx(float(p.mean()), abs=1e-6)
        assert layer.variance == pytest.approx(float((p * (1 - p)).mean()), abs=1e-6)
        assert layer.constant == pytest.approx(float(((p == 0) | (p == 1)).float().mean()))
    assert any(layer.variance > 0.01 for layer in found.layers)


def test_one_image_has_no_partner() -> None:
    found = evaluate_gates(
        gated_resnet18(),
        Shared(labels()[:1], batch_size=4),
        SETTINGS,
        CLASSES,
    )
    assert list(found.ablations) == ["all_1", "all_0", "mean"]
    assert found.figures.between is None and found.layers[0].between is None
    assert all(layer.variance == 0 and layer.constant == 1 for layer in found.layers)


def measured(rank: int, world_size: int) -> dict[str, Any]:
    net, results = gated_resnet18(), {}
    # 12 images in batches of 6: a third rank has none at all.
    for batch_size in (3, 6):
        loader = Shared(labels()[:12], batch_size=batch_size, rank=rank, world_size=world_size)
        plain = evaluate(net, loader, SETTINGS, CLASSES)
        gates = evaluate_gates(net, loader, SETTINGS, CLASSES)
        results[str(batch_size)] = {
            "plain": plain.to_dict(confusion=True),
            "gates": gates.to_dict(),
            "confusion": [one.evaluation.confusion.tolist() for one in gates.ablations.values()],
        }
    return results


WORLDS = (3, 2)


def run_rank(own: str, folder: str) -> None:
    """One process, which joins each world that has a place for it."""
    rank = int(own)
    torch.set_num_threads(1)
    for world_size in WORLDS:
        if rank < world_size:
            store = f"file://{folder}/store{world_size}"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
            torch.save(measured(rank, world_size), f"{folder}/{world_size}-{rank}.pt")
            dist.destroy_process_group()


@pytest.mark.distributed
def test_the_same_figures_on_one_two_and_three_ranks(tmp_path: Path) -> None:
    alone = measured(0, 1)
    assert alone["3"]["plain"]["n"] == 12
    ranks = [
        forked.server().fork(
            [],
            folder=tmp_path,
            output=tmp_path / f"printed.{rank}",
            before=[__name__, run_rank.__name__, str(rank), str(tmp_path)],
        )
        for rank in range(max(WORLDS))
    ]
    for each in ranks:
        assert each.wait(TIMEOUT) == 0, each.printed()
    for world_size in WORLDS:
        for rank in range(world_size):
            # Same batches, same sums in the same order: equal to the last bit.
            assert torch.load(tmp_path / f"{world_size}-{rank}.pt") == alone
