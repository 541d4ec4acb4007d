"""Exports that are programs and not weights: model.onnx and model.pt2, as modules."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adafilter_dist.errors import UserError
from adafilter_dist.system.sealed_files import sha256_of

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
"""The program's file, by the ``kind`` in config.json."""
INSTALL = "pip install 'adafilter-dist[export]'"


def require(*modules: str, what: str) -> None:
    """UserError with the line that installs them where one of ``modules`` is missing."""
    missing = []
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(module)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{what}: {', '.join(missing)} {verb} not installed: {INSTALL}")


def load_program(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    """The program of an export, to be called like the network; UserError where it is damaged."""
    path = folder / FILES[config["kind"]]
    if not path.is_file():
        raise UserError(f"{path} is missing")
    if sha256_of(path) != config["file_sha256"]:
        raise UserError(f"{path} is damaged: it is not the file that was written (sha256)")
    return OnnxModel(path) if config["kind"] == "onnx" else TorchProgram(path)


class OnnxModel(nn.Module):
    """An ONNX file run by onnxruntime, on the CPU: a tensor in, a tensor of logits out."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        require("onnxruntime", what=str(path))
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # its warnings are about the optimisation of the graph
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, images: Tensor) -> Tensor:
        (logits,) = self.run(images)[:1]
        return logits

    def run(self, images: Tensor) -> list[Tensor]:
        """All outputs."""
        name = self.session.get_inputs()[0].name
        outputs = self.session.run(None, {name: images.detach().cpu().contiguous().numpy()})
        return [torch.from_numpy(output).to(images.device) for output in outputs]


class TorchProgram(nn.Module):
    """A program of torch.export, on the CPU."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.program = torch.export.load(path).module()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.program(images)
        return logits

    def train(self, mode: bool = True) -> TorchProgram:
        """Always as it was exported; UserError for training mode."""
        if mode:
            raise UserError("an exported program is for prediction; train the network itself")
        return self
