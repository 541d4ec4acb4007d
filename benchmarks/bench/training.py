"""Training steps side by side: plain fine-tuning, and AdaFilter in its variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from adafilter_dist.models.gating.step_statistics import gathering_modules, update_statistics
from bench.floors import Floors, floors
from bench.peaks import Machine, measure_machine
from bench.reporting import Column, Table, say
from bench.settings import Settings
from bench.timing import Clock, Ratio, Sample, Spread, interleave, phase
from bench.variants import FUSED, OF_ALL, PLAIN, TRAINED, Networks

BATCHES = (16,)
PHASES = ("step", "forward", "backward", "update")
COLUMNS = [
    Column("batch", 0),
    Column("variant"),
    Column("phase"),
    Column("ms", 1),
    Column("q1", 1),
    Column("q3", 1),
    Column("to plain", 3),
    Column("by round", 3),
]
RATE = 1e-4  # small: many steps on one batch of noise must stay finite
LEGEND = (
    "step: zero_grad, forward with the loss, backward, update (SGD with momentum, and AdaFilter's "
    "statistics). ms: median over the rounds, with quartiles. to plain: ratio of the medians; by "
    "round: median of the rounds' ratios."
)


class TrainingStep:
    """A network of its own with its optimizer; a call is one step on the same images.

    The last loss is kept in `loss`.
    """

    def __init__(self, net: nn.Module, networks: Networks, batch: int, *, compiled: bool) -> None:
        self.settings = networks.settings
        self.net = net.train()
        self._forward = torch.compile(net) if compiled else net
        self._gathers = bool(gathering_modules(net))
        self._images, self._labels = networks.images(batch), networks.labels(batch)
        trained = [p for p in net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=RATE, momentum=0.9, weight_decay=1e-4)
        self._clock = Clock(self.settings.device)
        self.loss = torch.zeros(())

    def __call__(self) -> Sample:
        self._clock.start()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward()
        self._clock.mark()
        loss.backward()
        self._clock.mark()
        self.update()
        self._clock.mark()
        forward, backward, update = self._clock.phases()
        self.loss = loss.detach()
        whole = forward + backward + update
        return dict(zip(PHASES, (whole, forward, backward, update), strict=True))

    def forward(self) -> Tensor:
        """The loss on the images."""
        with self.settings.autocast():
            logits = self._forward(self._images)
        return functional.cross_entropy(logits.float(), self._labels)

    def update(self) -> None:
        """The optimizer's step, and AdaFilter's once a step."""
        self.optimizer.step()
        if self._gathers:
            update_statistics(self.net)


def steps_of(networks: Networks, batch: int) -> dict[str, TrainingStep]:
    """A step for each variant; with --compile also plain and ours under torch.compile."""
    ways = [(name, False) for name in TRAINED]
    if networks.settings.compile:
        ways += [(PLAIN, True), (FUSED, True)]
    return {
        f"{name}, compiled" if compiled else name: TrainingStep(
            networks.make(name), networks, batch, compiled=compiled
        )
        for name, compiled in ways
    }


def train(settings: Settings) -> tuple[Table, list[str]]:
    """Time the steps of all variants at each batch; the table, and lines below it."""
    settings.pin()
    networks = Networks(settings)
    table = Table(f"Training step, {settings.model}, {settings.size} px", COLUMNS)
    notes = [LEGEND]
    for batch in settings.batches(BATCHES):
        say(f"batch {batch}: measuring the machine, then {settings.repeats} rounds")
        machine = measure_machine(settings.device, settings.dtype)
        steps = steps_of(networks, batch)
        notes.append(same_start(steps, batch, settings))
        samples = interleave(steps, settings.repeats, say)
        machine = machine.best(measure_machine(settings.device, settings.dtype))
        add_rows(table, batch, samples)
        bounds = floors(networks, batch, machine, training=True)
        add_floors(table, batch, "step", bounds)
        notes.append(floor_note(batch, bounds, machine))
        del steps
    return table, [*notes, *networks.missing]


def same_start(steps: Mapping[str, TrainingStep], batch: int, settings: Settings) -> str:
    """Check that AdaFilter's variants have one loss, before any step; a line that says so.

    One for each kind of statistics. RuntimeError if they do not: a variant that computes something
    else is no variant.
    """
    lines = []
    for of_all in (False, True):
        ours: dict[str, float] = {}
        for name, step in steps.items():
            if not name.startswith(PLAIN) and (name in OF_ALL) == of_all:
                with torch.no_grad():
                    ours[name] = float(step.forward())
        low, high = min(ours.values()), max(ours.values())
        # A gate that rounding flips moves the loss a little.
        allowed = 0.01 if settings.precision == "fp32" else 0.1
        if not high - low <= allowed * max(1.0, abs(low)):
            raise RuntimeError(
                f"the variants of AdaFilter have different losses at the start: {ours}"
            )
        lines.append(f"{', '.join(ours)} {low:.5f} to {high:.5f}")
    return f"Batch {batch}: losses at the start: {'; '.join(lines)}."


def add_rows(table: Table, batch: int, samples: Mapping[str, Sequence[Sample]]) -> None:
    """Median, quartiles and ratios of each variant and phase."""
    for name, bounds in samples.items():
        for part in PHASES:
            times = phase(bounds, part)
            spread, ratio = Spread.of(times), Ratio.of(times, phase(samples[PLAIN], part))
            milliseconds = [1000 * t for t in (spread.median, spread.low, spread.high)]
            table.add(batch, name, part, *milliseconds, ratio.of_medians, ratio.by_round)


def add_floors(table: Table, batch: int, part: str, bounds: Floors) -> None:
    """The computed floors, in the same columns."""
    plain, ours = (1000 * sum(kinds.values()) for kinds in (bounds.plain, bounds.ours))
    table.add(batch, "floor: plain", part, plain, None, None, 1.0, None)
    table.add(batch, "floor: AdaFilter", part, ours, None, None, bounds.ratio, None)


def floor_note(batch: int, bounds: Floors, machine: Machine) -> str:
    """What the floor was computed with, and the FLOPs alone."""
    return (
        f"Batch {batch}: floor with {machine}, measured in the same run; AdaFilter / plain by "
        f"FLOPs alone {bounds.flops_ratio:.3f}, floor {bounds.ratio:.3f}."
    )
