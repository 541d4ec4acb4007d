"""Ends an attempt in which a rank hangs: names it, writes all stacks down, records the run's end.

A thread of each rank judges by the heartbeats of all (`distributed.heartbeats`). Nothing is asked
of the main thread, which may never come back: the process ends by ``os._exit``. So nothing that
the main thread was about to save is ever saved.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from adafilter_dist.distributed import World
from adafilter_dist.distributed.exit_after import within
from adafilter_dist.distributed.heartbeats import Heartbeats, hung_ranks, silent_ranks
from adafilter_dist.errors import resume_line
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.base import seconds
from adafilter_dist.run.files import RunFiles, new_event
from adafilter_dist.run.ownership import is_running, this_process
from adafilter_dist.training.hang_description import (
    describe_hang,
    describe_thread,
    limit_key,
    place_of,
)

PERIOD = 2.0
"""Seconds between heartbeats; less where engine.hang is short."""

_STACKS_SECONDS = 5.0  # for every rank to write its stacks, on a disk that may be the cause
_RECORD_SECONDS = 10.0
_OTHERS_SECONDS = 120.0  # for the rank that records and requeues
_DEBUGGERS = ("pdb.py", "bdb.py", "pydevd.py")


class HangWatch:
    """Around an attempt, from its number to its end, on every rank; also where there is only one.

    ``requeue`` is called with the reason by the rank that records the end, before it leaves.
    """

    def __init__(
        self,
        recipe: Recipe,
        world: World,
        run: Path,
        attempt: int,
        requeue: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._world = world
        self._run = run
        self._files = RunFiles(run).attempt(attempt)
        self._requeue = requeue
        self._hang = recipe.engine.hang
        self._timeout = seconds(recipe.engine.timeout)
        asked = None if self._hang in (None, "auto") else seconds(self._hang)
        self._asked = asked
        self._period = min(PERIOD, (asked or self._timeout) / 10)
        self._beats = Heartbeats(
            world.store, world.rank, world.world_size, world.progress, self._period
        )
        self._main = threading.main_thread().ident or 0
        self._closed = threading.Event()
        self._stacks: io.TextIOWrapper | None = None
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)

    def __enter__(self) -> HangWatch:
        if self._hang is not None:
            with contextlib.suppress(OSError):
                self._stacks = self._files.stacks(self._world.rank).open("w")
            self._world.progress.watch(self._asked, self._timeout)
            self._beats.start()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._hang is None:
            return
        self._closed.set()
        self._thread.join()  # for ever once a hang is judged: that thread ends the process
        faulthandler.cancel_dump_traceback_later()
        self._world.progress.unwatch()
        self._beats.close()
        if self._stacks is not None:
            self._stacks.close()
            with contextlib.suppress(OSError):
                if not os.path.getsize(self._stacks.name):
                    os.unlink(self._stacks.name)

    # -- the thread that judges

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(self._period):
            now = time.monotonic()
            gap, before = now - before - self._period, now
            if gap > 3 * self._period:
                # This process itself did not run: suspended, or another thread held the
                # interpreter. It can tell nothing of that time.
                self._beats.pardon(gap)
                self._world.progress.pardon(gap)
            self._expect(now)
            ranks = self._judge(now)
            if ranks and not self._in_debugger():
                try:
                    self._end(ranks)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)

    def _expect(self, now: float) -> None:
        """Have all stacks written if this thread does not run either: the interpreter is held.

        That is no more than a note; whether the rank is hung, the others judge.
        """
        progress = self._world.progress
        left = progress.step_limit - (now - progress.place.since)
        faulthandler.dump_traceback_later(
            max(left, 4 * self._period), file=self._stacks or sys.stderr
        )

    def _judge(self, now: float) -> list[int]:
        """The ranks that are hung, as this rank sees it, or as another one has told."""
        standings = self._beats.standings()
        told = [rank for one in standings for rank in one.beat.hung]
        if told:
            return sorted(set(told))
        unanswered = now - self._beats.answered
        if unanswered > 3 * self._period:
            # Of the others nothing is known. The store is kept by rank 0, or by torchrun's agent.
            progress = self._world.progress
            late = unanswered > max(progress.step_limit, 3 * self._period)
            return [0] if late and progress.silence is not None else []
        silent = silent_ranks(standings, now, self._period)
        return silent or hung_ranks(standings, now)

    def _in_debugger(self) -> bool:
        frame: FrameType | None = sys._current_frames().get(self._main)
        while frame is not None:
            if os.path.basename(frame.f_code.co_filename) in _DEBUGGERS:
                return True
            frame = frame.f_back
        return False

    # -- the end

    def _end(self, ranks: Sequence[int]) -> None:
        """Write stacks, and agree on who records the end."""
        faulthandler.cancel_dump_traceback_later()
        mine = self._world.rank in ranks
        within(_STACKS_SECONDS, self._write_stacks)
        self._beats.tell(ranks, place_of(self._main) or "?")
        self._await(self._all_have_written, _STACKS_SECONDS)
        if mine and self._world.world_size > len(ranks):
            # A rank that is well records it rather than one that may hang at the next file, too.
            self._await(self._is_over, 2 * self._period)
        reason = self._reason(ranks)
        if not self._is_over() and within(_RECORD_SECONDS, self._claim) is not False:
            within(_RECORD_SECONDS, lambda: self._record(reason))
            _say(f"error: {reason}; {self._advice(ranks)}")
            self._kill(ranks)
            with contextlib.suppress(Exception):
                self._requeue(reason)
            self._beats.tell(ranks, over=True)
            time.sleep(2 * self._period)  # for the others to hear of it
        else:
            self._await(self._is_over, _OTHERS_SECONDS)
            _say(f"error: rank {self._world.rank} ends: {reason}")

    def _write_stacks(self) -> None:
        file = self._stacks
        if file is None:
            faulthandler.dump_traceback(all_threads=True)
            return
        faulthandler.dump_traceback(file, all_threads=True)
        for task in sorted(os.listdir("/proc/self/task")):
            file.write(f"thread {task}: {describe_thread(Path('/proc/self/task', task))}\n")
        file.flush()

    def _all_have_written(self) -> bool:
        now = time.monotonic()
        return all(
            one.beat.frame or now - one.came > 3 * self._period for one in self._beats.standings()
        )

    def _is_over(self) -> bool:
        over = any(one.beat.over for one in self._beats.standings())
        return over or bool(self._beats.lost)

    def _await(self, condition: Callable[[], bool], longest: float) -> None:
        until = time.monotonic() + longest
        while not condition() and time.monotonic() < until:
            time.sleep(self._period / 4)

    def _reason(self, ranks: Sequence[int]) -> str:
        now = time.monotonic()
        by_rank = {one.rank: one for one in self._beats.standings()}
        owner = self._beats.owner
        parts = [describe_hang(r, by_rank.get(r), owner(r), now) for r in ranks[:4]]
        more = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
        everyone = len(ranks) == self._world.world_size > 1
        return ("all ranks wait for each other: " if everyone else "") + "; ".join(parts) + more

    def _advice(self, ranks: Sequence[int]) -> str:
        first = next((one for one in self._beats.standings() if one.rank == ranks[0]), None)
        key = limit_key(first, self._timeout)
        longer = f"if it was slow and did not hang, raise {key}; " if key else ""
        return (
            f"{longer}stacks of all threads: {self._files.folder}/stacks.*.txt; nothing is saved "
            f"from here on; go on with: {resume_line(self._run)}"
        )

    def _claim(self) -> bool:
        """Whether this rank is the first to record the hang."""
        try:
            self._files.hung.open("x").close()
        except FileExistsError:
            return False
        return True

    def _record(self, reason: str) -> None:
        """The run has failed, and is free for the next attempt."""
        files = RunFiles(self._run)
        status = files.read_status()
        step = self._world.progress.place.step
        step = status.get("step") if step is None else step
        note = {"reason": reason, "by": self._world.rank, "time": time.time()}
        self._files.hung.write_text(json.dumps(note) + "\n")
        files.note_state(status, "failed", reason)
        files.add_event(new_event("hung", reason=reason, step=step))
        self._files.write_end("failed", reason, status.get("step"))

    def _kill(self, ranks: Sequence[int]) -> None:
        """End the hung ranks of this machine; those of others are their launcher's to end."""
        me = this_process()
        for rank in ranks:
            owner = self._beats.owner(rank)
            if owner is None or rank == self._world.rank or owner.machine != me.machine:
                continue
            if is_running(owner):
                with contextlib.suppress(OSError):
                    os.kill(owner.pid, signal.SIGKILL)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
