"""Where the time of a training step goes, or of a forward at inference, beside the floor.

    python benchmarks/profile_step.py train
    python benchmarks/profile_step.py infer               # batches 1, 8 and 64, random gates

Plain fine-tuning beside AdaFilter's fused layer; at inference plain with BatchNorm folded beside
`for_inference`. Times are those of torch.profiler in parts (grouping.py), the mean over --repeats
calls after two that do not count; the last row is the whole call without a profiler, of which the
parts lack what passes between operations. *gap* is a part's share of what AdaFilter takes above the
sum of its floors (floor.py).
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

# Before torch is imported: see adafilter_dist/__main__.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bench import inference, training
from bench.floors import Floors, floors
from bench.grouping import PARTS, seconds_by_part
from bench.peaks import measure_machine
from bench.reporting import Column, Table, facts, require_folder, say, write
from bench.settings import parse
from bench.timing import Spread, interleave, phase
from bench.variants import FOLDED, FUSED, PLAIN, SELECTED, Networks
from torch import nn
from torch.profiler import record_function

from adafilter_dist.models.gating.step_statistics import update_statistics
from adafilter_dist.system.exit_code import exit_code

COLUMNS = [
    Column("batch", 0),
    Column("part"),
    Column("plain ms", 2),
    Column("floor ms", 2),
    Column("AdaFilter ms", 2),
    Column("AdaFilter floor ms", 2),
    Column("to plain", 2),
    Column("gap %", 0),
]
WHOLE = "whole, not profiled"


@dataclass
class Subject:
    """Something to be profiled: a call, and the network it calls."""

    call: Callable[[], Mapping[str, float]]
    net: nn.Module
    stop_policy: Callable[[], AbstractContextManager[Any]] = nullcontext


def main(words: Sequence[str] | None = None) -> int:
    """0 done, 2 bad input, 130 after Ctrl-C."""
    settings = parse(__doc__ or "", words, what=("train", "infer"), repeats=3)
    settings.pin()
    require_folder(settings)
    own = facts(settings)
    trains = settings.what == "train"
    networks = Networks(settings)
    title = "training step" if trains else "inference"
    table = Table(f"Where the time goes: {title}, {settings.model}, {settings.size} px", COLUMNS)
    for batch in settings.batches(training.BATCHES if trains else inference.BATCHES):
        say(f"batch {batch}")
        machine = measure_machine(settings.device, settings.dtype)
        plain, ours = (train_pair if trains else infer_pair)(networks, batch)
        whole = interleave({"plain": plain.call, "ours": ours.call}, max(3, settings.repeats), say)
        machine = machine.best(measure_machine(settings.device, settings.dtype))
        bounds = floors(networks, batch, machine, training=trains)
        parts = [profiled(subject, networks) for subject in (plain, ours)]
        add_rows(table, batch, parts, bounds)
        key = "step" if trains else "forward"
        medians = [Spread.of(phase(whole[name], key)).median for name in ("plain", "ours")]
        add_whole(table, batch, medians, bounds)
    named = dataclasses.replace(settings, what=f"profile-{settings.what}")
    write(named, table, networks.missing, own)
    return 0


def train_pair(networks: Networks, batch: int) -> tuple[Subject, Subject]:
    """Steps of plain fine-tuning and of AdaFilter."""
    subjects = []
    for name in (PLAIN, FUSED):
        step = _Labelled(networks.make(name), networks, batch, compiled=False)
        subjects.append(Subject(step, step.net))
    return subjects[0], subjects[1]


class _Labelled(training.TrainingStep):
    """Marks AdaFilter's statistics, which no operation tells from others."""

    def update(self) -> None:
        self.optimizer.step()
        if self._gathers:
            with record_function("part: BatchNorm + selection"):
                update_statistics(self.net)


def infer_pair(networks: Networks, batch: int) -> tuple[Subject, Subject]:
    """Forwards of the folded network and of AdaFilter with random gates."""
    settings = networks.settings
    images = [networks.images(batch)]
    folded, net = networks.make(FOLDED).eval(), networks.make(SELECTED).eval()
    bits = inference.RandomGates(networks.channels, batch, settings.device, settings.seed)
    plain = inference.Forward(folded, images, settings, None)
    ours = inference.Forward(net, images, settings, bits)
    return Subject(plain, folded), Subject(ours, net)


def profiled(subject: Subject, networks: Networks) -> dict[str, float]:
    """Seconds by part."""
    settings = networks.settings
    call = subject.call
    work: Callable[[], Any] = call.logits if isinstance(call, inference.Forward) else call
    return seconds_by_part(
        work,
        subject.net,
        [conv for conv, _ in networks.pairs],
        device=settings.device,
        times=settings.repeats,
    )


def add_rows(table: Table, batch: int, parts: Sequence[Mapping[str, float]], floor: Floors) -> None:
    """A row for each part that takes any time."""
    plain, ours = parts
    gap = sum(ours.values()) - sum(floor.ours.values())
    for part in PARTS:
        if not plain[part] and not ours[part]:
            continue
        least = floor.ours.get(part, 0.0)
        table.add(
            batch,
            part,
            1000 * plain[part],
            1000 * floor.plain.get(part, 0.0),
            1000 * ours[part],
            1000 * least,
            ours[part] / plain[part] if plain[part] > 1e-5 else None,
            100 * (ours[part] - least) / gap if gap else None,
        )
    a, b = (sum(part.values()) for part in parts)
    add_sum(table, batch, "sum", (a, b), floor)


def add_whole(table: Table, batch: int, medians: Sequence[float], floor: Floors) -> None:
    """The call without a profiler."""
    add_sum(table, batch, WHOLE, (medians[0], medians[1]), floor)


def add_sum(table: Table, batch: int, name: str, times: tuple[float, float], floor: Floors) -> None:
    """A row over all parts."""
    a, b = times
    least = [1000 * sum(kinds.values()) for kinds in (floor.plain, floor.ours)]
    table.add(batch, name, 1000 * a, least[0], 1000 * b, least[1], b / a, None)


if __name__ == "__main__":
    sys.exit(exit_code(main))
