"""Killing a process at one of its system calls, with strace."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What writes, syncs, renames, or makes or removes a name.
CALLS = (
    *("openat", "creat", "write", "writev", "pwrite64", "copy_file_range", "sendfile"),
    *("fsync", "fdatasync", "sync_file_range", "ftruncate", "fallocate", "utimensat"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"),
    *("mkdir", "mkdirat", "rmdir", "unlink", "unlinkat"),
)
_LINE = re.compile(r"(\w+)\(")


@dataclass(frozen=True)
class Call:
    """A system call that a thread has made, the ``nth`` of this name (from 1).

    ``changing`` is how many of these, itself included, could change the disk.
    """

    name: str
    nth: int
    changing: int
    text: str

    @property
    def changes(self) -> bool:
        """Whether it can change the disk."""
        return _changes(self.name, self.text)

    @property
    def site(self) -> str:
        """What it does to which file of the run, without numbers: the same in every attempt."""
        inside = re.findall(r"/[0-9a-f]{8}(?:/([^\"<>]*))?[\">]", self.text)
        other = re.search(r"<(\w+):", self.text)
        place = (inside[-1] or ".") if inside else other[1] if other else "outside the run"
        if '\\"evaluation\\"' in self.text:
            place += ", an evaluation"
        return f"{self.name} {re.sub(r'[0-9]+', '#', place[:60])}"


def _changes(name: str, text: str) -> bool:
    """Opening changes only what it makes."""
    return name != "openat" or "O_CREAT" in text or "O_TRUNC" in text


def strace(log: Path, kill: Call | None) -> list[str]:
    """strace's words up to what it is to trace: one thread's CALLS go to ``log``.

    SIGKILL comes as the call ``kill`` is entered: it is not made.
    """
    names = ",".join(f"?{name}" for name in CALLS)
    words = ["strace", "-y", "-s", "24", "-o", str(log), "-e", f"trace={names}"]
    if kill is not None:
        words += ["-e", f"inject={kill.name}:signal=KILL:when={kill.nth}"]
    return words


def calls(log: Path) -> list[Call]:
    """What strace has written, in order."""
    found = []
    seen: Counter[str] = Counter()
    changing: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        if match := _LINE.match(line):
            name = match[1]
            seen[name] += 1
            changing[name] += _changes(name, line)
            found.append(Call(name, seen[name], changing[name], line))
    return found


def killed(log: Path) -> bool:
    """Whether what was traced ended by SIGKILL."""
    return "+++ killed by SIGKILL +++" in log.read_text(errors="replace")


def attach(pid: int, words: Sequence[str]) -> subprocess.Popen[str]:
    """Trace a stopped process by these words of strace; returns once it is attached."""
    tracer = subprocess.Popen([*words, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    if "attached" not in said:
        tracer.kill()
        tracer.communicate()
        raise RuntimeError(f"strace cannot attach to {pid}: {said}")
    return tracer
