"""The gates of a few fixed pictures, before the first step and later: how far the gate moved.

The pictures are at most 256 of the validation split, evenly spaced (of the training split where
there is no validation), seen as in evaluation. So the figures depend on the network alone, not on
augmentation, noise of an estimator, or the number of ranks. Validation sees these pictures anyway;
before the first step, and of the best model at the end, they cost one pass each.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from adafilter_dist.data.stored.prepared import Prepared, SplitName
from adafilter_dist.data.stored.views import PreparedSubset
from adafilter_dist.evaluate.evaluator import Evaluator
from adafilter_dist.evaluate.forward_pass import outcomes_of
from adafilter_dist.evaluate.gate_groups import GroupCounts, unpacked
from adafilter_dist.evaluate.gate_recorder import GateRecorder
from adafilter_dist.system.files import write_bytes

PROBE = 256
"""Pictures of the probe, at most."""

MOVED = 0.05
"""A gate has left its start if a picture's share of fine-tuned filters changed by this much on
average. Bits that change to and fro, as those of an untrained gate do, leave that share as it is.
"""


@dataclass(frozen=True)
class ProbeGates:
    """Gates of the probe: ``bits`` uint8 (m, bytes) packed, ``labels`` int64 (m,).

    ``data`` is the fingerprint of the prepared data that the pictures are of.
    """

    split: SplitName
    data: str
    filters: int
    bits: NDArray[np.uint8]
    labels: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """The mean gate."""
        return float(self.shares().mean())

    def shares(self) -> NDArray[np.float64]:
        """(m,): the share of each picture's filters that are the fine-tuned ones."""
        return unpacked(self.bits, self.filters).mean(axis=1, dtype=np.float64)

    def same_gates(self, other: ProbeGates) -> bool:
        """Whether both are of the same pictures and filters."""
        return (self.split, self.data, self.filters, self.bits.shape) == (
            other.split,
            other.data,
            other.filters,
            other.bits.shape,
        )

    def write(self, path: Path) -> None:
        """Keep them in a file. Raises OSError."""
        content = io.BytesIO()
        np.savez_compressed(
            content,
            split=np.array(self.split),
            data=np.array(self.data),
            filters=np.array(self.filters),
            bits=self.bits,
            labels=self.labels,
        )
        write_bytes(path, content.getvalue())

    @staticmethod
    def read(path: Path) -> ProbeGates | None:
        """From such a file; None if it is missing or damaged."""
        try:
            with np.load(path) as file:
                return ProbeGates(
                    split=cast(SplitName, str(file["split"])),
                    data=str(file["data"]),
                    filters=int(file["filters"]),
                    bits=file["bits"],
                    labels=file["labels"],
                )
        except Exception:  # a damaged archive raises anything
            return None


@dataclass(frozen=True)
class GateMovement:
    """How the gates of the probe's ``pictures`` differ from those at the ``start``.

    ``start`` and ``mean`` are mean gates. ``moved`` is the mean over pictures of how much a
    picture's share of fine-tuned filters changed, ``changed`` the share of all bits that differ.
    ``between`` and ``within`` classes: `GroupCounts.variances`, of the gates as they are now.
    """

    split: SplitName
    pictures: int
    start: float
    mean: float
    moved: float
    changed: float
    between: float | None
    within: float | None

    @staticmethod
    def between_probes(start: ProbeGates, now: ProbeGates) -> GateMovement:
        """Compare two probes; ValueError if they are of other pictures or filters."""
        if not start.same_gates(now):
            raise ValueError("the two probes are not of the same pictures and filters")
        before, after = start.shares(), now.shares()
        classes = int(now.labels.max()) + 1
        variances = GroupCounts.of(now.bits, now.filters, now.labels, classes).variances()
        differing = unpacked(np.bitwise_xor(start.bits, now.bits), now.filters)
        return GateMovement(
            split=now.split,
            pictures=len(now.labels),
            start=start.mean,
            mean=now.mean,
            moved=float(np.abs(after - before).mean()),
            changed=float(differing.mean(dtype=np.float64)),
            between=None if variances is None else float(variances[0].mean()),
            within=None if variances is None else float(variances[1].mean()),
        )

    @property
    def drift(self) -> float:
        """The mean gate minus that at the start."""
        return self.mean - self.start

    def row(self) -> dict[str, float | None]:
        """For metrics.jsonl."""
        return {
            "gate_mean": self.mean,
            "gate_drift": self.drift,
            "gate_moved": self.moved,
            "gate_changed": self.changed,
            "gate_between": self.between,
            "gate_within": self.within,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**self.__dict__, "drift": self.drift}

    def warning(self) -> str | None:
        """What to say of a gate that never left its start."""
        if self.moved >= MOVED:
            return None
        kind = ""
        if min(self.start, self.mean) > 0.95:
            kind = " (all but plain fine-tuning)"
        elif max(self.start, self.mean) < 0.05:
            kind = " (all but feature extraction)"
        return (
            f"the mean gate never left its start: {self.start:.3f} before the first step, "
            f"{self.mean:.3f} now{kind}; the share of fine-tuned filters of a picture moved by "
            f"{self.moved:.3f} on average (less than {MOVED}), while {self.changed:.0%} of the "
            "bits changed; the gate of a run that learns nothing looks like this "
            "(docs/measures.md)"
        )


def probe_split(prepared: Prepared) -> SplitName:
    """Of which split the probe's pictures are."""
    return "val" if len(prepared.split("val")[1]) else "train"


def probe_gates(model: nn.Module, evaluator: Evaluator, split: SplitName) -> ProbeGates:
    """The gates of the probe: one pass over its pictures; collective."""
    evaluator = replace(evaluator, prepared=PreparedSubset.of(evaluator.prepared, PROBE))
    loader, settings = evaluator.loader(split), evaluator.settings
    recorder = GateRecorder(model, loader.total, settings.device)
    outcomes = outcomes_of(model, loader, settings, evaluator.num_classes, recorder)
    return ProbeGates(
        split,
        evaluator.prepared.fingerprint,
        recorder.filters,
        recorder.complete(),
        outcomes.labels.numpy(),
    )


class ValidationProbe:
    """The gates of the probe, recorded while the whole validation split is evaluated."""

    def __init__(self, model: nn.Module, evaluator: Evaluator) -> None:
        prepared = evaluator.prepared
        _, records, _ = prepared.split("val")
        _, taken, self._labels = PreparedSubset.of(prepared, PROBE).split("val")
        only = np.searchsorted(records, taken)
        self.recorder = GateRecorder(model, len(records), evaluator.world.device, only)
        self._data = prepared.fingerprint

    def complete(self) -> ProbeGates:
        """What was recorded; collective."""
        recorder = self.recorder
        return ProbeGates("val", self._data, recorder.filters, recorder.complete(), self._labels)
