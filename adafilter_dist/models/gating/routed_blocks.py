"""SpotTune's network: blocks that are there twice, and a policy that chooses one for each picture.

Guo et al., SpotTune: Transfer Learning through Adaptive Fine-tuning, CVPR 2019.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adafilter_dist.models.gating.batchnorm import MicroBatchNorm2d, replace_batchnorm
from adafilter_dist.models.gating.estimators import binarise, threshold
from adafilter_dist.models.gating.picture_draws import uniform_of_pictures
from adafilter_dist.models.ops.dtypes import accumulation_dtype


class Choices:
    """What the policy chose for the forward that runs now: (N, blocks), 1 is fine-tuned."""

    values: Tensor | None = None


class RoutedBlock(nn.Module):
    """A block and its pre-trained copy: one of the two outputs for each picture.

    Both see all pictures, so that each BatchNorm takes its statistics over all of them, as in the
    published code. There the copy's convolutions are frozen, and its BatchNorms are trained.
    """

    def __init__(self, block: nn.Module, choices: Choices, index: int) -> None:
        super().__init__()
        self.tuned = block
        self.frozen = copy.deepcopy(block)
        for module in self.frozen.modules():
            if not isinstance(module, MicroBatchNorm2d):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
        self._choices, self._index = choices, index

    def forward(self, x: Tensor) -> Tensor:
        tuned, frozen = self.tuned(x), self.frozen(x)
        assert self._choices.values is not None
        choice = self._choices.values[:, self._index].view(-1, 1, 1, 1).to(tuned.dtype)
        mixed: Tensor = choice * tuned + (1 - choice) * frozen
        return mixed


class _PolicyBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut is averaged, and padded with zeros to twice the width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        shortcut = F.avg_pool2d(x, 2, ceil_mode=True)
        shortcut = torch.cat((shortcut, torch.zeros_like(shortcut)), 1)
        out: Tensor = (y + shortcut).relu()
        return out


class PolicyNetwork(nn.Module):
    """Pictures (N, 3, H, W) -> logits (N, blocks, 2) of frozen and fine-tuned.

    The published one: a ResNet of three blocks (64, 128, 256 wide) from random weights. It was made
    for 64 px; larger pictures are averaged down to that first.
    """

    SIDE = 64

    def __init__(self, blocks: int) -> None:
        super().__init__()
        widths = (32, 64, 128, 256)
        self.conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*(_PolicyBlock(*pair) for pair in itertools.pairwise(widths)))
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.linear = nn.Linear(widths[-1], 2 * blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))

    def forward(self, pictures: Tensor) -> Tensor:
        side = max(pictures.shape[-2:])
        if side > self.SIDE:
            height, width = (max(1, self.SIDE * each // side) for each in pictures.shape[-2:])
            pictures = F.adaptive_avg_pool2d(pictures, (height, width))
        x = self.blocks(self.bn1(self.conv(pictures)))
        logits: Tensor = self.linear(self.bn2(x).relu().mean((2, 3)))
        return logits.unflatten(1, (-1, 2))


class SpotTuneNet(nn.Module):
    """A backbone with routed blocks and their policy: images (N, 3, H, W) -> logits (N, classes).

    `blocks` are paths in the backbone, which is changed in place; its BatchNorms are
    `MicroBatchNorm2d` already. In training the policy draws by Gumbel-softmax at `temperature`,
    straight-through. In evaluation it takes the likelier block, or with `sample` draws, as a
    function of the picture and `seed`. The policy's weights are drawn from `seed` too.
    """

    def __init__(
        self,
        backbone: nn.Module,
        blocks: Sequence[str],
        *,
        temperature: float = 5.0,
        sample: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.block_names = list(blocks)
        self.temperature, self.sample, self.seed = temperature, sample, seed
        self._choices = Choices()
        reference = next(backbone.parameters())
        for index, name in enumerate(blocks):
            block = backbone.get_submodule(name)
            routed = RoutedBlock(block, self._choices, index).train(block.training)
            backbone.set_submodule(name, routed)
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            policy = replace_batchnorm(PolicyNetwork(len(blocks)))
        self.policy = policy.to(reference.device, reference.dtype).train(backbone.training)
        self.training = backbone.training

    def choices(self, images: Tensor) -> Tensor:
        """1 for the fine-tuned block, 0 for the pre-trained one: (N, blocks)."""
        logits = self.policy(images)
        frozen, tuned = logits.to(accumulation_dtype(logits.dtype)).unbind(-1)
        # The difference of two Gumbel variables is logistic, so one draw a block is enough.
        difference = tuned - frozen
        if self.training or not self.sample:
            return binarise(difference, "gumbel", self.temperature, self.training)
        uniform = uniform_of_pictures(images, len(self.block_names), self.seed)
        return threshold(difference + torch.logit(uniform).to(difference.dtype))

    def forward(self, images: Tensor) -> Tensor:
        self._choices.values = self.choices(images)
        try:
            logits: Tensor = self.backbone(images)
        finally:
            self._choices.values = None
        return logits
