"""Files that are durable when written and verified when read, by size and sha256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_CHUNK = 1 << 22


class DamagedError(Exception):
    """A file that must not be used, and why."""


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hex digest of a file; ``progress`` is told every few MiB how many bytes were read."""
    with path.open("rb") as file:
        if progress is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress(file.tell())
        return digest.hexdigest()


def write_durable(path: Path, content: bytes | memoryview) -> dict[str, Any]:
    """Write and fsync a new file; returns its manifest entry, of the bytes as they are in memory.

    What a disk changes on the way is therefore noticed when the file is read.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_record(path: Path, content: Any) -> dict[str, Any]:
    """Like :func:`write_durable`, of strict JSON."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return write_durable(path, text.encode())


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest, its own sha256 inside, and fsync it."""
    write_durable(path, sealed(content))


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest's content; DamagedError unless every byte is as written."""
    try:
        written = path.read_bytes()
        content: dict[str, Any] = json.loads(written)
        content.pop("sha256")
        if sealed(content) == written:
            return content
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedError(f"{path.name} cannot be used: {error}") from None
    raise DamagedError(f"{path.name} does not have the bytes that were written (sha256)")


def sealed(content: Mapping[str, Any]) -> bytes:
    """``content`` as JSON with the sha256 of itself inside, as :func:`read_manifest` wants it."""
    plain = json.dumps(content, sort_keys=True, allow_nan=False)
    seal = hashlib.sha256(plain.encode()).hexdigest()
    return (json.dumps({**content, "sha256": seal}, indent=2, sort_keys=True) + "\n").encode()


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """DamagedError unless the file is there with the size and sha256 of its manifest entry."""
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            raise DamagedError(f"{path.name} has {size} bytes instead of {entry['size']}")
        sha256 = sha256_of(path)
    except FileNotFoundError:
        raise DamagedError(f"{path.name} is missing") from None
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read: {error}") from None
    if sha256 != entry["sha256"]:
        raise DamagedError(f"{path.name} does not have the bytes that were written (sha256)")
