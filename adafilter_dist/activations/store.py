"""Activations on disk: one file for each batch, written whole and verified when read.

Several processes may read and write the same folder. They write the same bytes under the same name,
so the last one to rename its file changes nothing. Files are not synced: one that a power cut has
damaged is found when it is read, and computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from adafilter_dist.system.disk import free_space, gib
from adafilter_dist.system.files import write_json

RESERVE = 2**30
"""Bytes of the disk that are left to others, checkpoints above all."""

_OLD = 3600.0  # seconds after which an unfinished file belongs to nobody
_SUFFIX = ".safetensors"


@dataclass
class Counts:
    """Batches read and computed, damaged files among them, and bytes written."""

    read: int = 0
    computed: int = 0
    damaged: int = 0
    written: int = 0


class ActivationStore:
    """Tensors by key below ``folder``/files; ``about`` is written beside them, for people.

    ``say`` gets a line where a file is damaged, and where nothing more can be written. Keys are
    hexadecimal, of at least three digits.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], counts: Counts, say: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self._counts = counts
        self._say = say
        self._writes = True
        self._unfinished = folder / "unfinished"
        try:
            self._unfinished.mkdir(parents=True, exist_ok=True)
            if not (folder / "about.json").exists():
                write_json(folder / "about.json", about)
            for path in self._unfinished.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _OLD:
                        path.unlink()
        except OSError as error:
            self._give_up(error)

    def has(self, key: str) -> bool:
        """Whether there is a file for the key; it may be damaged."""
        return self._path(key).exists()

    def read(self, key: str) -> Tensor | None:
        """The tensor as it was written, strides included; None where it is missing or damaged."""
        path = self._path(key)
        try:
            tensor = _unpack(path.read_bytes(), key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            self._counts.damaged += 1
            self._say(f"train.cache: {path} is damaged ({error}); it is computed again")
            return None
        self._counts.read += 1
        return tensor

    def write(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor. Where the disk refuses it, nothing more is written."""
        self._counts.computed += 1
        if not self._writes:
            return
        path, content = self._path(key), _pack(tensor, key)
        temporary = self._unfinished / f"{key}.{socket.gethostname()}.{os.getpid()}"
        try:
            if free_space(self.folder) < RESERVE + len(content):
                raise OSError(f"less than {gib(RESERVE)} is free, which is left to checkpoints")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
            self._counts.written += len(content)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._give_up(error)

    def _path(self, key: str) -> Path:
        return self.folder / "files" / key[:2] / f"{key[2:]}{_SUFFIX}"

    def _give_up(self, error: OSError) -> None:
        self._writes = False
        self._say(f"train.cache: {self.folder}: {error}; training goes on and keeps nothing more")


def _pack(tensor: Tensor, key: str) -> bytes:
    if not is_dense(tensor):
        raise ValueError(f"strides {tensor.stride()} of {tuple(tensor.shape)} have gaps")
    values = tensor.as_strided((tensor.numel(),), (1,))
    parts = {
        "values": values,
        "shape": torch.tensor(tensor.shape),
        "strides": torch.tensor(tensor.stride()),
    }
    return safetensors.torch.save({**parts, "digest": _digest(parts, key)})


def _unpack(content: bytes, key: str) -> Tensor:
    parts = safetensors.torch.load(content)
    digest = parts.pop("digest")
    if not torch.equal(digest, _digest(parts, key)):
        raise ValueError("its contents do not fit its checksum")
    return parts["values"].as_strided(parts["shape"].tolist(), parts["strides"].tolist())


def _digest(parts: dict[str, Tensor], key: str) -> Tensor:
    shape, strides, values = parts["shape"], parts["strides"], parts["values"]
    about = json.dumps([key, shape.tolist(), strides.tolist(), str(values.dtype)])
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    digest.update(values.view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills its memory without gaps and overlaps, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
