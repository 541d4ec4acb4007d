"""Every state that a power cut could leave, at every moment of a recorded program, judged.

A moment is a prefix of the trace. Its states: nothing of what is pending arrived; all of it; each
item alone arrived, in each way it can; each item alone was lost; and a seeded sample of the rest.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from tests.powercut import disk, trace
from tests.powercut.disk import Disk, Tree
from tests.powercut.operations import (
    Close,
    Duplicate,
    Open,
    Operation,
    Said,
    Seek,
    Sync,
    TraceError,
)

SETTLED = "settled"
"""What a program says once it counts on the disk having all: minutes have passed."""

_SAMPLES = 12
_IN_MEMORY = Path("/dev/shm")
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Recording:
    """What a program found in a folder, did to it, and left there."""

    root: Path
    before: Tree
    operations: Sequence[Operation]
    after: Tree

    def syncs(self) -> dict[str, frozenset[int]]:
        """Where in the trace something is made durable, by the lines that ask for it."""
        found: dict[str, set[int]] = {}
        for at, done in enumerate(self.operations):
            if isinstance(done, Sync):
                found.setdefault(done.lines or f"unknown: {self.where(at)}", set()).add(at)
        return {lines: frozenset(places) for lines, places in found.items()}

    def where(self, at: int) -> str:
        """A place in the trace for people: the call and its neighbours of note."""
        before = [done for done in self.operations[:at] if not _idle(done)]
        after = [done for done in self.operations[at + 1 :] if not _idle(done)]
        lines = [*before[-1:], self.operations[at], *after[:1]]
        return "; then ".join(str(done)[:140].replace(str(self.root), "RUN") for done in lines)


def marked(module: str) -> list[str]:
    """The command line that runs a module and marks its syncs."""
    return [sys.executable, "-m", "tests.powercut.marked", module]


def record(command: Sequence[str], root: Path, log: Path, timeout: float = 120) -> Recording:
    """Run ``command root`` under strace.

    RuntimeError where it fails, TraceError where the model cannot follow it to the very bytes that
    it leaves.
    """
    root = root.resolve()
    before = disk.read(root)
    process = subprocess.Popen(
        [*trace.strace(log), *command, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        start_new_session=True,  # so that the time-out reaches the traced ones
    )
    try:
        _, errors = process.communicate(timeout=timeout)
    except BaseException:
        os.killpg(process.pid, 9)
        process.communicate()
        raise
    if process.returncode != 0:
        raise RuntimeError(f"{command} ended with {process.returncode}: {errors.decode()}")
    recording = Recording(root, before, trace.read(log, root), disk.read(root))
    _check_model(recording)
    return recording


def _check_model(recording: Recording) -> None:
    """TraceError unless the model ends with the very bytes that the program left."""
    model = Disk(recording.root, recording.before)
    for operation in recording.operations:
        model.apply(operation)
    now = model.now()
    wrong = [
        path
        for path in sorted(now.keys() | recording.after.keys())
        if path not in now or path not in recording.after or now[path] != recording.after[path]
    ]
    if wrong:
        raise TraceError(f"model and disk differ in {wrong}")


@dataclass(frozen=True)
class Violation:
    """A promise that one state breaks; ``at``: the last operation before the cut."""

    at: int
    said: str
    tree: Tree


@dataclass
class Replay(Generic[Seen]):
    """Judges states by ``look`` (what is seen in a folder) and ``judge`` (is that right?).

    ``judge`` gets what was seen and all that the program had said by then; it returns what is
    wrong, or None. What was seen in a state is remembered, so that each is loaded once.
    """

    recording: Recording
    look: Callable[[Path], Seen]
    judge: Callable[[Seen, Sequence[str]], str | None]
    seed: int = 0
    known: dict[bytes, Seen] = field(default_factory=dict)

    def states(
        self, without: frozenset[int] = frozenset(), *, when_said: bool = False
    ) -> Iterator[tuple[int, Sequence[str], Tree]]:
        """All states, in order of time: the last operation, what was said by then, what is there.

        ``without`` leaves some operations of the trace out; then only those states come for which
        this can make a difference. ``when_said``: only the moments at which the program has just
        said something.
        """
        draws = random.Random(self.seed)
        model = Disk(self.recording.root, self.recording.before)
        said: list[str] = []
        differs = not without
        for at, operation in enumerate(self.recording.operations):
            if at in without:
                differs = True
                continue
            model.apply(operation)
            if isinstance(operation, Said):
                said += operation.text.splitlines()
                if SETTLED in operation.text.splitlines():
                    model.settle()
                    differs = not without  # what was left out is made up for
            elif when_said or _idle(operation):
                continue
            if differs:
                for tree in _states(model, draws):
                    yield at, said, tree

    def violations(
        self, without: frozenset[int] = frozenset(), *, when_said: bool = False
    ) -> Iterator[Violation]:
        """The states of :meth:`states` that break a promise."""
        for at, said, tree in self.states(without, when_said=when_said):
            if (wrong := self.judge(self._seen(tree), said)) is not None:
                yield Violation(at, wrong, tree)

    def _seen(self, tree: Tree) -> Seen:
        key = _hash(tree)
        if key not in self.known:
            place = Path(tempfile.mkdtemp(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
            try:
                disk.write(tree, place)
                self.known[key] = self.look(place)
            finally:
                shutil.rmtree(place)
        return self.known[key]


def _idle(operation: Operation) -> bool:
    """Whether nothing came to the disk, so that the states are those of the moment before."""
    if isinstance(operation, Open):
        return not (operation.create or operation.truncate)
    return isinstance(operation, (Close, Seek, Duplicate))


def _states(model: Disk, draws: random.Random) -> Iterator[Tree]:
    items = model.items()
    # The likeliest to be wrong first: a search that stops at the first violation is short.
    for item in items:
        yield model.state({item: 0}, otherwise=1)
    yield model.state({}, otherwise=0)
    yield model.state({}, otherwise=1)
    for item, number in items.items():
        for outcome in range(1, number):
            yield model.state({item: outcome}, otherwise=0)
            if outcome > 1:
                yield model.state({item: outcome}, otherwise=1)
    if len(items) > 1:
        for _ in range(_SAMPLES):
            choice = {item: draws.randrange(number) for item, number in items.items()}
            yield model.state(choice, otherwise=0)


def _hash(tree: Tree) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path, content in sorted(tree.items()):
        digest.update(f"{path}\0{'-' if content is None else len(content)}\0".encode())
        digest.update(content or b"")
    return digest.digest()
