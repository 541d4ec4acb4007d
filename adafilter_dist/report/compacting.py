"""What leaving out never chosen filters saves, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from adafilter_dist.data.stored.prepared import SplitName
from adafilter_dist.data.stored.views import PreparedSubset
from adafilter_dist.evaluate import Evaluation, Evaluator
from adafilter_dist.evaluate.gate_counts import GateCounts
from adafilter_dist.methods.export import COMPACT_FORMAT, read_config, write_files
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.models.gating.gate_overrides import observe_gates
from adafilter_dist.models.inference.compact import (
    compact,
    constant_gates,
    count_dropped,
    write_constant,
)
from adafilter_dist.system import files


@dataclass(frozen=True)
class Compacting:
    """Figures of a compacted export.

    ``differing`` of ``expected`` gates that are taken for granted would have been something else on
    the ``report`` split; sizes are the bytes of the weights as they are stored.
    """

    calibrated_on: str
    calibration_images: int
    report: str
    before: Evaluation
    after: Evaluation
    dropped: int
    filters: int
    bytes_before: int
    bytes_after: int
    differing: int
    expected: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the confusion matrices."""
        return self.__dict__ | {"before": self.before.to_dict(), "after": self.after.to_dict()}

    def _few(self) -> list[str]:
        """How much calibration cannot have seen, where that is more than one picture in a hundred.

        After n pictures without an exception 3 / n is the upper end of the 95 % interval.
        """
        share = 3 / max(1, self.calibration_images)
        if share <= 0.01:
            return []
        return [
            f"{'note':<12} they are few: a gate that was the same for all may choose otherwise for "
            f"up to {min(1, share):.0%} of other pictures (--split train has more)"
        ]

    def lines(self) -> list[str]:
        """The figures as plain lines."""
        before, after = self.before, self.after
        share = self.differing / self.expected if self.expected else 0.0
        return [
            f"{'calibrated':<12} {self.calibration_images:,} pictures of {self.calibrated_on}",
            *self._few(),
            f"{'dropped':<12} {self.dropped:,} of {self.filters:,} filter pairs lost the filter "
            f"that was never chosen ({self.dropped / self.filters:.1%})",
            f"{'size':<12} {self.bytes_before / 1e6:.1f} MB before, {self.bytes_after / 1e6:.1f} "
            "MB after",
            f"{'accuracy':<12} {before.top1:.2%} before, {after.top1:.2%} after, on {after.n:,} "
            f"pictures of {self.report}",
            f"{'gates':<12} {self.differing:,} of {self.expected:,} there would have been "
            f"something else ({share:.2%})",
        ]


def compact_export(
    net: AdaFilterNet,
    source: Path,
    out: Path,
    evaluator: Evaluator,
    *,
    calibrate: SplitName,
    images: int | None,
    report: SplitName,
) -> Compacting:
    """Find constant gates on ``calibrate``, write ``out``, measure on ``report``.

    ``net`` is the model of the export ``source``, on the rank's device. Collective; rank 0 writes.
    """
    calibrator = evaluator
    if images is not None:
        calibrator = replace(evaluator, prepared=PreparedSubset.of(evaluator.prepared, images))
    calibration = GateCounts(net.gate)
    with observe_gates(net, calibration.observe):
        calibrator.evaluate(net, calibrate)
    counts, seen, _, _ = calibration.complete()
    constant = constant_gates(counts, seen)
    small = compact(net, constant)
    dropped, filters = count_dropped(small, constant)

    check = GateCounts(net.gate, constant)
    with observe_gates(net, check.observe):
        before = evaluator.evaluate(net, report)
    _, _, differing, expected = check.complete()
    after = evaluator.evaluate(small, report)

    if evaluator.world.is_rank0:
        config = read_config(source)
        number = max(COMPACT_FORMAT, config["format"])
        entry = {"compact": write_constant(constant), "format": number}
        write_files(out, config | entry, small.state_dict())
    result = Compacting(
        calibrated_on=calibrate,
        calibration_images=seen,
        report=report,
        before=before,
        after=after,
        dropped=dropped,
        filters=filters,
        bytes_before=_bytes(net),
        bytes_after=_bytes(small),
        differing=differing,
        expected=expected,
    )
    if evaluator.world.is_rank0:
        files.write_json(out / "compacting.json", result.to_dict())
    return result


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())
