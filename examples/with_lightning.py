"""AdaFilter in Lightning: `python examples/with_lightning.py PICTURES [EPOCHS]`

PICTURES holds a folder of pictures for each class. AdaFilter's own are the lines that are marked.
"""

import sys

import lightning
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import get_model, get_model_weights

from adafilter_dist import convert, parameter_groups, update_statistics


class FineTuning(lightning.LightningModule):
    def __init__(self, backbone: torch.nn.Module, size: int):
        super().__init__()
        self.net = convert(backbone, size=size)  # AdaFilter

    def training_step(self, batch, number):
        images, labels = batch
        logits = self.net(images)
        self.log("accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True)
        return torch.nn.functional.cross_entropy(logits, labels)

    def on_train_batch_end(self, *step):
        # AdaFilter: once a step. With accumulate_grad_batches=n, once in n batches.
        update_statistics(self.net)

    def configure_optimizers(self):
        groups = parameter_groups(self.net, lr=0.01, lr_gate=0.1, weight_decay=1e-4)  # AdaFilter
        return torch.optim.SGD(groups, momentum=0.9)


def main(pictures: str, epochs: int = 5, name: str = "resnet18", pretrained: bool = True, **more):
    weights = get_model_weights(name).DEFAULT
    data = ImageFolder(pictures, weights.transforms())
    backbone = get_model(name, weights=weights if pretrained else None)
    backbone.fc = torch.nn.Linear(backbone.fc.in_features, len(data.classes))
    module = FineTuning(backbone, size=weights.transforms().crop_size[0])
    trainer = lightning.Trainer(max_epochs=epochs, log_every_n_steps=1, **more)
    trainer.fit(module, DataLoader(data, batch_size=8, shuffle=True, drop_last=True))
    return module.net


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
