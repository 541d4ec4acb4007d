"""The run folder: where everything about one run lies, and status.json, its contract to others."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.identity import run_dir
from adafilter_dist.recipe.sections.base import seconds
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.kept_recipe import keep, read_kept, recipe_file, seal
from adafilter_dist.run.ownership import ALIVE_EVERY, LostRunError, Ownership, claim
from adafilter_dist.system.files import make_folder

State = Literal["queued", "running", "stopped", "finished", "failed"]
_HEARTBEAT_SECONDS = 5.0


class RunFolder:
    """One run on disk: recipe.yaml, environment.json, status.json and the rest beside them.

    ``say`` gets a line where status.json cannot be written; training does not end by that.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = print) -> None:
        self.path = path
        self.files = RunFiles(path)
        self._say = say
        self._status: dict[str, Any] = {}
        self._writing = threading.Lock()
        self._changed = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._ownership: Ownership | None = None
        self._lost: LostRunError | None = None
        self._printed_trouble = ""
        self.made: list[Path] = []
        """The run folder and folders above it that :meth:`enter` made; none where it was there."""
        self.was_empty = False
        """Whether the run folder was there, with nothing in it."""
        self.begun = False
        """Whether a step was done since."""

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.files.checkpoints

    def read_status(self) -> dict[str, Any]:
        """status.json as a dict; empty if there is none yet, or (said in a line) it is damaged."""
        problems: list[str] = []
        status = self.files.read_status(problems)
        if problems and os.path.isdir(self.path):
            # It tells others how the run stands; what the run goes on from are its checkpoints.
            self._say(f"{self.files.status}: cannot be read, and is written anew: {problems[0]}")
        return status  # a place that cannot be is refused by enter()

    def known_recipe(self, allow: Collection[str] = ()) -> Recipe | None:
        """The recipe that the run was started with, None for a new one.

        UserError where it was edited since, but for what ``allow`` names.
        """
        kept = self.files.recipe.exists() or self.files.kept_recipe.exists()
        return read_kept(self.path, allow) if kept else None

    @property
    def ownership(self) -> Ownership:
        """The attempt that this process claimed by :meth:`enter`."""
        assert self._ownership is not None
        return self._ownership

    def enter(self, recipe: Recipe) -> int:
        """Make the folder and keep the recipe in it, or enter an existing one; claim it.

        Returns the number of the attempt. Raises UserError where a living process has the run, or
        it cannot be written.
        """
        try:
            if not self.path.exists():
                self.made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            make_folder(self.path)
            self.was_empty = not self.made and not any(self.path.iterdir())
            ownership = claim(self.path, lease=seconds(recipe.checkpoint.lease), say=self._say)
            if self.files.recipe.exists():
                seal(self.path)
            else:
                self.keep(recipe)
        except OSError as error:
            raise UserError(
                f"run_dir={self.path}: cannot be written ({error.strerror}); "
                "choose another with run_dir=PATH"
            ) from None
        self._ownership = ownership
        self._status = {"attempt": ownership.attempt}
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True)
        self._thread.start()
        return ownership.attempt

    def keep(self, recipe: Recipe) -> None:
        """Write the recipe that the run goes on with."""
        keep(self.path, recipe)

    def status(self, state: State, *, reason: str = "", **fields: Any) -> None:
        """Write status.json atomically, with a fresh heartbeat; fields are kept between calls."""
        with self._writing:
            self._set(state=state, reason=reason, **fields)
            self._write()

    def end(self, state: State, *, reason: str = "", step: int | None = None) -> None:
        """Note how the attempt ended and give the run free; what was noted before stays."""
        known = self._status
        if self._ownership is None or self._lost or known.get("state") in ("finished", "stopped"):
            return
        self.close()
        step = known.get("step") if step is None else step
        self.status(state, reason=reason, step=step)
        with contextlib.suppress(OSError):  # whoever comes next sees that the process is gone
            self._ownership.end(state, reason, step)

    def tick(self, **fields: Any) -> None:
        """Note progress; a thread brings it to status.json every few seconds.

        Raises LostRunError once another attempt has the run.
        """
        if self._ownership is None:
            return  # not the rank that writes
        if self._lost is not None:
            raise self._lost
        self._set(**fields)
        self._changed = True
        self.begun |= "step" in fields

    def close(self) -> None:
        """End the thread that keeps status.json fresh."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _set(self, **fields: Any) -> None:
        self._status = {**self._status, "heartbeat": time.time(), **fields}

    def _write(self) -> None:
        try:
            if self._ownership is not None:
                self._ownership.check()
            self.files.write_status(self._status)
            self._printed_trouble = ""
        except LostRunError as error:
            self._lost = error
        except OSError as error:
            if str(error) != self._printed_trouble:
                self._printed_trouble = str(error)
                self._say(f"warning: status.json cannot be written: {error}; training goes on")

    def _keep_fresh(self) -> None:
        """Signs of life for whoever wants the run, and now and then the newest status."""
        written = time.monotonic()
        while not self._closed.wait(ALIVE_EVERY):
            with contextlib.suppress(OSError):  # status.json and saves say what is wrong
                self.ownership.alive()
            if self._changed and time.monotonic() - written >= _HEARTBEAT_SECONDS:
                with self._writing:
                    self._changed = False
                    self._write()
                written = time.monotonic()


def find_run(recipe: Recipe) -> RunFolder:
    """The folder this recipe's run lives in, by ``resume`` and ``run_dir``.

    auto: the folder of the run hash; never: a free folder beside it; a path: that run.
    """
    if recipe.resume not in ("auto", "never"):
        path = Path(recipe.resume).expanduser()
        recipe_file(path)
        return RunFolder(path)
    path = run_dir(recipe).expanduser()
    if recipe.resume == "never":
        number, first = 1, path
        while path.exists():
            number += 1
            path = first.with_name(f"{first.name}-{number}")
    return RunFolder(path)


def started() -> dict[str, Any]:
    """Who runs this attempt, and since when (UTC)."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
