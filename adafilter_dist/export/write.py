"""Writes an export: into a folder beside the final one, which it becomes once it was checked."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adafilter_dist.data.loading.device import normalise
from adafilter_dist.errors import CheckFailedError, UserError
from adafilter_dist.evaluate.class_gates import ClassGates
from adafilter_dist.export.card import Source, card
from adafilter_dist.export.check import Answers, Check, compare
from adafilter_dist.export.check_pictures import CheckPictures
from adafilter_dist.export.place import require_place
from adafilter_dist.export.program import (
    finish_onnx,
    program_of,
    write_onnx,
    write_program,
)
from adafilter_dist.methods.export import (
    NEWER_FORMAT,
    Export,
    open_export,
    sealed_config,
    write_files,
)
from adafilter_dist.methods.programs import FILES, OnnxModel
from adafilter_dist.models.gating.convert import AdaFilterNet, GatedNet
from adafilter_dist.models.inference.exportable import ForExport, gate_logits
from adafilter_dist.models.inference.selected_conv import for_inference
from adafilter_dist.system.counted import counted
from adafilter_dist.system.files import write_json, write_text
from adafilter_dist.system.sealed_files import sha256_of
from adafilter_dist.version import __version__

Form = Literal["safetensors", "onnx", "torch"]
_BATCH = 16
_FULL = 1 << 16  # bytes left on a disk that has refused more


@dataclass(frozen=True)
class Written:
    """An export that is there: its folder, the size of the program or weights, the check."""

    folder: Path
    megabytes: float
    check: Check | None


def write_weights(
    export: Export, folder: Path, out: Path, source: Source | None, gates: ClassGates | None
) -> Written:
    """The folder of weights of the export in ``folder``, with its card, in this version's format.

    What is written is read again, and its tensors are those of the source.
    """
    state = export.model.state_dict()
    with _new_folder(out) as new:
        config = {**export.config, "format": max(export.config["format"], NEWER_FORMAT)}
        write_files(new, config | {"version": __version__}, state)
        written = open_export(new).model.state_dict()
        if any(not torch.equal(tensor, written[name]) for name, tensor in state.items()):
            raise CheckFailedError("what was written is not what was read: nothing is left behind")
        if (folder / "compacting.json").is_file():
            shutil.copy(folder / "compacting.json", new)
        if gates is not None:
            gates.write(new)
        write_text(new / "README.md", card(export, config, source, None))
        size = (new / "model.safetensors").stat().st_size
    return Written(out, size / 1e6, None)


def write_program_of(
    form: Literal["onnx", "torch"],
    export: Export,
    out: Path,
    pictures: CheckPictures,
    source: Source | None,
    *,
    pixels: bool,
    say: Callable[[str], None],
) -> Written:
    """A program with any number of pictures a batch, checked on ``pictures``.

    With ``pixels`` its input is uint8 pixels, which it normalises. CheckFailedError where it does
    not compute what the network does; then nothing is left behind.
    """
    model = export.model
    shown = for_inference(model) if _is_foldable(model) else model
    p = export.preprocess
    constants = (p.mean, p.std) if pixels else None
    checked = ForExport(shown, pixels=constants, gates=True)
    name = "pixels" if pixels else "images"
    images = _normalised(pictures.pixels, export)
    inputs = pictures.pixels if pixels else images

    say(f"{form}: following the network")
    program = program_of(checked, inputs[:1].repeat_interleave(2, 0))
    config: dict[str, Any] = {
        "format": NEWER_FORMAT,
        "kind": form,
        "version": __version__,
        "model": export.config["model"],
        "method": export.config["method"],
        "classes": export.classes,
        "stored_size": p.stored_size,
        "preprocess": {k: v for k, v in p.to_dict().items() if k != "stored_size"},
        "input": name,
        "dtype": str(export.dtype).removeprefix("torch."),
    }
    with _new_folder(out) as new:
        path = new / FILES[form]
        say(f"{form}: writing, and checking on {counted(len(inputs), 'picture')}")
        if form == "onnx":
            both = new / "both.onnx"
            write_onnx(program, both, name)
            answers = _in_batches(inputs, lambda part: tuple(OnnxModel(both).run(part)))
            finish_onnx(both, path, {key: config[key] for key in _SELF_DESCRIPTION})
            for left in new.glob("both.onnx*"):
                left.unlink()
            final: nn.Module = OnnxModel(path)
        else:
            run = program.module()
            answers = _in_batches(inputs, run)
            plain = ForExport(shown, pixels=constants)
            write_program(program_of(plain, inputs[:1].repeat_interleave(2, 0)), path)
            final = torch.export.load(path).module()
        layers = _layers(model, images)
        check = compare(_answers_of(model, images), answers, layers, pictures.on)
        _require_same(answers.logits, final, inputs)
        config["file_sha256"] = sha256_of(path)
        write_json(new / "config.json", sealed_config(config))
        write_text(new / "README.md", card(export, config, source, check))
        loaded = open_export(new).model
        _require_same(answers.logits, loaded, inputs)
        size = sum(file.stat().st_size for file in new.glob(f"{FILES[form]}*"))
    return Written(out, size / 1e6, check)


_SELF_DESCRIPTION = ("classes", "preprocess", "stored_size", "input", "model", "method", "version")


def _is_foldable(model: nn.Module) -> bool:
    return isinstance(model, AdaFilterNet) and model.gate.control is None


def _normalised(pixels: Tensor, export: Export) -> Tensor:
    """uint8 (N, H, W, 3) -> (N, 3, H, W) as the network takes them."""
    turned = pixels.permute(0, 3, 1, 2)
    images = torch.empty(turned.shape, dtype=export.dtype, memory_format=torch.channels_last)
    normalise(turned, export.preprocess, images)
    return images


def _answers_of(model: nn.Module, images: Tensor) -> Answers:
    """Those of the network itself."""

    def forward(part: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(part)
        return logits, gate_logits(model, logits)

    with torch.inference_mode():
        return _in_batches(images, forward)


def _in_batches(inputs: Tensor, run: Callable[[Tensor], Any]) -> Answers:
    """In batches of several sizes, the first of one picture: the size must be free."""
    parts = [inputs[:1], *inputs[1:].split(_BATCH)] if len(inputs) > 1 else [inputs]
    with torch.no_grad():
        answers = [run(part) for part in parts]
    logits, gates = (torch.cat(each) for each in zip(*answers, strict=True))
    return Answers(logits.double(), gates.double())


def _layers(model: nn.Module, images: Tensor) -> list[tuple[str, int]]:
    """Name and width of the gated layers whose gates are computed, in order of execution."""
    if not isinstance(model, GatedNet):
        return []
    with torch.inference_mode():
        model(images[:1])
    logits = model.gate.decisions.logits
    return [(model.gate.names[index], logits[index].shape[1]) for index in sorted(logits)]


def _require_same(logits: Tensor, final: nn.Module, inputs: Tensor) -> None:
    """What is left behind says what was checked; CheckFailedError where it does not."""
    with torch.no_grad():
        own = torch.cat([final(part).double() for part in inputs.split(_BATCH)])
    difference = float((own - logits).abs().max())
    if difference > 1e-3 * max(1.0, float(logits.abs().max())):
        raise CheckFailedError(
            f"the file differs from the program that was checked by {difference:.3g}: "
            "nothing is left behind"
        )


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` at the end, or is removed; UserError for one of other use."""
    require_place(out)
    new = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    try:
        yield new
        old = out.with_name(f".{out.name}.{os.getpid()}.gone")
        if out.exists():
            out.rename(old)
        new.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        # safetensors, torch and onnx each raise something else where the disk is full.
        if shutil.disk_usage(out.parent).free >= _FULL:
            raise
        reason = "No space left on device"
        raise UserError(f"--out {out}: cannot be written: {reason}; nothing is left") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
