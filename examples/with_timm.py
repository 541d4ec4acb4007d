"""AdaFilter in a training script of timm's parts: `python examples/with_timm.py PICTURES [EPOCHS]`

PICTURES holds train/CLASS/*.jpg. Loader, augmentation, loss, optimizer, schedule are timm's.
AdaFilter's own are the lines that are marked.
"""

import sys

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter

from adafilter_dist import convert, parameter_groups, update_statistics


def main(pictures: str, epochs: int = 5, name: str = "resnet18", pretrained: bool = True):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = create_dataset("", root=pictures, split="train", is_training=True)
    classes = len(data.reader.class_to_idx)
    backbone = timm.create_model(name, pretrained=pretrained, num_classes=classes)
    config = resolve_model_data_config(backbone)
    loader = create_loader(
        data,
        batch_size=8,
        is_training=True,
        auto_augment="rand-m9-mstd0.5",
        num_workers=0,
        use_prefetcher=False,
        **{key: config[key] for key in ("input_size", "interpolation", "mean", "std")},
    )
    model = convert(backbone, size=config["input_size"][1]).to(device)  # AdaFilter
    groups = parameter_groups(model, lr=0.01, lr_gate=0.1, weight_decay=1e-4)  # AdaFilter
    optimizer = create_optimizer_v2(groups, opt="sgd", lr=0.01, momentum=0.9)
    steps = len(loader)
    schedule, _ = create_scheduler_v2(
        optimizer, num_epochs=epochs, step_on_epochs=False, updates_per_epoch=steps
    )
    criterion = LabelSmoothingCrossEntropy(0.1)
    for epoch in range(epochs):
        losses = AverageMeter()
        for number, (images, labels) in enumerate(loader, epoch * steps + 1):
            loss = criterion(model.train()(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update_statistics(model)  # AdaFilter: once a step
            schedule.step_update(number)
            losses.update(loss.item(), len(labels))
        rates = {group["lr"] for group in optimizer.param_groups}
        print(f"epoch {epoch}: loss {losses.avg:.3f}, rates {sorted(rates)}")
    return model


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
