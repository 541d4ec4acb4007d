"""The folder of a comparison: its plan is kept there, and one command at a time works in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from adafilter_dist.compare.plan import FILE, Plan
from adafilter_dist.compare.request import read_request
from adafilter_dist.errors import UserError
from adafilter_dist.system.files import make_folder
from adafilter_dist.system.lock import exclusive


def find_comparison(words: Sequence[str]) -> tuple[Plan, Path]:
    """The plan and its folder, from words, or by ``compare_dir=`` alone from the folder.

    Raises UserError for every mistake in the words, and where the folder holds another plan.
    """
    if len(words) == 1 and words[0].startswith("compare_dir="):
        folder = Path(words[0].partition("=")[2]).expanduser()
        return Plan.read(folder), folder
    request = read_request(words)
    return agreed_plan(request.plan, request.folder), request.folder


def agreed_plan(plan: Plan, folder: Path) -> Plan:
    """``plan``, with the design that the folder keeps if a comparison was begun there.

    Raises UserError where that is another one; writes nothing.
    """
    if not (folder / FILE).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"compare_dir={folder}: holds something else; give an empty or a new folder"
            )
        return plan
    kept = Plan.read(folder)
    plan.require_same(kept, folder)
    return replace(plan, design=kept.design)


@contextmanager
def sole_command(folder: Path) -> Iterator[None]:
    """Make the folder, and hold it; UserError where another command works in it."""

    def refuse() -> None:
        raise UserError(
            f"{folder} is in use by another `adafilter compare`; wait for its end, or stop it"
        )

    try:
        make_folder(folder)
        with exclusive(folder.with_name(f".{folder.name}.lock"), on_wait=refuse):
            yield
    except OSError as error:
        raise UserError(
            f"compare_dir={folder}: cannot be written ({error.strerror or error}); choose another "
            "with compare_dir=PATH"
        ) from None


def keep_plan(plan: Plan, folder: Path) -> Plan:
    """Write the plan into the folder, which is held; the plan as it is kept."""
    plan = agreed_plan(plan, folder)
    if not (folder / FILE).is_file() or Plan.read(folder) != plan:
        plan.write(folder)
    return plan
