"""``adafilter export``: a run's best model for elsewhere, checked, with its model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adafilter_dist.commands.parser import Parser
from adafilter_dist.errors import UserError, resume_line
from adafilter_dist.recipe.hints import no_run
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.no_run import no_run_in
from adafilter_dist.system.console import Console, print_plain

if TYPE_CHECKING:
    from adafilter_dist.evaluate.class_gates import ClassGates
    from adafilter_dist.export.card import Source
    from adafilter_dist.export.check_pictures import CheckPictures
    from adafilter_dist.methods.export import Export

HELP = "write a run's best model as safetensors, ONNX or a PyTorch program"

_DESCRIPTION = """\
Write the best model of a run, or an export, into a folder of its own with a model card: weights
(safetensors), an ONNX file (onnx), or a program of torch.export (torch). Programs take any number
of pictures. They are checked against the network on real pictures, the run's test pictures or
--pictures; one that does not compute the same is not left behind. adafilter_dist.load and adafilter
predict read what is written."""


def run(words: list[str]) -> int:
    """Parse ``RUN | EXPORT --to FORM [--out FOLDER] ...``, write the folder, show the check."""
    parser = Parser(
        "adafilter export",
        description=_DESCRIPTION,
        examples=[
            "adafilter export runs/demo/1a2b3c4d --to safetensors",
            "adafilter export runs/demo/1a2b3c4d --to onnx --pixels",
        ],
    )
    parser.add_argument("model", metavar="RUN | EXPORT", help="run folder, or folder of an export")
    parser.add_argument("--to", choices=("safetensors", "onnx", "torch"), required=True)
    parser.add_argument("--out", type=Path, help="default: RUN/export/FORM, or EXPORT-FORM")
    parser.add_argument(
        "--compact", action="store_true", help="what adafilter compact has written of the run"
    )
    parser.add_argument(
        "--pixels",
        action="store_true",
        help="the program takes uint8 pixels (N, H, W, 3) and normalises them itself",
    )
    parser.add_argument(
        "--pictures", nargs="+", metavar="PICTURE", help="check it on these: files or folders"
    )
    parser.add_argument(
        "--images", type=int, default=64, metavar="N", help="pictures of the check: 64 at most"
    )
    options = parser.parse_intermixed_args(words)
    if options.images < 1:
        raise UserError(f"--images {options.images}: at least 1")
    if options.to == "safetensors" and options.pixels:
        raise UserError("--pixels: weights have no input of their own; use --to onnx or torch")
    return _export(options)


@dataclass(frozen=True)
class _Place:
    """``folder`` is read, ``run`` is where it is from, None for an export without its run."""

    folder: Path
    run: Path | None
    out: Path


def _place(options: Any) -> _Place:
    path = Path(options.model).expanduser()
    if wrong := no_run(options.model, []):
        raise UserError(wrong)
    files = RunFiles(path)
    suffix = "-compact" if options.compact else ""
    if files.recipe.is_file():
        folder = files.compact if options.compact else files.best
        if not (folder / "config.json").is_file():
            todo = f"adafilter compact {path}" if options.compact else resume_line(path)
            what = "it was not compacted yet" if options.compact else "no best model in it yet"
            raise UserError(f"{path}: {what}: {todo}")
        out = options.out or path / "export" / f"{options.to}{suffix}"
        return _Place(folder, path, out.expanduser())
    if not (path / "config.json").is_file():
        raise UserError(no_run_in(path, or_export=True))
    if options.compact:
        raise UserError(f"--compact: name the run of {path}, or the compacted folder itself")
    run = path.parent if RunFiles(path.parent).recipe.is_file() else None
    out = options.out or Path(f"{path}-{options.to}")
    return _Place(path, run, out.expanduser())


def _export(options: Any) -> int:
    place = _place(options)
    if place.out.resolve() in (place.folder.resolve(), (place.run or place.folder).resolve()):
        raise UserError(f"--out {place.out}: that is what is read; name another folder")
    from adafilter_dist.export.place import require_place
    from adafilter_dist.methods.programs import require

    require_place(place.out)

    if options.to == "onnx":
        require("onnx", "onnxscript", "onnxruntime", what="--to onnx")
    from adafilter_dist.export.write import write_program_of, write_weights
    from adafilter_dist.methods.export import open_export

    console = Console(stderr=True)
    export = open_export(place.folder)
    if "kind" in export.config:
        raise UserError(
            f"{place.folder}: a program ({export.config['kind']}); export the run it is of"
        )
    source = _source(place, console)
    if options.to == "safetensors":
        gates = _class_gates(place, export, console)
        written = write_weights(export, place.folder, place.out, source, gates)
    else:
        written = write_program_of(
            options.to,
            export,
            place.out,
            _pictures(options, place, export, source),
            source,
            pixels=options.pixels,
            say=lambda line: print_plain(console, line),
        )
    lines = [f"{'checked':<12} {written.check.line()}"] if written.check is not None else []
    lines.append(f"{'size':<12} {written.megabytes:.1f} MB")
    print_plain(Console(), *lines, f"{'written':<12} {written.folder}")
    return 0


def _source(place: _Place, console: Console) -> Source | None:
    """The run, and its data where they are there and are its own."""
    from adafilter_dist.data.stored.prepared import open_prepared
    from adafilter_dist.export.card import Source
    from adafilter_dist.run.find import find_run_of
    from adafilter_dist.training.run_data import read_run_data, require_run_data

    if place.run is None:
        return None
    recipe = find_run_of([str(place.run)])[1]
    data = read_run_data(place.run)
    try:
        prepared = open_prepared(recipe, known=data.fingerprint if data else None)
        require_run_data(place.run, data, prepared, "")
    except UserError as error:
        print_plain(console, f"note: without the run's data: {error}")
        prepared = None
    fingerprint = data.fingerprint if data else None
    return Source(place.run, place.folder, recipe, fingerprint, prepared)


def _pictures(options: Any, place: _Place, export: Export, source: Source | None) -> CheckPictures:
    from adafilter_dist.export.check_pictures import from_data, from_files
    from adafilter_dist.predict.find_pictures import find_pictures

    if options.pictures:
        return from_files(find_pictures(options.pictures), export.preprocess, options.images)
    if source is None or source.prepared is None:
        raise UserError(
            f"{place.folder}: its data are not there, and a program is checked on real pictures; "
            "name some: --pictures FOLDER"
        )
    return from_data(source.prepared, source.recipe, export.preprocess, options.images)


def _class_gates(place: _Place, export: Export, console: Console) -> ClassGates | None:
    """What `predict --explain` needs of the classes; None where it cannot be measured."""
    import torch

    from adafilter_dist.models.gating.convert import GatedNet
    from adafilter_dist.predict.class_figures import class_gates_of

    if not isinstance(export.model, GatedNet):
        return None
    try:
        return class_gates_of(place.folder, export, torch.device("cpu"), console)
    except UserError as error:
        print_plain(console, f"note: without the gates of the classes: {error}")
        return None
