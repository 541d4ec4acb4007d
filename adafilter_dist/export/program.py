"""From a network to a program with any number of pictures a batch: torch.export, and ONNX of it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from adafilter_dist.errors import UserError
from adafilter_dist.methods.programs import require

GATES = "gate_logits"


def program_of(model: nn.Module, example: Tensor) -> ExportedProgram:
    """``model`` as torch.export sees it on ``example`` (2, ...), whose first size is free.

    UserError where its code cannot be followed.
    """
    try:
        with _quiet(), torch.no_grad():
            batch = ({0: Dim("batch", min=1)},)
            return torch.export.export(model, (example,), dynamic_shapes=batch, strict=False)
    except Exception as error:  # a network's own code can fail in any way under torch.export
        if isinstance(error, MemoryError):
            raise
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UserError(
            f"torch.export cannot follow this network ({type(error).__name__}: {first.strip()}); "
            "--to safetensors exports every network"
        ) from error


def write_program(program: ExportedProgram, path: Path) -> None:
    """model.pt2, without the paths of this machine's source files."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    with _quiet():
        torch.export.save(program, path)


def write_onnx(program: ExportedProgram, path: Path, inputs: str) -> None:
    """The program's ONNX; its outputs are ``logits`` and ``gate_logits``."""
    require("onnx", "onnxscript", what="--to onnx")
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[inputs],
            output_names=["logits", GATES],
            verbose=False,
        )
        assert exported is not None
        exported.save(str(path))


def finish_onnx(source: Path, path: Path, about: Mapping[str, Any]) -> None:
    """The ONNX file without the gates' logits and without notes of this machine.

    ``about`` is kept in its metadata, so that the file tells what it is without its folder.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    model = ir.load(source)
    graph = model.graph
    graph.outputs.pop()
    batch = graph.inputs[0].shape
    assert batch is not None
    free = str(batch[0])
    for value in (*graph.inputs, *(each for node in graph for each in node.outputs)):
        if value.shape is not None and any(str(size) == free for size in value.shape):
            sizes = ["batch" if str(size) == free else size for size in value.shape]
            value.shape = ir.Shape(sizes)
    for clean in (common.RemoveUnusedNodesPass(), common.ClearMetadataAndDocStringPass()):
        model = clean(model).model
    model.metadata_props.update(
        {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()}
    )
    ir.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own progress and its advice to developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
