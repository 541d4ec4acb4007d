"""Tensors laid out in memory as a safetensors file, ready for another process to write.

The layout is safetensors' published format: eight bytes with the length of the header, the header
as JSON, then the tensors without gaps. The library itself reads the files back.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class Image:
    """Where the bytes of one file begin in the memory, and how many they are."""

    header: bytes
    starts: dict[str, int]  # of each tensor, from the begin of the image
    size: int

    @property
    def room(self) -> int:
        """Bytes to leave for it: whole pages."""
        return -(-self.size // _PAGE) * _PAGE


def lay_out(tensors: Mapping[str, Tensor]) -> Image:
    """The image of ``tensors``: a function of their names, types and shapes only.

    Raises TypeError for a type that is not stored.
    """
    # The widest types first, as the library does: every tensor is then aligned to its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, object] = {}
    offsets: dict[str, int] = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise TypeError(f"{name}: {tensor.dtype} cannot be stored in a checkpoint")
        offsets[name], end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    starts = {name: len(header) + offset for name, offset in offsets.items()}
    return Image(header, starts, len(header) + end)


def fill(memory: mmap.mmap, begin: int, image: Image, tensors: Mapping[str, Tensor]) -> None:
    """Copy header and tensors into ``memory`` from ``begin`` on (a page's), row-major."""
    memory[begin : begin + len(image.header)] = image.header
    for name, start in image.starts.items():
        tensor = tensors[name]
        if tensor.numel():
            place = torch.frombuffer(
                memory, dtype=tensor.dtype, count=tensor.numel(), offset=begin + start
            )
            place.view(tensor.shape).copy_(tensor.detach())
