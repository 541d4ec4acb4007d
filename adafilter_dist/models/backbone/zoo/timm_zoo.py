"""timm's networks, `timm/NAME`, with weights from the Hugging Face hub's local cache."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

from torch import nn

from adafilter_dist.errors import UserError, nearest
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.backbone.zoo.base import WeightsFile, Zoo

_FILENAMES = ("model.safetensors", "pytorch_model.bin")


class TimmZoo(Zoo):
    """`timm/NAME` or `timm/NAME.TAG`; `weights` is DEFAULT or a tag."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        try:
            self._timm: Any = importlib.import_module("timm")
        except ImportError as error:
            raise UserError(
                f"model.name={name} needs timm: pip install 'adafilter-dist[timm]'"
            ) from error
        self._base, _, self._tag = name.removeprefix("timm/").partition(".")
        if not self._timm.is_model(self._base):
            allowed = self._timm.list_models()
            raise UserError(
                f"model.name={name}: timm has no model {self._base!r}"
                f"{nearest(self._base, allowed)}; timm.list_models() names them all"
            )

    def build(self, size: int) -> nn.Module:
        module: nn.Module = self._timm.create_model(self._base, pretrained=False)
        return module

    def preprocess(self, weights: str | None) -> Preprocess:
        config = self._config(weights)
        crop = config.input_size[-1]
        bilinear = config.interpolation == "bilinear"
        return Preprocess(
            tuple(config.mean),
            tuple(config.std),
            "bilinear" if bilinear else "bicubic",
            math.floor(crop / config.crop_pct),
            crop,
        )

    def locate(self, weights: str) -> WeightsFile:
        repository, revision, filenames = self._hub(weights)
        hub = importlib.import_module("huggingface_hub")
        source = f"timm {self._base} from {repository}"
        for filename in filenames:
            cached = hub.try_to_load_from_cache(repository, filename, revision=revision)
            if isinstance(cached, str):
                return WeightsFile(Path(cached), source)
        cache = Path(hub.constants.HF_HUB_CACHE)
        return WeightsFile(cache / ("models--" + repository.replace("/", "--")), source)

    def download(self, weights: str) -> None:
        repository, revision, filenames = self._hub(weights)
        hub = importlib.import_module("huggingface_hub")
        for filename in filenames:
            try:
                hub.hf_hub_download(repository, filename, revision=revision)
                return
            except hub.errors.EntryNotFoundError:
                continue
            except Exception as error:  # the hub's client raises many kinds
                raise UserError(
                    f"could not download {repository} from the Hugging Face hub: {error}. Give a "
                    "local file by model.weights=FILE instead"
                ) from error
        raise UserError(f"{repository} has none of the files {', '.join(filenames)}")

    def _hub(self, weights: str) -> tuple[str, str | None, tuple[str, ...]]:
        config = self._config(weights)
        if not config.hf_hub_id:
            raise UserError(
                f"timm publishes no weights for {self.name} on the Hugging Face hub; give "
                "model.weights=FILE or null"
            )
        repository, _, revision = config.hf_hub_id.partition("@")
        names = (config.hf_hub_filename,) if config.hf_hub_filename else _FILENAMES
        return repository, revision or None, names

    def _config(self, weights: str | None) -> Any:
        tag = self._tag if weights in (None, "DEFAULT") else weights
        name = f"{self._base}.{tag}" if tag else self._base
        allowed = [full.partition(".")[2] for full in self._timm.list_pretrained(f"{self._base}.*")]
        config = (
            self._timm.get_pretrained_cfg(name, allow_unregistered=False)
            if (not tag or tag in allowed)
            else None
        )
        if config is None:
            raise UserError(
                f"timm has no weights {tag!r} of {self._base}{nearest(tag or '', allowed)}; "
                f"allowed: {', '.join(['DEFAULT', *allowed])}, a local file, or null"
            )
        return config
