"""Fashion-MNIST: 70,000 gray 28x28 pictures of clothes, from a Debian package or torchvision."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.data.sources.debian import unpacked_package
from adafilter_dist.data.sources.download import Say, patience
from adafilter_dist.data.sources.listing import Sample, SourceListing, root_of
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.sections.data import Data

_PACKAGE = "dataset-fashion-mnist"
_INSTALLED = Path("/usr/share/datasets/fashion-mnist")
_SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
    ),
    "train-labels-idx1-ubyte.gz": (
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
    ),
}
_IDX_HEADER = {"images": 16, "labels": 8}


def find(data: Data) -> SourceListing:
    """The published splits, 60,000 and 10,000; the four files are checked by their sha256."""
    folder = _folder(data)
    if folder is None:
        raise UserError(
            f"Fashion-MNIST is not in {root_of(data)}; expected {', '.join(_SHA256)} there; "
            "or data.download=true"
        )
    from torchvision.datasets import FashionMNIST  # torch comes with it: seconds

    return SourceListing(
        root_of(data), list(FashionMNIST.classes), _split(folder, "train"), _split(folder, "t10k")
    )


def is_there(data: Data) -> bool:
    """Whether all four files are there."""
    return _folder(data) is not None


def fetch(data: Data, say: Say) -> None:
    """Get the four files: from the Debian package, else through torchvision's download.

    Needs no root. Raises UserError saying what to do by hand.
    """
    root = root_of(data)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch:
            folder = _fetched(Path(scratch), say)
            for name in _SHA256:
                _checked(folder / name)
                os.replace(folder / name, root / name)
    except OSError as error:
        raise UserError(
            f"Fashion-MNIST cannot be written to {root} ({error.strerror}); set data.root or the "
            "environment variable ADAFILTER_CACHE to a folder of yours"
        ) from None


def _folder(data: Data) -> Path | None:
    root = root_of(data)
    places = [root, root / "FashionMNIST" / "raw"]
    if data.root is None:
        places.append(_INSTALLED)
    return next((p for p in places if all((p / name).is_file() for name in _SHA256)), None)


def _fetched(scratch: Path, say: Say) -> Path:
    attempts = []
    for name, get in (("Debian's package", _from_debian), ("torchvision", _from_torchvision)):
        say(f"fetching Fashion-MNIST (30 MB) from {name}")
        try:
            return get(scratch)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            attempts.append(f"{name}: {' '.join(str(error).split())[-160:]}")
    raise UserError(
        f"Fashion-MNIST could not be fetched ({'; '.join(attempts)}); install Debian's package "
        f"{_PACKAGE}, or run this command once on a machine with internet, or put "
        f"{', '.join(_SHA256)} into data.root"
    )


def _from_debian(scratch: Path) -> Path:
    return unpacked_package(_PACKAGE, scratch) / _INSTALLED.relative_to("/")


def _from_torchvision(scratch: Path) -> Path:
    from torchvision.datasets import FashionMNIST  # torch comes with it: seconds

    with patience(seconds=30):
        return Path(FashionMNIST(scratch, download=True).raw_folder)


def _checked(path: Path) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256[path.name]:
        raise UserError(
            f"{path}: not Fashion-MNIST's file (its sha256 is not {_SHA256[path.name][:12]}...); "
            "remove it and run `prepare` again"
        )
    return content


def _split(folder: Path, prefix: str) -> list[Sample]:
    images = _idx(folder / f"{prefix}-images-idx3-ubyte.gz", "images").reshape(-1, 28, 28)
    labels = _idx(folder / f"{prefix}-labels-idx1-ubyte.gz", "labels")
    file = str(folder / f"{prefix}-images-idx3-ubyte.gz")
    split = {"train": "train", "t10k": "test"}[prefix]
    return [
        Sample(f"{split}/{number:05d}", int(label), folder, image, file=file)
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def _idx(path: Path, kind: str) -> NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress(_checked(path)), np.uint8, offset=_IDX_HEADER[kind])
