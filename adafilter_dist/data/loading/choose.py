"""Which backend decodes for a run: what the recipe asks for, what is installed, what began it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import fromarray

from adafilter_dist.data.loading.backend import Backend
from adafilter_dist.data.loading.torchvision_backend import TorchvisionBackend
from adafilter_dist.data.stored.store import Store
from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.preprocess import Preprocess, evaluation_pixels
from adafilter_dist.recipe.schema import Recipe

_KEPT = (
    "the run goes on with the pixels it began with, which torchvision decodes; data.loader=numba "
    "takes less than half the time, and some of its pixels differ by one grey level"
)
_MANY = 1000  # pictures; for fewer, importing numba (0.5 s) takes longer than it saves
_HERE = "adafilter_dist.data.loading"


def choose_backend(
    recipe: Recipe,
    store: Store,
    size: int,
    workers: int,
    device: torch.device,
    before: str | None,
) -> tuple[Backend, str | None]:
    """What decodes pictures of ``size`` px for training on ``device``, and a line to print.

    ``before`` is what decoded for the run until now: ``data.loader=auto`` keeps to its pixels where
    it can. UserError where what ``data.loader`` asks for cannot be used.
    """
    wanted, notice, pin = recipe.data.loader, None, device.type == "cuda"
    if wanted == "nvjpeg":
        return _nvjpeg(store, size, workers, device), None
    if wanted == "auto" and before == "nvjpeg":
        try:
            return _nvjpeg(store, size, workers, device), None
        except UserError as error:
            notice = f"the run cannot go on with the pixels it began with: {error}"
    if wanted == "auto" and before == "torchvision":
        wanted, notice = "torchvision", _KEPT
    if wanted in ("auto", "numba"):
        why_not = _why_not("numba_backend")
        if why_not is None:
            from adafilter_dist.data.loading.numba_backend import NumbaBackend

            return NumbaBackend(store, size, workers, pin), notice
        if wanted == "numba":
            raise UserError(
                f"data.loader=numba: cannot be used here ({why_not}); use data.loader=ffcv, "
                "the same pixels, or data.loader=torchvision, decoded more slowly"
            )
        notice = (
            f"the compiled loader cannot be used here ({why_not}): torchvision decodes the "
            "same pictures, more slowly"
        )
    if wanted == "ffcv" or (wanted == "auto" and before == "ffcv"):
        why_not = _why_not("ffcv_backend")
        if why_not is None:
            from adafilter_dist.data.loading.ffcv_backend import FfcvBackend

            return FfcvBackend(store, size, workers, recipe.train.micro_batch, pin), None
        if wanted == "ffcv":
            raise UserError(
                f"data.loader=ffcv: FFCV cannot be used here ({why_not}); install it "
                "(`adafilter doctor` says how), or use data.loader=numba: same pixels, no "
                "slower"
            )
    return TorchvisionBackend(store, size, workers, pin), notice


def choose_reader(
    recipe: Recipe, store: Store, count: int, preprocess: Preprocess
) -> Callable[[int], NDArray[np.uint8]]:
    """What reads a record as evaluation shows it: uint8 (crop, crop, 3), the same by all.

    Compiled code where it can be used and there are many pictures (``count``); otherwise Pillow.
    """

    def by_pillow(record: int) -> NDArray[np.uint8]:
        return evaluation_pixels(fromarray(store.read(record)), preprocess)

    worth_it = count >= _MANY or "numba" in sys.modules
    if recipe.data.loader == "torchvision" or not worth_it or _why_not("evaluation_decoder"):
        return by_pillow
    from adafilter_dist.data.loading.evaluation_decoder import EvaluationDecoder

    return EvaluationDecoder(store, preprocess).read


def _nvjpeg(store: Store, size: int, workers: int, device: torch.device) -> Backend:
    if device.type != "cuda":
        raise UserError(
            "data.loader=nvjpeg: decodes on a GPU, and this run trains on the CPU; use "
            "data.loader=numba, whose pixels are others"
        )
    if store.index[:, 4].any():
        raise UserError(
            f"data.loader=nvjpeg: {store.path} holds raw pixels, which need no decoding; use "
            "data.loader=numba"
        )
    why_not = _why_not("nvjpeg_backend")
    if why_not is None:
        from adafilter_dist.data.loading.nvjpeg_backend import NvjpegBackend

        try:
            return NvjpegBackend(store, size, workers, device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why_not = str(error).splitlines()[0]
    raise UserError(
        f"data.loader=nvjpeg: cannot be used here ({why_not}); it needs a GPU and `pip install "
        "'torchcodec>=0.16'`; use data.loader=numba, whose pixels are others"
    )


def _why_not(module: str) -> str | None:
    """Why one of the backends cannot be imported; its libraries can be amiss in many ways."""
    try:
        importlib.import_module(f"{_HERE}.{module}")
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None
