"""Read a prepared file by FFCV's own reader and decoder.

    python -m tests.data.loading.stock_ffcv FILE OUT

A process of its own: what FFCV compiles leaves the collector finalizers that fail, and Python 3.11
does not survive an error told of while it builds a syntax tree, wherever it may be by then.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

importlib.import_module(
    "adafilter_dist.data.loading.ffcv_backend"
)  # makes ffcv importable anywhere

from ffcv.fields.basics import IntDecoder  # noqa: E402
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder  # noqa: E402
from ffcv.loader import Loader  # noqa: E402


def main(file: str, out: str) -> None:
    """Write images and labels as each of its ways of reading (os_cache or not) gives them."""
    for os_cache in (True, False):
        loader = Loader(
            file,
            batch_size=10,
            num_workers=1,
            os_cache=os_cache,
            drop_last=False,
            pipelines={"image": [CenterCropRGBImageDecoder((64, 64), 1)], "label": [IntDecoder()]},
        )
        batches = [(images.copy(), labels.copy()) for images, labels in loader]
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        np.savez(Path(out) / f"{os_cache}.npz", images=images, labels=labels)


if __name__ == "__main__":
    main(*sys.argv[1:])
