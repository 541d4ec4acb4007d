"""Tensors to files that are durable and verified: safetensors, fsync, sha256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


class DamagedError(Exception):
    """A checkpoint that must not be used, and why."""


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file and fsync it; returns its manifest entry (size, sha256)."""
    # Channels-last weights are stored in their logical order; the layout belongs to the run.
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    _fsync_file(path)
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def write_record(path: Path, content: Any) -> dict[str, Any]:
    """Write strict JSON and fsync it; returns its manifest entry."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    _fsync_file(path)
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest, its own sha256 inside, and fsync it."""
    path.write_bytes(_sealed(content))
    _fsync_file(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest's content; DamagedError unless every byte is as written."""
    try:
        written = path.read_bytes()
        content: dict[str, Any] = json.loads(written)
        content.pop("sha256")
        if _sealed(content) == written:
            return content
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedError(f"{path.name} cannot be used: {error}") from None
    raise DamagedError(f"{path.name} does not have the bytes that were written (sha256)")


def _sealed(content: Mapping[str, Any]) -> bytes:
    plain = json.dumps(content, sort_keys=True, allow_nan=False)
    seal = hashlib.sha256(plain.encode()).hexdigest()
    return (json.dumps({**content, "sha256": seal}, indent=2, sort_keys=True) + "\n").encode()


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """DamagedError unless the file is there with the size and sha256 of its manifest entry."""
    if not path.is_file():
        raise DamagedError(f"{path.name} is missing")
    size = path.stat().st_size
    if size != entry["size"]:
        raise DamagedError(f"{path.name} has {size} bytes instead of {entry['size']}")
    if sha256_of(path) != entry["sha256"]:
        raise DamagedError(f"{path.name} does not have the bytes that were written (sha256)")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a checked safetensors file, on the CPU."""
    tensors: dict[str, Tensor] = load_file(path)
    return tensors
