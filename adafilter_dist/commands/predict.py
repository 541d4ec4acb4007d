"""``adafilter predict``: what a model says of pictures that nobody labelled."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from adafilter_dist.commands.parser import Parser
from adafilter_dist.errors import UserError, printable, resume_line
from adafilter_dist.recipe.hints import no_run
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.no_run import no_run_in
from adafilter_dist.system.console import Console, print_plain

if TYPE_CHECKING:
    import torch

    from adafilter_dist.methods.export import Export
    from adafilter_dist.predict.explain import Explainer

HELP = "classes of pictures, by the best model of a run or by an export"
SOME_BAD = 3

_DESCRIPTION = """\
What the best model of a run, or an export, says of pictures: the likeliest classes and their
probabilities, in the order of the files. Pictures are files, folders with all that is in them,
patterns, or - for a list on standard input, one path a line. They are read as prepare reads them.
A picture that cannot be used is reported and passed over; the exit code is then 3."""


def run(words: list[str]) -> int:
    """Parse ``RUN | EXPORT PICTURE ...``, print a line a picture; 3 where some could not be used.

    Predictions go to standard output, everything else to standard error.
    """
    parser = Parser(
        "adafilter predict",
        description=_DESCRIPTION,
        examples=[
            "adafilter predict runs/demo/1a2b3c4d picture.jpg",
            "adafilter predict runs/food101/1a2b3c4d FOLDER --format csv --out classes.csv",
            "adafilter predict runs/food101/1a2b3c4d 'FOLDER/**/*.jpg' --explain",
        ],
    )
    parser.add_argument("model", metavar="RUN | EXPORT", help="run folder, or folder of an export")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files, folders, ... or -")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes a picture: 3")
    parser.add_argument("--format", choices=("table", "csv", "jsonl"), default="table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="pictures at once: 64")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode: all CPUs")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="also how many of the filters that a picture went through are fine-tuned, in which "
        "layers, and how that compares with pictures of the class (validation pictures of the run, "
        "measured the first time)",
    )
    options = parser.parse_intermixed_args(words)
    for option in ("top", "batch", "workers"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} {value}: at least 1")
    return _predict(options)


def _predict(options: Any) -> int:
    from adafilter_dist.commands.out_file import out_file
    from adafilter_dist.predict.find_pictures import find_pictures

    model = Path(options.model).expanduser()
    _require_model(model, options.model, options.pictures)
    out = None if options.out is None else out_file(options.out)
    paths = find_pictures(options.pictures, sys.stdin)

    # Imported here: --help and a mistyped path need not wait for torch.
    from adafilter_dist.methods.export import open_export
    from adafilter_dist.predict.device import use_device
    from adafilter_dist.predict.predictor import Predictor
    from adafilter_dist.predict.tables import writer_of
    from adafilter_dist.slurm.cpus import cpus_of_rank

    console = Console(stderr=True)
    workers = options.workers or cpus_of_rank()
    device = use_device(options.device, workers)
    export = open_export(model, fast=True)
    device = _device_of(export, device, options.device)
    export.model.to(device)
    explainer = _explainer(model, export, device, console) if options.explain else None
    top = min(options.top, len(export.classes))
    predictor = Predictor(export, device, top, options.batch, workers, options.explain)
    writer = writer_of(options.format, paths, top, explainer)
    bad = 0
    with _output(out) as file, _progress(console, file, len(paths)) as done:
        begun = time.monotonic()
        file.write(writer.header())
        for prediction in predictor.predict(paths, done):
            file.write(writer.row(prediction))
            if prediction.error:
                bad += 1
                line = f"{printable(prediction.path)}: {printable(prediction.error)}"
                print_plain(console, f"passed over: {line}")
        file.flush()
        seconds = time.monotonic() - begun
    _sum_up(console, len(paths), bad, seconds, device, options.out)
    return SOME_BAD if bad else 0


def _require_model(model: Path, word: str, rest: list[str]) -> None:
    """UserError unless ``model`` is a run with a best model, or an export."""
    if wrong := no_run(word, rest):
        raise UserError(wrong)
    if (model / "config.json").is_file() or RunFiles(model).best_config.is_file():
        return
    if RunFiles(model).recipe.is_file():
        raise UserError(f"{model}: no best model in it yet: {resume_line(model)}")
    raise UserError(no_run_in(model, or_export=True))


def _device_of(export: Export, device: torch.device, wanted: str) -> torch.device:
    """``device``, or the CPU for a program, which runs where it was exported."""
    kind = export.config.get("kind")
    if kind is None:
        return device
    if wanted == "cuda":
        raise UserError(f"--device cuda: a program ({kind}) runs on the CPU here; use the run")
    import torch

    return torch.device("cpu")


def _explainer(model: Path, export: Export, device: torch.device, console: Console) -> Explainer:
    import numpy as np

    from adafilter_dist.evaluate.gate_recorder import widths_of
    from adafilter_dist.models.gating.gate import find_gate
    from adafilter_dist.predict.class_figures import class_gates_of
    from adafilter_dist.predict.explain import Explainer

    try:
        names = find_gate(export.model).names
    except ValueError:
        kind = export.config.get("kind", f"method={export.config['method']}")
        raise UserError(f"--explain: {model} ({kind}) has no gates to look at") from None
    try:
        gates = class_gates_of(model, export, device, console)
    except UserError as error:
        print_plain(console, f"note: distances from classes are not known: {error}")
        gates = None
    filters = np.array(widths_of(export.model), np.int64)
    return Explainer(names, filters, export.classes, gates)


@contextmanager
def _output(out: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that is there when it is whole."""
    if out is None:
        yield sys.stdout
        return
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _progress(console: Console, file: TextIO, total: int) -> Any:
    """A count, unless the predictions themselves appear on the terminal."""
    if file is sys.stdout and sys.stdout.isatty():
        return nullcontext(lambda done: None)
    from adafilter_dist.system.progress import counting

    return counting(console, "predicting", total)


def _sum_up(
    console: Console, total: int, bad: int, seconds: float, device: torch.device, out: Path | None
) -> None:
    rate = (total - bad) / max(seconds, 1e-9)
    passed_over = f", {bad:,} passed over" if bad else ""
    written = f", written to {out}" if out is not None else ""
    pictures = f"{total - bad:,} picture{'' if total - bad == 1 else 's'}"
    speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
    line = f"{pictures} in {seconds:.1f} s on {device.type}, {speed} images/s"
    print_plain(console, f"{line}{passed_over}{written}")
