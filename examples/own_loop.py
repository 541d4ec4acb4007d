"""AdaFilter in a training loop of your own: `python examples/own_loop.py PICTURES [EPOCHS]`

PICTURES holds a folder of pictures for each class. Any torchvision or timm CNN with BatchNorm does.
"""

import sys

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import get_model, get_model_weights

from adafilter_dist import convert, parameter_groups, update_statistics


def main(pictures: str, epochs: int = 5, name: str = "resnet18", pretrained: bool = True):
    weights = get_model_weights(name).DEFAULT
    data = ImageFolder(pictures, weights.transforms())
    backbone = get_model(name, weights=weights if pretrained else None)
    backbone.fc = torch.nn.Linear(backbone.fc.in_features, len(data.classes))
    model = convert(backbone, size=weights.transforms().crop_size[0])
    print(model.report)
    groups = parameter_groups(model, lr=0.01, lr_gate=0.1, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    for epoch in range(epochs):
        right = 0
        for images, labels in DataLoader(data, batch_size=8, shuffle=True, drop_last=True):
            logits = model.train()(images)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
            update_statistics(model)  # once a step: BatchNorm's running statistics, gates' figures
            right += int((logits.argmax(1) == labels).sum())
        gates = model.gate.last_variance.mean()
        print(f"epoch {epoch}: right {right} of {len(data)}, gates' variance {gates:.3f}")
    return model


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
