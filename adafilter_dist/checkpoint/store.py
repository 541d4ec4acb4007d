"""The checkpoints of a run: whole folders, verified when read, the newest good one first."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adafilter_dist.atomic import fsync_folder
from adafilter_dist.checkpoint.files import (
    DamagedError,
    check_file,
    read_manifest,
    read_tensors,
    write_manifest,
    write_record,
    write_tensors,
)
from adafilter_dist.engine.base import FullState
from adafilter_dist.errors import UserError

FORMAT = 1
_FROZEN_COPIES = ("frozen.0.safetensors", "frozen.1.safetensors")


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
    for name, tensor in state.tensors():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NotFiniteError(f"{name} holds NaN or inf")


class Checkpoints:
    """Saves into and loads from ``<run>/checkpoints``; one process a run uses it to write.

    A checkpoint is written under a temporary name, every file fsynced, then renamed. Tensors named
    in ``frozen`` never change: they are written once a run, in two copies.
    """

    def __init__(self, run: Path, *, keep: int = 2, frozen: frozenset[str] = frozenset()) -> None:
        self.folder = run / "checkpoints"
        self._keep = keep
        self._frozen = frozen
        self._frozen_entry: dict[str, Any] | None = None
        self._good: set[int] = set()

    def save(self, state: FullState, position: Position, about: Mapping[str, Any]) -> Path:
        """Publish ``state`` at ``position`` and drop all but the newest; returns the folder.

        ``about`` (run hash, data fingerprint, environment) joins the manifest. Raises OSError
        where the disk refuses; the checkpoints before it stay.
        """
        target = self.folder / f"step-{position.step:09d}"
        if position.step in self._good and target.exists():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = self._write_frozen({n: t for n, t in state.model.items() if n in self._frozen})
        temporary = self.folder / f".{target.name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            manifest = {
                "format": FORMAT,
                "step": position.step,
                "files": self._write_files(temporary, state, position),
                "frozen": entry,
                **about,
            }
            write_manifest(temporary / "manifest.json", manifest)
            fsync_folder(temporary)
            if target.exists():  # it was found damaged, or this run would have resumed after it
                target.rename(_free_name(target.with_name(f"bad-{target.name}")))
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_folder(self.folder)
        self._good.add(position.step)
        self._drop_old()
        return target

    def _write_files(
        self, folder: Path, state: FullState, position: Position
    ) -> dict[str, dict[str, Any]]:
        parts = {
            "model": {n: t for n, t in state.model.items() if n not in self._frozen},
            "optimizer": state.optimizer,
            "ema": state.ema,
        }
        files = {
            f"{part}.safetensors": write_tensors(folder / f"{part}.safetensors", tensors)
            for part, tensors in parts.items()
            if tensors
        }
        record = {"position": asdict(position), "scaler": state.scaler}
        files["state.json"] = write_record(folder / "state.json", record)
        return files

    def _write_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
        if not tensors or self._frozen_entry is not None:
            return self._frozen_entry
        for name in _FROZEN_COPIES:
            temporary = self.folder / f".{name}.{os.getpid()}.tmp"
            self._frozen_entry = write_tensors(temporary, tensors)
            temporary.rename(self.folder / name)
            fsync_folder(self.folder)
        return self._frozen_entry

    def _drop_old(self) -> None:
        for old in sorted(self.folder.glob("step-*"))[: -self._keep]:
            # Renamed first: a half-deleted folder must not look like a checkpoint.
            gone = _free_name(old.with_name(f".{old.name}.gone"))
            old.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def steps(self) -> Iterator[Path]:
        """Folders of published checkpoints, the newest first."""
        yield from sorted(self.folder.glob("step-*"), reverse=True)

    def newest(self, say: Callable[[str], None]) -> Loaded | None:
        """The newest good checkpoint, None if the run has none.

        A damaged one is skipped and named through ``say``. When all are damaged: UserError, and
        nothing is deleted.
        """
        damaged: list[str] = []
        for folder in self.steps():
            try:
                loaded = self.load(folder)
            except DamagedError as error:
                damaged.append(f"{folder.name}: {error}")
                say(f"skipping a damaged checkpoint, {folder}: {error}")
                continue
            self._good.add(loaded.position.step)
            return loaded
        if damaged:
            raise UserError(
                f"{self.folder}: every checkpoint is damaged ({'; '.join(damaged)}); nothing was "
                "deleted; start afresh with resume=never"
            )
        return None

    def load(self, folder: Path) -> Loaded:
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
            part: read_tensors(folder / f"{part}.safetensors")
            if f"{part}.safetensors" in files
            else {}
            for part in ("model", "optimizer", "ema")
        }
        if manifest["frozen"]:
            parts["model"] |= self._read_frozen(manifest["frozen"])
        state = FullState(**parts, scaler=record["scaler"])
        return Loaded(folder, state, Position(**record["position"]), manifest)

    def _read_frozen(self, entry: dict[str, Any]) -> dict[str, Tensor]:
        """The frozen tensors from a good copy; a damaged copy is replaced at the next save."""
        problems: list[str] = []
        tensors: dict[str, Tensor] | None = None
        for name in _FROZEN_COPIES:
            try:
                check_file(self.folder / name, entry)
            except DamagedError as error:
                problems.append(str(error))
            else:
                tensors = tensors or read_tensors(self.folder / name)
        if tensors is None:
            raise DamagedError(f"both copies of the frozen weights: {'; '.join(problems)}")
        self._frozen_entry = None if problems else entry
        return tensors


def _free_name(path: Path) -> Path:
    number, free = 0, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
