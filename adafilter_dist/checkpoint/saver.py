"""Saves without holding up training: copies the state to shared memory; a process writes it."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import subprocess
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import adafilter_dist
from adafilter_dist.checkpoint import writer
from adafilter_dist.checkpoint.image import Image, fill, lay_out
from adafilter_dist.checkpoint.publish import set_aside_after
from adafilter_dist.checkpoint.store import Position
from adafilter_dist.engine.base import FullState
from adafilter_dist.run.ownership import Ownership


@dataclass(frozen=True)
class Saved:
    """A published checkpoint: its folder's name, its bytes, the seconds it took to write."""

    step: int
    folder: str
    size: int
    seconds: float


@dataclass(frozen=True)
class Failed:
    """A save that did not happen, and why; ``lost``: another attempt has the run now."""

    step: int
    error: str
    lost: bool = False


class Saver:
    """Saves the checkpoints of one attempt, the newest ``keep``; made by the main thread."""

    def __init__(self, ownership: Ownership, *, keep: int = 2) -> None:
        self._ownership = ownership
        self._keep = keep
        self._frozen: frozenset[str] = frozenset()
        self._frozen_entry: Mapping[str, Any] | None = None
        self._newest: int | None = None
        self._descriptor = os.memfd_create("adafilter-checkpoint")
        self._memory: mmap.mmap | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: int | None = None  # the step of the save under way
        self._results: deque[Saved | Failed] = deque()
        self._start()

    def start_from(
        self,
        frozen: frozenset[str],
        frozen_entry: Mapping[str, Any] | None,
        resumed_step: int | None,
    ) -> None:
        """Say from which checkpoint the attempt starts, before its first save.

        ``frozen`` names the tensors that never change. They are written once a run, in two copies,
        unless ``frozen_entry`` (their manifest entry) says that both are good. ``resumed_step`` is
        that of the checkpoint the attempt resumed; later checkpoints are renamed, not used.
        """
        if resumed_step is not None:
            set_aside_after(self._ownership, resumed_step)
        self._frozen, self._frozen_entry, self._newest = frozen, frozen_entry, resumed_step

    @property
    def writing(self) -> bool:
        """Whether a save is under way."""
        return self._pending is not None

    def save(
        self,
        state: FullState,
        position: Position,
        about: Mapping[str, Any],
        files_to_sync: Sequence[Path] = (),
    ) -> None:
        """Copy ``state`` and have it published at ``position``; waits for the previous save.

        ``about`` (run hash, data fingerprint, environment) is added to the manifest.
        ``files_to_sync`` are synced to disk first. :meth:`result` says how it went, also if the
        save could not even begin.
        """
        # One save at a time: there is one shared memory. Nothing to do if this step is saved.
        self._collect(wait=True)
        if position.step == self._newest:
            return

        # Training stands still for this copy only.
        try:
            request = self._copy(state)
        except (OSError, MemoryError) as error:
            self._results.append(Failed(position.step, f"no memory for the copy: {error}"))
            return
        request |= {
            "step": position.step,
            "record": {"position": asdict(position), "scaler": state.scaler},
            "about": about,
            "files_to_sync": [str(path) for path in files_to_sync],
        }

        # Hand the request to the writing process, and start another one if it has died.
        line = json.dumps(request, allow_nan=False).encode() + b"\n"
        if self._process is None or self._process.poll() is not None:
            self._start()
        self._pending = position.step
        with contextlib.suppress(BrokenPipeError):  # _collect() finds that the writer is gone
            while line:
                line = line[self._pipe_in().write(line) :]

    def result(self, *, wait: bool = False) -> Saved | Failed | None:
        """How a save went, reported once; None while it is under way or if nothing was saved."""
        self._collect(wait=wait)
        return self._results.popleft() if self._results else None

    def _collect(self, *, wait: bool) -> None:
        """Take the writer's answer for the save under way, if there is one."""
        if self._pending is None:
            return
        answers = self._pipe_out()
        if not wait and not select.select([answers], [], [], 0)[0]:
            return
        step, self._pending = self._pending, None
        line = answers.readline()
        if not line.endswith(b"\n"):
            assert self._process is not None
            how = _how(self._process.wait())
            self._results.append(
                Failed(step, f"the writer's process ended before its time ({how})")
            )
            return
        answer = json.loads(line)
        if "error" in answer:
            self._results.append(Failed(step, answer["error"], answer["lost"]))
            return
        self._frozen_entry = answer["frozen"]
        self._newest = step
        self._results.append(Saved(step, answer["folder"], answer["size"], answer["seconds"]))

    def close(self, *, kill: bool = False) -> None:
        """End the process, after the save under way unless ``kill``; closing twice is fine."""
        if self._process is not None:
            if kill:
                self._process.kill()
            self._process.communicate()
            self._process = None
            os.close(self._descriptor)

    def _copy(self, state: FullState) -> dict[str, Any]:
        """Copy the state to the shared memory; returns where each file's bytes are in it."""
        parts = {
            "model.safetensors": {n: t for n, t in state.model.items() if n not in self._frozen},
            "optimizer.safetensors": state.optimizer,
            "ema.safetensors": state.ema,
        }
        frozen = {n: t for n, t in state.model.items() if n in self._frozen}
        if frozen and self._frozen_entry is None:
            parts["frozen"] = frozen
        images = {name: lay_out(tensors) for name, tensors in parts.items() if tensors}
        size = sum(image.room for image in images.values())
        memory = self._memory_of(size)
        ranges: dict[str, list[int]] = {}
        for name, begin, image in _placed(images):
            fill(memory, begin, image, parts[name])
            ranges[name] = [begin, begin + image.size]
        return {
            "bytes": size,
            "frozen": ranges.pop("frozen", self._frozen_entry),
            "images": ranges,
        }

    def _memory_of(self, size: int) -> mmap.mmap:
        """The shared memory, at least ``size`` bytes of it; OSError where there is too little."""
        if self._memory is None or len(self._memory) < size:
            # Allocated now, so that want of memory is an error here and not a crash while copying.
            os.posix_fallocate(self._descriptor, 0, size)
            self._memory = mmap.mmap(self._descriptor, size)
        return self._memory

    def _start(self) -> None:
        """Start the writer. Signals that it ignores are blocked meanwhile, so none can kill it."""
        arguments = [
            *(str(self._ownership.run.absolute()), str(self._ownership.attempt), str(self._keep)),
            *(str(self._descriptor), str(os.getpid())),
        ]
        home = str(Path(adafilter_dist.__file__).parent.parent)
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, writer.IGNORED)
        try:
            self._process = subprocess.Popen(
                [*writer.command(), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=[self._descriptor],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _pipe_in(self) -> Any:
        assert self._process is not None
        return self._process.stdin

    def _pipe_out(self) -> Any:
        assert self._process is not None
        return self._process.stdout


def _placed(images: Mapping[str, Image]) -> Iterator[tuple[str, int, Image]]:
    begin = 0
    for name, image in images.items():
        yield name, begin, image
        begin += image.room


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
