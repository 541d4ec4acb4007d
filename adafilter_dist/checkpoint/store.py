"""Reads the checkpoints of a run, verified to the byte, the newest good one first."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from adafilter_dist.checkpoint.image import fill, lay_out
from adafilter_dist.checkpoint.publish import FORMAT, FROZEN_COPIES
from adafilter_dist.engine.base import FullState
from adafilter_dist.errors import UserError
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.sealed_files import DamagedError, check_file, read_manifest


@dataclass(frozen=True)
class Position:
    """Where a run is: ``step`` global batches consumed, ``validated`` epochs evaluated."""

    step: int = 0
    validated: int = 0
    best_metric: float | None = None
    best_epoch: int | None = None


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint: its state, position and manifest."""

    folder: Path
    state: FullState
    position: Position
    manifest: dict[str, Any]


class NotFiniteError(Exception):
    """A state with NaN or inf in it; such a state is never published."""


def check_finite(state: FullState) -> None:
    """NotFiniteError naming the first tensor of ``state`` that holds NaN or inf."""
    floats = {name: t.detach() for name, t in state.tensors() if t.is_floating_point()}
    # The fastest look at every element, and a device is waited for once. NaN and inf come through.
    if bool(torch.isfinite(torch.nn.utils.get_total_norm(list(floats.values())))):
        return
    for name, tensor in floats.items():  # finite numbers whose squares are not pass here
        if not bool(torch.isfinite(tensor).all()):
            raise NotFiniteError(f"{name} holds NaN or inf")


class Checkpoints:
    """Reads ``<run>/checkpoints``.

    ``frozen`` holds the tensors that never change, as the source weights give them: a run whose two
    copies are both damaged goes on with these if they are the same to the bit.
    """

    def __init__(self, run: Path, *, frozen: Mapping[str, Tensor] | None = None) -> None:
        self._files = RunFiles(run)
        self.folder = self._files.checkpoints
        self._source = frozen or {}
        self.frozen_entry: dict[str, Any] | None = None
        """Manifest entry of the frozen weights once read; None while a copy has to be written."""

    def steps(self) -> Iterator[Path]:
        """Folders of published checkpoints, the newest first."""
        yield from self._files.checkpoint_folders()

    def newest(self, say: Callable[[str], None]) -> Loaded | None:
        """The newest good checkpoint, None if the run has none.

        A damaged one is skipped and named through ``say``. When all are damaged: UserError, and
        nothing is deleted.
        """
        damaged: list[str] = []
        for folder in self.steps():
            try:
                return self.load(folder, say)
            except DamagedError as error:
                damaged.append(f"{folder.name}: {error}")
                say(f"skipping a damaged checkpoint, {folder}: {error}")
        if damaged:
            raise UserError(
                f"{self.folder}: every checkpoint is damaged ({'; '.join(damaged)}); nothing was "
                "deleted; start afresh with resume=never"
            )
        return None

    def load(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> Loaded:
        """Read and verify one checkpoint; DamagedError names what is wrong with it."""
        manifest = read_manifest(folder / "manifest.json")
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{folder}: checkpoint format {manifest['format']}, this version reads {FORMAT}"
            )
        files = manifest["files"]
        for name, entry in files.items():
            check_file(folder / name, entry)
        record = json.loads((folder / "state.json").read_text())
        parts = {
            part: load_file(folder / f"{part}.safetensors")
            if f"{part}.safetensors" in files
            else {}
            for part in ("model", "optimizer", "ema")
        }
        if manifest["frozen"]:
            parts["model"] |= self._read_frozen(manifest["frozen"], say)
        state = FullState(**parts, scaler=record["scaler"])
        return Loaded(folder, state, Position(**record["position"]), manifest)

    def _read_frozen(
        self, entry: dict[str, Any], say: Callable[[str], None]
    ) -> Mapping[str, Tensor]:
        """The frozen tensors from a good copy; damaged ones are replaced at the next save."""
        problems: list[str] = []
        undamaged: Path | None = None
        for name in FROZEN_COPIES:
            try:
                check_file(self.folder / name, entry)
            except DamagedError as error:
                problems.append(str(error))
                say(f"a damaged copy of the frozen weights is replaced: {self.folder}: {error}")
            else:
                undamaged = undamaged or self.folder / name
        self.frozen_entry = None if problems else entry
        if undamaged is not None:
            tensors: dict[str, Tensor] = load_file(undamaged)
            return tensors
        if self._source_hash() == entry["sha256"]:
            say("both copies of the frozen weights are damaged: taken from the source weights")
            return self._source
        raise DamagedError(f"both copies of the frozen weights: {'; '.join(problems)}")

    def _source_hash(self) -> str | None:
        if not self._source:
            return None
        image = lay_out(self._source)
        with mmap.mmap(-1, image.room) as memory:
            fill(memory, 0, image, self._source)
            return hashlib.sha256(memoryview(memory)[: image.size]).hexdigest()
