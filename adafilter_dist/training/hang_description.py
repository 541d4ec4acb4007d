"""What is said of a rank that hangs: where its main thread is, and what its process waits for."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path

from adafilter_dist.distributed.heartbeats import Standing
from adafilter_dist.distributed.progress import OF_TIMEOUT
from adafilter_dist.run.ownership import Owner, this_process

_PACKAGE = str(Path(__file__).parents[1])
_STATES = {
    "T": "its process is stopped (SIGSTOP)",
    "t": "its process is held by a debugger",
    "D": "its process waits for a device or a file system",
    "Z": "its process has ended",
}


def describe_hang(rank: int, standing: Standing | None, owner: Owner | None, now: float) -> str:
    """A line on a rank, by its last heartbeat and, on this machine, by its process."""
    name = f"rank {rank}" + (f" on {owner.host}" if owner is not None else "")
    if standing is None:
        return f"{name} hung: no sign of life"
    beat = standing.beat
    step = "" if beat.step is None else f" of step {beat.step}"
    where, still = f"{beat.where}{step}", f"{standing.still(now):.0f} s"
    if beat.frame:
        return f"{name} hung in {where}, not moving for {still} (at {beat.frame})"
    how = _process_state(owner) if owner is not None else ""
    how = how or "its process is stopped, or its node or its network is lost"
    return f"{name} hung, last heard of {still} ago in {where} ({how})"


def limit_key(standing: Standing | None, timeout: float) -> str:
    """The key by which a rank that did not move would have had longer; empty for a silent one."""
    if standing is None or not standing.beat.frame or standing.beat.limit is None:
        return ""
    return "engine.timeout" if standing.beat.limit >= OF_TIMEOUT * timeout else "engine.hang"


def _process_state(owner: Owner) -> str:
    """Why a process of this machine sends no heartbeats; empty for another machine's."""
    if owner.machine != this_process().machine:
        return ""
    try:
        state = Path("/proc", str(owner.pid), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "its process is gone"
    return _STATES.get(state, "one of its threads holds Python's interpreter")


def place_of(thread: int) -> str:
    """Where a thread of this process is: its innermost line, and the innermost of this package."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    calls = list(traceback.walk_stack(frame))  # the innermost first
    own = [one for one in calls if one[0].f_code.co_filename.startswith(_PACKAGE)]
    places = [
        f"{os.path.basename(code.co_filename)}:{line} in {code.co_name}"
        for code, line in ((frame.f_code, line) for frame, line in (*calls[:1], *own[:1]))
    ]
    return ", from ".join(dict.fromkeys(places))


def describe_thread(task: Path) -> str:
    """Name of a thread of the kernel, its state, and what it waits for; ``task`` is in /proc."""
    words = []
    for name in ("comm", "stat", "wchan"):
        with contextlib.suppress(OSError):
            text = (task / name).read_text().strip()
            words.append(text.rpartition(")")[2].split()[0] if name == "stat" else text)
    return " ".join(words)
