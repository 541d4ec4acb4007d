"""What every source of networks offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from adafilter_dist.models.backbone.preprocess import Preprocess


@dataclass(frozen=True)
class WeightsFile:
    """Published weights: where they lie or would lie, and what they are called.

    `sha256` is the expected digest or its beginning, where the publisher gives one.
    """

    path: Path
    source: str
    sha256: str | None = None


class Zoo(ABC):
    """One architecture of one source; making it raises UserError for an unknown name."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def build(self, size: int) -> nn.Module:
        """The network for pictures of `size` px with random weights and its original head."""

    @abstractmethod
    def preprocess(self, weights: str | None) -> Preprocess:
        """The preprocessing of the published `weights`; ImageNet's usual one if none is given."""

    @abstractmethod
    def locate(self, weights: str) -> WeightsFile:
        """The file of the published weights `weights`, present or not; UserError if unknown."""

    @abstractmethod
    def download(self, weights: str) -> None:
        """Bring the file of `locate` to its place; UserError if that fails."""

    def classes(self, weights: str) -> Sequence[str] | None:
        """The classes that the published `weights` tell apart, in order; None where nobody says."""
        return None

    def switch_off_dropout(self, module: nn.Module) -> None:
        """No dropout and no stochastic depth in training, where the network keeps them in modules.

        Knows torch's Dropout, torchvision's StochasticDepth (`p`) and timm's DropPath.
        """
        for part in module.modules():
            if isinstance(part, (nn.modules.dropout._DropoutNd, StochasticDepth)):
                part.p = 0.0
            elif hasattr(part, "drop_prob"):
                part.drop_prob = 0.0  # type: ignore[assignment]

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published state dict under the names that today's code uses."""
        return state
