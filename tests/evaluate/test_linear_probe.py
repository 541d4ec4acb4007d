"""The linear probe: right features, the optimum of its problem, strength from validation."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.device import to_device
from adafilter_dist.data.sources.datasets import fetch_dataset, list_dataset
from adafilter_dist.data.sources.listing import labels_of
from adafilter_dist.evaluate import ForwardSettings
from adafilter_dist.evaluate.linear_probe import extract_features, fit_probe
from adafilter_dist.models.backbone.linear_fit import GRID, Features
from adafilter_dist.recipe.sections.data import Data
from tests.shared.evaluation_set import PREPROCESS, SIDE, Shared, pictures

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def blobs(n: int, seed: int, spread: float = 2.0) -> Features:
    """Four overlapping classes in twelve dimensions, of which six say nothing."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    centres = torch.randn(4, 12, generator=torch.Generator().manual_seed(99))
    centres[:, 6:] = 0
    x = centres[y] + spread * torch.randn(n, 12, generator=draw)
    # Scales and offsets as different as those of real features, and one that never fires.
    x = x * torch.logspace(-3, 3, 12) + 5
    return Features(torch.cat([x, torch.zeros(n, 1)], dim=1), y)


def features(loader: Shared, net: torchvision.models.ResNet) -> Features:
    return extract_features(net, "fc", loader, ForwardSettings(PREPROCESS, CPU))


def test_features_are_the_classifiers_input_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=3).train()
    labels = torch.arange(40) % 3
    found = features(Shared(labels, batch_size=7), net)
    assert net.training and not net.fc._forward_pre_hooks
    index = torch.arange(40)
    images, _ = to_device(
        MicroBatch(images=pictures(), labels=labels, index=index),
        PREPROCESS,
        CPU,
        torch.float32,
        False,
    )
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net.fc(found.x), net(images), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.y, labels)


def test_the_fit_is_the_optimum_of_the_regularised_problem() -> None:
    train, val, test = blobs(300, 1), blobs(200, 2), blobs(400, 3)
    found = fit_probe(train, val, test, 4)
    mean, scale = train.x.mean(0), train.x.std(0, correction=0).clamp_min(1e-6)

    def logits(weight: Tensor, data: Features) -> Tensor:
        return (data.x - mean).double() / scale @ weight[:, :-1].T + weight[:, -1]

    # Another optimizer on the same problem, in double precision: plain gradient descent.
    accuracies = {}
    for strength in (found.strength, 1.0):
        weight = torch.zeros(4, 14, dtype=torch.float64, requires_grad=True)
        for _ in range(1000):
            loss = functional.cross_entropy(logits(weight, train), train.y)
            loss = loss + 0.5 * strength * weight[:, :-1].square().sum()
            (gradient,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                weight -= 0.3 * gradient
        assert float(gradient.norm()) < 1e-4
        accuracies[strength] = {
            split: float((logits(weight, data).argmax(1) == data.y).double().mean())
            for split, data in (("val", val), ("test", test))
        }
        if strength == found.strength:
            test_loss = float(functional.cross_entropy(logits(weight.detach(), test), test.y))
    assert found.test.top1 == pytest.approx(accuracies[found.strength]["test"], abs=0.003)
    assert found.test.loss == pytest.approx(test_loss, abs=1e-3)
    assert found.validation[1.0] == pytest.approx(accuracies[1.0]["val"], abs=0.006)


def test_the_strength_is_the_best_on_validation_and_never_seen_on_test() -> None:
    train, val, test = blobs(60, 1, 3.0), blobs(500, 2, 3.0), blobs(500, 3, 3.0)
    found = fit_probe(train, val, test, 4)
    assert set(found.validation) == set(GRID)
    assert found.validation[found.strength] == max(found.validation.values())
    shuffled = Features(test.x, test.y.roll(1))
    assert fit_probe(train, val, shuffled, 4).strength == found.strength
    assert found.to_dict() == fit_probe(train, val, test, 4).to_dict()


def test_without_validation_a_tenth_of_training_chooses_and_all_of_it_is_fitted() -> None:
    train, test = blobs(400, 1), blobs(400, 3)
    found = fit_probe(train, None, test, 4)
    assert found.train_images == 400
    # 40 images choose: accuracies are multiples of 1/40.
    assert all(
        (value * 40) == pytest.approx(round(value * 40)) for value in found.validation.values()
    )
    with_val = fit_probe(train, blobs(400, 2), test, 4)
    assert found.test.top1 == pytest.approx(with_val.test.top1, abs=0.05)


@pytest.mark.slow
def test_real_pictures_beat_the_majority() -> None:
    """Random filters already tell Fashion-MNIST's classes apart far better than guessing."""
    data = Data(name="fashion_mnist", train_per_class=30, test_per_class=20)
    fetch_dataset(data, print)
    listing = list_dataset(data)
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10).eval()

    def split(samples: list) -> Features:  # type: ignore[type-arg]
        pixels = torch.stack([torch.tensor(sample.pixels) for sample in samples]).float()
        gray = pixels.reshape(len(samples), 1, 28, 28)
        images = functional.interpolate(gray, (SIDE, SIDE), mode="bilinear").round()
        coloured = images.to(torch.uint8).expand(-1, 3, -1, -1)
        labels = torch.from_numpy(labels_of(samples))
        return features(Shared(labels, batch_size=50, images=coloured), net)

    found = fit_probe(split(listing.train), None, split(listing.test), 10)
    assert found.test.n == 200
    assert found.test.top1 > 0.4
