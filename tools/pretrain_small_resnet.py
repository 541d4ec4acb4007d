"""Train the weights of `small_resnet` that come with the package, from Fashion-MNIST.

    python tools/pretrain_small_resnet.py                # both files, in place
    python tools/pretrain_small_resnet.py --to /tmp/w    # elsewhere, to compare

The first 50,000 training pictures are learned; the other 10,000 are left for targets
(`data.name=mixed_domains`). One thread and a fixed seed: on one machine and one version of torch
the files are the same byte by byte, elsewhere the same up to rounding. Two minutes of CPU for both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from adafilter_dist.data.sources import fashion_mnist
from adafilter_dist.data.sources.listing import Sample
from adafilter_dist.models.backbone.zoo.small_resnet import (
    METADATA_KEY,
    WEIGHTS_FOLDER,
    SmallResNet,
    weights_path,
)
from adafilter_dist.recipe.schema import Data

SOURCE_PICTURES = 50_000
# Each of the other five classes has a near one here: Shirt, Dress, Pullover, Sandal, Ankle boot.
FIVE = ("T-shirt/top", "Trouser", "Coat", "Sneaker", "Bag")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPOCHS, BATCH, PEAK_LR, WARMUP_SHARE, WEIGHT_DECAY = 6, 128, 0.2, 0.15, 5e-4


def tensors(samples: Sequence[Sample], labels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(float32 (n, 3, 28, 28) normalised, int64 (n,) from 0) of the pictures with these labels."""
    number = {label: position for position, label in enumerate(labels)}
    chosen = [sample for sample in samples if sample.label in number]
    gray = np.stack([sample.pixels for sample in chosen if sample.pixels is not None])
    pixels = torch.from_numpy(gray)[:, None].float().div(255).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std, torch.tensor([number[sample.label] for sample in chosen])


def accuracy(network: SmallResNet, images: Tensor, labels: Tensor) -> float:
    """Share of the pictures whose largest logit is the label's."""
    network.eval()
    with torch.no_grad():
        parts = zip(images.split(1000), labels.split(1000), strict=True)
        right = [network(x).argmax(1) == y for x, y in parts]
    network.train()
    return float(torch.cat(right).float().mean())


def train(images: Tensor, labels: Tensor, test: tuple[Tensor, Tensor], classes: int) -> SmallResNet:
    """A network trained from random weights by SGD with Nesterov momentum, one cycle, flips."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = SmallResNet(classes)
    optimizer = torch.optim.SGD(
        network.parameters(), PEAK_LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        PEAK_LR,
        total_steps=EPOCHS * steps,
        pct_start=WARMUP_SHARE,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    began = time.process_time()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)[: steps * BATCH]
        for index in order.split(BATCH):
            mirrored = torch.rand(BATCH, generator=generator) < 0.5
            batch = images[index]
            batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
            loss = functional.cross_entropy(network(batch), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        spent = time.process_time() - began
        print(f"epoch {epoch + 1}: test {accuracy(network, *test):.4f}, {spent:.0f} s", flush=True)
    return network


def write(path: Path, network: SmallResNet, classes: Sequence[str]) -> None:
    """The weights file; says its sha256, which `small_resnet.py` has to know."""
    # One key: safetensors keeps no order of several.
    metadata = {"mean": MEAN, "std": STD, "size": 28, "classes": list(classes)}
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    path.write_bytes(safetensors.torch.save(state, {METADATA_KEY: json.dumps(metadata)}))
    print(f"{path}: sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}", flush=True)


def main() -> None:
    """Train and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=WEIGHTS_FOLDER, help="folder for the files")
    folder: Path = parser.parse_args().to
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    listing = fashion_mnist.find(Data(name="fashion_mnist"))
    assert listing.test is not None
    for name, classes in (("FASHION_MNIST", tuple(listing.classes)), ("FASHION_MNIST_FIVE", FIVE)):
        labels = [listing.classes.index(one) for one in classes]
        source = tensors(listing.train[:SOURCE_PICTURES], labels)
        network = train(*source, tensors(listing.test, labels), len(classes))
        write(folder / weights_path(name).name, network, classes)


if __name__ == "__main__":
    main()
