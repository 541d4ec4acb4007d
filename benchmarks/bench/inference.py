"""Inference side by side: plain, plain with folded BatchNorm, naive, only selected filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from adafilter_dist.models.gating.gate_overrides import observe_gates, override_gates
from bench.floors import Floors, floors
from bench.peaks import measure_machine
from bench.reporting import Column, Table, say
from bench.settings import Settings
from bench.timing import Clock, Ratio, Sample, Spread, interleave, phase
from bench.training import floor_note
from bench.variants import FOLDED, INFERRED, NAIVE, PLAIN, SELECTED, Networks

BATCHES = (1, 8, 64)
OWN, RANDOM = "own gates", "random gates"
COLUMNS = [
    Column("batch", 0),
    Column("variant"),
    Column("gates"),
    Column("ms", 2),
    Column("q1", 2),
    Column("q3", 2),
    Column("to plain", 3),
    Column("by round", 3),
    Column("to folded", 3),
]
LEGEND = (
    "ms: a forward, median over the rounds, with quartiles. random gates: half of the bits, drawn "
    "for each image, filter and call, the worst case; own gates: the network's. Images change from "
    "call to call. to plain, by round: ratio of the medians, median of the rounds' ratios; to "
    "folded: ratio of the medians to the plain network with BatchNorm folded into its filters."
)
LEAST_TIME = 0.2  # s; shorter calls are repeated within a measurement
DRAWS = 4


class RandomGates:
    """Gates of seeded fair bits, others at each call of the network, drawn ahead.

    `layers` are the filters of each gated layer; layer 0 begins a call. ``as_bits``: bool, which no
    host has to look at; else the gate's dtype.
    """

    def __init__(
        self,
        layers: Sequence[int],
        batch: int,
        device: torch.device,
        seed: int,
        *,
        as_bits: bool = False,
    ) -> None:
        draws = torch.Generator().manual_seed(seed)
        dtype = torch.bool if as_bits else torch.float32
        self._bits = [
            [torch.randint(2, (batch, c), generator=draws).to(device, dtype) for c in layers]
            for _ in range(DRAWS)
        ]
        self._as_bits = as_bits
        self._call = -1

    def __call__(self, index: int, gates: Tensor) -> Tensor:
        if index == 0:
            self._call += 1
        bits = self._bits[self._call % DRAWS][index]
        return bits if self._as_bits else bits.to(gates.dtype)

    def restart(self) -> None:
        """The next call is the first again."""
        self._call = -1


class Forward:
    """Calls of one network on batches of images in turn, as many as are needed to be timed well."""

    def __init__(
        self,
        net: nn.Module,
        images: Sequence[Tensor],
        settings: Settings,
        gates: RandomGates | None,
    ) -> None:
        self.net = net
        self.images, self._settings, self._gates = images, settings, gates
        self._clock = Clock(settings.device)
        self._calls = 0  # not known yet
        self._start = 0

    def logits(self) -> Tensor:
        """Of a call on the first batch."""
        if self._gates is not None:
            self._gates.restart()
        with self._context(), torch.inference_mode(), self._settings.autocast():
            results: Tensor = self.net(self.images[0])
        return results.float()

    def _context(self) -> AbstractContextManager[None]:
        return nullcontext() if self._gates is None else override_gates(self.net, self._gates)

    def __call__(self) -> Sample:
        if not self._calls:
            self._timed(1)  # caches fill, kernels are chosen
            self._calls = max(1, round(LEAST_TIME / self._timed(1)))
        return {"forward": self._timed(self._calls)}

    def _timed(self, calls: int) -> float:
        with self._context(), torch.inference_mode(), self._settings.autocast():
            self._clock.start()
            for number in range(calls):
                self.net(self.images[(self._start + number) % len(self.images)])
            self._clock.mark()
        self._start += calls
        return sum(self._clock.phases()) / calls


def forwards_of(networks: Networks, batch: int) -> dict[tuple[str, str], Forward]:
    """(variant, gates) -> its calls; --compile adds the folded network and ours, own gates."""
    settings = networks.settings
    images = [networks.images(batch, number) for number in range(DRAWS)]
    results: dict[tuple[str, str], Forward] = {}
    for name in INFERRED:
        net = networks.make(name).eval()
        if name in (NAIVE, SELECTED):
            bits = RandomGates(
                networks.channels,
                batch,
                settings.device,
                settings.seed,
                as_bits=name == SELECTED and settings.device.type == "cuda",
            )
            results[name, RANDOM] = Forward(net, images, settings, bits)
            results[name, OWN] = Forward(net, images, settings, None)
        else:
            results[name, ""] = Forward(net, images, settings, None)
        if settings.compile and name in (FOLDED, SELECTED):
            compiled = networks.make(name).eval()
            compiled.compile()
            gates = OWN if name == SELECTED else ""
            results[f"{name}, compiled", gates] = Forward(compiled, images, settings, None)
    return results


def infer(settings: Settings) -> tuple[Table, list[str]]:
    """Time the forwards of all variants at each batch; the table, and lines below it."""
    settings.pin()
    networks = Networks(settings)
    table = Table(f"Inference, {settings.model}, {settings.size} px", COLUMNS)
    notes = [LEGEND]
    for batch in settings.batches(BATCHES):
        say(f"batch {batch}: measuring the machine, then {settings.repeats} rounds")
        machine = measure_machine(settings.device, settings.dtype)
        forwards = forwards_of(networks, batch)
        notes.append(same_logits(forwards, batch, settings))
        notes.append(own_gates(forwards[NAIVE, OWN], batch))
        works = {", ".join(filter(None, key)): work for key, work in forwards.items()}
        samples = interleave(works, settings.repeats, say, warm_up=1)
        machine = machine.best(measure_machine(settings.device, settings.dtype))
        add_rows(table, batch, dict(zip(forwards, samples.values(), strict=True)))
        results = floors(networks, batch, machine, training=False)
        add_floors(table, batch, results)
        notes.append(floor_note(batch, results, machine))
        del forwards, works
    return table, [*notes, *networks.missing]


def same_logits(forwards: Mapping[tuple[str, str], Forward], batch: int, settings: Settings) -> str:
    """Check that what must agree does, with the same random gates; a line that says how well.

    RuntimeError if not: a variant that computes something else is no variant.
    """
    pairs = [((NAIVE, RANDOM), (SELECTED, RANDOM)), ((PLAIN, ""), (FOLDED, ""))]
    allowed = 1e-3 if settings.precision == "fp32" else 0.1
    words = []
    for these, those in pairs:
        a, b = forwards[these].logits(), forwards[those].logits()
        error = float((a - b).abs().max() / a.abs().max().clamp(min=1e-6))
        if not error <= allowed:
            raise RuntimeError(
                f"batch {batch}: {these[0]} and {those[0]} differ by {error:.2g} of the largest "
                f"logit; at most {allowed:g} is rounding"
            )
        words.append(f"{those[0]} from {these[0]} {error:.1e}")
    return f"Batch {batch}: largest difference of logits, relative: {', '.join(words)}."


def own_gates(forward: Forward, batch: int) -> str:
    """A line on the bits that the network itself chooses for the batches of images."""
    bits: list[Tensor] = []
    with observe_gates(forward.net, lambda index, name, gates, _: bits.append(gates.cpu())):
        for images in forward.images:
            with torch.inference_mode():
                forward.net(images)
    layers = len(bits) // len(forward.images)
    by_layer = [torch.cat(bits[index::layers]) for index in range(layers)]
    tuned = float(torch.cat([layer.flatten() for layer in by_layer]).mean())
    varied = torch.cat([(layer != layer[:1]).any(0) for layer in by_layer]).float().mean()
    return (
        f"Batch {batch}: own gates choose the fine-tuned filter in {100 * tuned:.0f} % of cases; "
        f"{100 * float(varied):.0f} % of them vary over {len(by_layer[0])} images."
    )


def add_rows(table: Table, batch: int, samples: Mapping[tuple[str, str], Sequence[Sample]]) -> None:
    """Median, quartiles and ratios of each variant."""
    times = {key: phase(results, "forward") for key, results in samples.items()}
    for (name, gates), own in times.items():
        spread, ratio = Spread.of(own), Ratio.of(own, times[PLAIN, ""])
        milliseconds = [1000 * t for t in (spread.median, spread.low, spread.high)]
        to_folded = Ratio.of(own, times[FOLDED, ""]).of_medians
        ratios = (ratio.of_medians, ratio.by_round, to_folded)
        table.add(batch, name, gates, *milliseconds, *ratios)


def add_floors(table: Table, batch: int, results: Floors) -> None:
    """The computed floors, in the same columns; that of plain has BatchNorm folded."""
    plain, ours = (1000 * sum(kinds.values()) for kinds in (results.plain, results.ours))
    table.add(batch, "floor: plain, folded", "", plain, None, None, None, None, 1.0)
    table.add(batch, "floor: AdaFilter", "", ours, None, None, None, None, results.ratio)
