"""Opens the run that `evaluate.control` names, and says in one line why it cannot be used."""

from __future__ import annotations

from pathlib import Path

from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.errors import UserError, resume_line
from adafilter_dist.methods.export import load, read_config
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.report.control import ControlModel
from adafilter_dist.run.files import RunFiles
from adafilter_dist.training.run_data import class_difference, difference, read_run_data


def require_control(run: Path, prepared: Prepared) -> None:
    """UserError unless ``run`` has a best model, of the same data.

    Another run's test pictures may be among the training pictures of this one, so that accuracies
    on them could not be compared.
    """
    files = RunFiles(run)
    if not files.marks():
        raise UserError(f"evaluate.control={run}: no run folder; give the folder of a run")
    if not files.best_config.is_file():
        raise UserError(
            f"evaluate.control={run}: no best model in it; it is written after the first "
            f"validation: {resume_line(run)}"
        )
    classes = read_config(files.best)["classes"]
    what = ""
    if sorted(classes) != sorted(prepared.classes):
        what = class_difference(classes, prepared.classes)
    elif (data := read_run_data(run)) is not None and data.fingerprint != prepared.fingerprint:
        what = difference(data, prepared.fingerprint, prepared.classes)
    if what:
        raise UserError(
            f"evaluate.control={run}: trained on other data than are in {prepared.folder}: {what}; "
            "a control is a run on the same pictures"
        )


def open_control(run: Path | None, prepared: Prepared) -> ControlModel | None:
    """The best model of the control run; None where there is none to be compared with.

    UserError as in ``require_control``.
    """
    if run is None:
        return None
    require_control(run, prepared)
    best = RunFiles(run).best
    config = read_config(best)
    stored_size = config.get("stored_size")
    return ControlModel(
        run=run,
        method=config["method"],
        model=load(best)[0],
        preprocess=Preprocess.from_dict(config["preprocess"] | {"stored_size": stored_size}),
        classes=list(config["classes"]),
    )
