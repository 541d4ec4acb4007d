"""torchvision's classification networks and their published weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import models

from adafilter_dist.errors import UserError, nearest
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.backbone.zoo.base import WeightsFile, Zoo

_IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 256, 224)
_HASH = re.compile(r"-([0-9a-f]{8,})\.")
# The published DenseNets say norm.1 where the code says norm1.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
# Heads that only run in training, and return a tuple there; they are not built.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def downloaded() -> list[str]:
    """The networks of which torch's cache holds the default weights."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    published = {name: models.get_model_weights(name) for name in models.list_models(models)}
    return [
        name
        for name, entries in published.items()
        if len(entries) and entries["DEFAULT"].url.rpartition("/")[2] in there
    ]


class TorchvisionZoo(Zoo):
    """A network of `torchvision.models`, by the name that `get_model` takes."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        allowed = models.list_models(module=models)
        if name not in allowed:
            raise UserError(
                f"model.name={name} is unknown{nearest(name, allowed)}; allowed: the "
                "classification models of torchvision, timm/NAME, efficientnet_lite0, small_resnet"
            )

    def build(self, size: int) -> nn.Module:
        options: dict[str, Any] = {}
        if self.name in ("googlenet", "inception_v3"):
            # Their published weights expect the input of another normalisation.
            options = {"aux_logits": False, "transform_input": True, "init_weights": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module: nn.Module = models.get_model(self.name, weights=None, **options)
        return module

    def preprocess(self, weights: str | None) -> Preprocess:
        published = models.get_model_weights(self.name)
        entry = self._entry(weights) if weights else getattr(published, "DEFAULT", None)
        if entry is None:
            return _IMAGENET
        preset = entry.transforms()
        return Preprocess(
            tuple(preset.mean),
            tuple(preset.std),
            preset.interpolation.value,
            preset.resize_size[0],
            preset.crop_size[0],
        )

    def locate(self, weights: str) -> WeightsFile:
        entry = self._entry(weights)
        filename = entry.url.rpartition("/")[2]
        digest = _HASH.search(filename)
        return WeightsFile(
            Path(torch.hub.get_dir()) / "checkpoints" / filename,
            f"torchvision {self.name} {entry.name}",
            digest[1] if digest else None,
        )

    def classes(self, weights: str) -> Sequence[str] | None:
        categories: list[str] | None = self._entry(weights).meta.get("categories")
        return categories

    def download(self, weights: str) -> None:
        file, url = self.locate(weights), self._entry(weights).url
        file.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file.path), hash_prefix=file.sha256)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"could not download {url}: {error}. On a machine without internet copy that file "
                f"to {file.path}, or give model.weights=FILE"
            ) from error

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.name.startswith("densenet"):
            return {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
        return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}

    def _entry(self, weights: str) -> Any:
        published = models.get_model_weights(self.name)
        allowed = [*published.__members__]
        if not allowed:
            raise UserError(
                f"torchvision has no weights for {self.name}; give model.weights=FILE or null"
            )
        if weights not in allowed:
            raise UserError(
                f"model.weights={weights} is unknown for {self.name}{nearest(weights, allowed)}; "
                f"allowed: {', '.join(dict.fromkeys(['DEFAULT', *allowed]))}, a local "
                ".safetensors or .pth file, or null for random weights"
            )
        return published[weights]
