"""Which data a run belongs to: written to its data.json as soon as they are known."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.data.stored import manifest as prepared_manifest
from adafilter_dist.data.stored.prepared import Prepared, prepared_folder, require_origin
from adafilter_dist.errors import UserError, resume_line
from adafilter_dist.recipe import Recipe
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.files import write_json
from adafilter_dist.system.json_files import read_object

_SHOWN = 3


@dataclass(frozen=True)
class RunData:
    """Fingerprint of a run's data, and the names of its classes if they are known."""

    fingerprint: str
    classes: list[str] | None


def keep_run_data(run: Path, prepared: Prepared) -> None:
    """Write data.json to the run folder, unless it is there already."""
    if read_run_data(run) != RunData(prepared.fingerprint, prepared.classes):
        note = {"fingerprint": prepared.fingerprint, "classes": list(prepared.classes)}
        write_json(RunFiles(run).data, note)


def read_run_data(run: Path) -> RunData | None:
    """The data of a run from its data.json, else from its newest checkpoint; None if neither says.

    Runs of the first release have no data.json.
    """
    files = RunFiles(run)
    noted = read_object(files.data, [])
    if isinstance(noted.get("fingerprint"), str) and isinstance(noted.get("classes"), list):
        return RunData(noted["fingerprint"], noted["classes"])
    classes = read_object(files.best_config, []).get("classes")
    for _, manifest in files.checkpoint_manifests():
        fingerprint = manifest.get("data_fingerprint")
        if fingerprint:
            return RunData(fingerprint, classes if isinstance(classes, list) else None)
    return None


def check_run_data(
    run: Path, recipe: Recipe, resume: str, allow: Collection[str], *, done: bool
) -> tuple[str, ...]:
    """Compare today's prepared data with the run's; returns lines to print.

    Called before a run is resumed or shown as finished (``done``). ``resume`` is the setting: with
    a path, the run's own data count; with auto or never, those that the command names. Raises
    UserError if the data differ from the run's (unless ``allow`` names data), or if the command
    names pictures or lists from which the prepared data were not made.
    """
    data = read_run_data(run)
    if data is None:
        return ()
    folder = prepared_folder(recipe.data)
    try:
        manifest = prepared_manifest.read_manifest(folder)
    except UserError as error:
        if not done:
            raise
        return (f"its data cannot be compared: {error}",)
    if manifest is None:
        return (f"its data are not in {folder} any more, and were not compared",) if done else ()
    allowed = not done and may_differ(allow)
    if manifest.fingerprint != data.fingerprint:
        what = difference(data, manifest.fingerprint, manifest.classes)
        if allowed and data.classes is not None and len(data.classes) != len(manifest.classes):
            raise UserError(f"{run}: {what}; a network for these is another run: resume=never")
        if allowed:
            return (f"other data from here on ({what}), allowed by --allow-mismatch data",)
        raise UserError(
            f"{run} is a run on other data than are now in {folder}: {what}; for a run on these "
            "add resume=never or another run_dir=PATH, for this one put the pictures back and "
            "prepare them again" + ("" if done else " (for those who know: --allow-mismatch data)")
        )
    try:
        require_origin(folder, manifest, recipe)
    except UserError as error:
        if resume not in ("auto", "never"):
            return (f"{str(error).partition('; ')[0]}; the run goes on with the data it began on",)
        goes_on = (
            "" if done else f"; on the data it began on this run goes on by: {resume_line(run)}"
        )
        raise UserError(f"{error}{goes_on}") from None
    return ()


def may_differ(allow: Collection[str]) -> bool:
    """Whether --allow-mismatch lets the data differ; a key of their location alone does not."""
    sections = (key for key in allow if key not in ("data.root", "data.csv"))
    return any(key.partition(".")[0] == "data" for key in sections)


def require_run_data(run: Path, data: RunData | None, prepared: Prepared, advice: str) -> None:
    """UserError unless ``prepared`` is the run's data; ``advice`` says what else can be done."""
    if data is None or data.fingerprint == prepared.fingerprint:
        return
    what = difference(data, prepared.fingerprint, prepared.classes)
    raise UserError(
        f"{run}: trained on other data than are in {prepared.folder}: {what}; put the pictures "
        f"back and prepare them again{advice}"
    )


def require_classes(folder: Path, trained: Sequence[str], prepared: Prepared) -> None:
    """UserError unless the data have the classes of the model in ``folder``, in the same order."""
    what = class_difference(trained, prepared.classes)
    if what:
        raise UserError(f"{folder}: its classes are not those in {prepared.folder}: {what}")


def difference(data: RunData, fingerprint: str, classes: Sequence[str]) -> str:
    """How other data differ from a run's, in a few words."""
    named = "" if data.classes is None else class_difference(data.classes, classes)
    return named or (
        f"pictures, labels or how they are stored (fingerprint {data.fingerprint[:8]}, now "
        f"{fingerprint[:8]})"
    )


def class_difference(trained: Sequence[str], now: Sequence[str]) -> str:
    """Classes that only one side has, or that the order differs; empty if they are equal."""
    if list(trained) == list(now):
        return ""
    absent = [name for name in trained if name not in now]
    new = [name for name in now if name not in trained]
    parts = [f"no {_names(absent)} any more"] if absent else []
    parts += [f"{_names(new)} not known to the run"] if new else []
    return ", ".join(parts) or "the classes in another order"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ("class " if len(names) == 1 else "classes ") + ", ".join(names[:_SHOWN]) + more
