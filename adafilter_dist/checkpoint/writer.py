"""The process that writes a run's checkpoints, so that training does not wait for the disk.

    python -m adafilter_dist.checkpoint.writer RUN ATTEMPT KEEP MEMORY PARENT

Requests and answers are lines of JSON on stdin and stdout; the bytes to write lie in the shared
memory behind the descriptor MEMORY. The process ignores the signals that are meant for the training
and dies with it. Imports no torch.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adafilter_dist.checkpoint.publish import FROZEN_COPIES, Content, publish
from adafilter_dist.run.ownership import LostRunError, Ownership
from adafilter_dist.system.disk import no_space

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def command() -> list[str]:
    """The command line of the process, without its arguments."""
    return [sys.executable, "-m", "adafilter_dist.checkpoint.writer"]


def main(words: list[str]) -> None:
    """Serve requests until the training closes the pipe."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    run, attempt, keep, memory, parent = words
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent) and _grandparent() != int(parent):
        return  # it died before we could ask to die with it
    ownership = Ownership(Path(run), int(attempt))
    for line in sys.stdin.buffer:
        answer = _serve(ownership, int(keep), int(memory), json.loads(line))
        os.write(1, json.dumps(answer).encode() + b"\n")


def _grandparent() -> int:
    """The parent's parent process id: a tracer may be between training and writer."""
    status = Path(f"/proc/{os.getppid()}/stat").read_text()
    return int(status.rpartition(")")[2].split()[1])


def _serve(
    ownership: Ownership, keep: int, descriptor: int, request: Mapping[str, Any]
) -> dict[str, Any]:
    began = time.monotonic()
    step, place = request["step"], ownership.files.checkpoints
    with mmap.mmap(descriptor, request["bytes"], prot=mmap.PROT_READ) as memory:
        whole = memoryview(memory)
        images = {name: whole[a:b] for name, (a, b) in request["images"].items()}
        frozen = request["frozen"]
        if isinstance(frozen, list):
            frozen = whole[frozen[0] : frozen[1]]
        content = Content(step, images, request["record"], request["about"], frozen)
        try:
            files_to_sync = [Path(path) for path in request["files_to_sync"]]
            done = publish(ownership, content, keep=keep, files_to_sync=files_to_sync)
        except (OSError, ValueError, LostRunError) as error:
            # The error must not outlive this block: its traceback holds views of the shared memory.
            lost = isinstance(error, LostRunError)
            return {"step": step, "error": _reason(error, place, content), "lost": lost}
        finally:
            # The memory can only be closed once nothing looks into it.
            for view in (*images.values(), content.frozen, whole):
                if isinstance(view, memoryview):
                    view.release()
    return {
        "step": step,
        "folder": done.folder.name,
        "size": done.size,
        "frozen": done.frozen,
        "seconds": time.monotonic() - began,
    }


def _reason(error: Exception, place: Path, content: Content) -> str:
    """Why a save failed, in a line; of a full disk also what it needs."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return str(error)
    needed = sum(len(image) for image in content.images.values())
    if isinstance(content.frozen, memoryview):
        needed += len(FROZEN_COPIES) * len(content.frozen)
    over = " and the quota is used up" if error.errno == errno.EDQUOT else ""
    return no_space(place, needed, "a checkpoint") + over


if __name__ == "__main__":
    main(sys.argv[1:])
