"""A process that has imported everything and forks one attempt after the other.

Importing torch and what belongs to it takes seconds, an attempt that is killed soon takes less. A
forked child runs the real command, ``adafilter_dist.__main__.main``, and leaves as a real process
does, but for taking its modules apart: a second of work that nobody sees. Only imports may happen
before: a thread that was started there would not exist in a child.

One JSON object a line on the socket whose number is the first argument; names of modules to import
as well follow it. Asked is ``words``,
``folder``, ``environment``, ``clean`` (without the server's own environment), ``output`` (a file),
``stopped`` (begin with SIGSTOP, for a tracer), ``figures`` (whether they are drawn) and ``before``
(empty, or a module and its function, called with the words after them; the whole attempt where
``words`` is empty). Told are process
ids: ``forked``; ``stopped`` where that was asked for; ``ended`` with the exit ``code`` (negative:
the signal); and ``gone`` once nothing that an ended attempt has started is left.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

IMPORTS = (
    *("torch", "torch.distributed", "torchvision", "rich.progress"),
    *(
        "adafilter_dist.training.attempt",
        "adafilter_dist.training.final_report",
        "adafilter_dist.training.dry_run",
    ),
    *(f"adafilter_dist.commands.{verb}" for verb in ("prepare", "train", "resume", "evaluate")),
)
# Where they are installed. ffcv itself starts numba's threads: it is left to the child.
EXTRAS = (
    *("timm", "numba", "llvmlite.binding", "cv2"),
    "adafilter_dist.data.loading.numba_backend",  # its compiled code is read meanwhile
)
_SET_CHILD_SUBREAPER = 36


def main() -> NoReturn:
    """Serve until the other end closes the socket; a child runs a command and leaves."""
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()  # or a fifth of the time goes into looking for garbage in what is imported
    for name in (*IMPORTS, *sys.argv[2:]):
        importlib.import_module(name)
    for name in EXTRAS:
        with suppress(ImportError):
            importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("importing has started threads, which a forked child would not have")
    # What is imported stays: collecting garbage need not look at it, nor copy its pages for that.
    gc.collect()
    gc.freeze()
    gc.enable()
    # Orphans become children of this process, so that it learns when the last has ended.
    ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_in, wake_out = os.pipe()
    os.set_blocking(wake_in, False)
    os.set_blocking(wake_out, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_out)
    _say(control, ready=True)

    lines = control.makefile("rb", buffering=0)
    running: set[int] = set()
    ended: set[int] = set()
    while True:
        ready, _, _ = select.select([control, wake_in], [], [])
        if wake_in in ready:
            os.read(wake_in, 4096)
            ended |= _reap(control, running)
            running -= ended
            if not _children() - running:
                for pid in ended:
                    _say(control, gone=pid)
                ended.clear()
        if control in ready:
            line = lines.readline()
            if not line:
                _leave(0)
            request = json.loads(line)
            # Before the child exists: whoever asked may close its end of a pipe when it is told.
            output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in (wake_in, wake_out, control.detach()):
                    os.close(descriptor)
                _leave(_attempt(request, output))
            os.close(output)
            running.add(pid)
            _say(control, forked=pid)


def _say(control: socket.socket, **answer: Any) -> None:
    control.sendall(json.dumps(answer).encode() + b"\n")


def _reap(control: socket.socket, running: set[int]) -> set[int]:
    """Collect what has ended; those that were attempts."""
    attempts = set()
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return attempts
        if pid == 0:
            return attempts
        if os.WIFSTOPPED(status):
            if pid in running:  # or it is an orphan
                _say(control, stopped=pid)
        elif pid in running:
            attempts.add(pid)
            _say(control, ended=pid, code=os.waitstatus_to_exitcode(status))


def _children() -> set[int]:
    me = os.getpid()
    return {int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()}


def _attempt(request: dict[str, Any], output: int) -> int:
    os.setsid()
    os.chdir(request["folder"])
    if request["clean"]:
        os.environ.clear()
    os.environ.update(request["environment"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)
    if not request["figures"]:
        # As where they are not installed: figure and page take as long as twenty of these steps.
        sys.modules["matplotlib"] = None  # type: ignore[assignment]
        sys.modules["jinja2"] = None  # type: ignore[assignment]
    if request["stopped"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    if request["before"]:
        module, function, *words = request["before"]
        code = getattr(importlib.import_module(module), function)(*words)
        if not request["words"]:
            return int(code or 0)
    return int(importlib.import_module("adafilter_dist.__main__").main(request["words"]))


def _leave(code: int) -> NoReturn:
    """What an interpreter does at its end, before it takes its modules apart."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
