"""The gates of a model's classes: read where they are kept, else measured on the run's pictures."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from rich.console import Console

from adafilter_dist.data.loading.loader import EvalLoader
from adafilter_dist.data.stored.prepared import SplitName, open_prepared
from adafilter_dist.data.stored.views import PreparedSubset
from adafilter_dist.errors import UserError
from adafilter_dist.evaluate.class_gates import ClassGates, measure_class_gates, read_class_gates
from adafilter_dist.evaluate.forward_pass import ForwardSettings
from adafilter_dist.methods.export import Export, folder_of, weights_hash
from adafilter_dist.models.ops.dtypes import weights_dtype
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.find import find_run_of
from adafilter_dist.system.progress import counting
from adafilter_dist.training.run_data import read_run_data, require_classes, require_run_data

_MOST = 5_000


def class_gates_of(
    path: Path, export: Export, device: torch.device, console: Console
) -> ClassGates:
    """Of the run or export ``path``, whose model is ``export``'s, on ``device``.

    A run's are measured on its validation pictures, or, where it has none, on its training
    pictures (5,000 at most), and kept in the run folder. UserError where neither is possible.
    """
    weights = weights_hash(folder_of(path))
    run = path if RunFiles(path).recipe.is_file() else path.parent
    is_best = folder_of(path).resolve() == RunFiles(run).best.resolve()
    home = run if is_best else folder_of(path)
    kept = read_class_gates(home, weights)
    if kept is not None:
        return kept
    if not is_best or not RunFiles(run).recipe.is_file():
        raise UserError(f"{path}: an export of before class figures; export it again")

    # The pictures that the run was validated with, as it saw them.
    recipe = find_run_of([str(run)])[1]
    data = read_run_data(run)
    prepared = open_prepared(recipe, known=data.fingerprint if data else None)
    require_run_data(run, data, prepared, "")
    require_classes(run, export.classes, prepared)
    split: SplitName = "val" if len(prepared.split("val")[1]) else "train"
    loader = EvalLoader(
        PreparedSubset.of(prepared, _MOST),
        split,
        recipe,
        export.preprocess,
        rank=0,
        world_size=1,
        batch_size=64,
    )
    precision = "fp64" if export.dtype == weights_dtype("fp64") else "fp32"
    settings = ForwardSettings(export.preprocess, device, precision)
    with counting(console, f"gates by class, on {split}", loader.total) as done:
        gates = measure_class_gates(
            export.model,
            loader,
            settings,
            len(export.classes),
            split=split,
            model=weights,
            done=done,
        )
    # A run of somebody else's may be read-only: then it is measured again the next time.
    with contextlib.suppress(OSError):
        gates.write(home)
    return gates
