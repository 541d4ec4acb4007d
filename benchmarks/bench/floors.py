"""The floor of a network: the least time that its arithmetic and its memory traffic take.

Arithmetic and bandwidth are measured first (peaks.py), shapes come from one forward (shapes.py).
Every pass over a layer takes the larger of its FLOPs / peak and its bytes / bandwidth; passes add
up. Bytes are counted in passes over whole tensors that must be made if kernels fuse all that they
can and nothing stays in a cache between two passes:

- convolution: reads x and the filters, writes y; its input gradient reads dy and the filters,
  writes dx; its weight gradient reads x and dy, writes dw. The first layer has no input gradient.
- BatchNorm, plain, training: forward reads y for its statistics, reads y, writes out; backward
  reads dout, out and y for its sums, reads the three again, writes dy. Activations are fused: they
  cost nothing forward, and backward they are the read of `out`. 10 passes.
- gated, training: both convolutions in one pass over x (2 x FLOPs forward and input gradient, 1 x
  weight gradient: the frozen filters have none); statistics read y1, y2; the blend reads y1, y2,
  writes out; backward sums read dout, out, y1, y2; the spread reads the four again and writes dy1,
  dy2. 15 passes.
- a residual: read once more forward; backward its gradient is written and read once more.
- pooling, concatenation, scaling: inputs read, outputs written; the same backward.
- gate: the mean of x is taken where x is written, and its gradient added where that of x is read;
  projections and LSTM cell: their FLOPs, and their weights in fp32; twice that backward.
- SGD with momentum: weight, gradient, momentum read, weight and momentum written, fp32.
- inference: BN is folded into the filters, activation and residual into the convolution's write.
  AdaFilter: only the selected filter of each pair is computed, so that FLOPs are the plain ones,
  but in a batch every filter of both kinds is read; and the gate.

Filters count in the precision of the computation; the casts of autocast do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.peaks import Machine
from bench.shapes import Conv, Linear, Shapes, shapes_of
from bench.variants import Networks

FORWARD, INPUT, WEIGHT = "convolution forward", "input gradient", "weight gradient"
NORM, GATE, OTHER, UPDATE = "BatchNorm + selection", "gate", "other layers", "optimizer"
KINDS = (FORWARD, INPUT, WEIGHT, NORM, GATE, OTHER, UPDATE)
FP32 = 4


@dataclass(frozen=True)
class Pass:
    """FLOPs and bytes of one pass, and what it belongs to."""

    kind: str
    flops: float
    bytes: float

    def seconds(self, machine: Machine) -> float:
        """The larger of the two times."""
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)


def train_passes(shapes: Shapes, element: int, hidden: int | None = None) -> Iterator[Pass]:
    """A training step; `element` is the bytes of an activation, `hidden` the gate's size.

    `hidden` None is plain fine-tuning, whichever layers could be gated.
    """
    for conv in shapes.convs:
        two = conv.gated and hidden is not None
        yield from _conv_step(conv, element, 2 if two else 1)
        if conv.gated:
            y = conv.outputs * element
            for passes in (2, 3, 4, 6) if two else (1, 2, 3, 4):
                yield Pass(NORM, 0, passes * y)
        if two and hidden is not None:
            yield from _gate(conv, hidden, 3)
    for elements in shapes.norms:
        for passes in (1, 2, 3, 4):
            yield Pass(NORM, 0, passes * elements * element)
    yield from _others(shapes, element, training=True)
    trained = shapes.parameters + (gate_weights(shapes.convs, hidden) if hidden else 0)
    if hidden is not None:  # the second affine pair
        trained += sum(2 * conv.c_out for conv in shapes.convs if conv.gated)
    yield Pass(UPDATE, 0, 5 * trained * FP32)


def infer_passes(shapes: Shapes, element: int, hidden: int | None = None) -> Iterator[Pass]:
    """A forward in evaluation: plain with folded BN, or AdaFilter's selected filters alone."""
    for conv in shapes.convs:
        two = conv.gated and hidden is not None
        filters = conv.weights * (2 if two else 1)
        moved = (conv.inputs + filters + conv.outputs) * element
        yield Pass(FORWARD, 2 * conv.macs, moved)
        if two and hidden is not None:
            yield from _gate(conv, hidden, 1)
    for elements in shapes.norms:
        yield Pass(NORM, 0, 2 * elements * element)
    yield from _others(shapes, element, training=False)


def _conv_step(conv: Conv, element: int, branches: int) -> Iterator[Pass]:
    """Forward, input gradient (if any) and weight gradient."""
    x, y, w = conv.inputs * element, conv.outputs * element, conv.weights * element
    flops = 2 * conv.macs
    yield Pass(FORWARD, branches * flops, x + branches * (w + y))
    if conv.trained_input:
        yield Pass(INPUT, branches * flops, x + branches * (w + y))
    yield Pass(WEIGHT, flops, x + w + y)


def _gate(conv: Conv, hidden: int, times: int) -> Iterator[Pass]:
    """The mean over pixels, the projections and the LSTM cell, `times` 3 with their backward."""
    yield Pass(GATE, times * conv.inputs, 0)
    weights = _projections(conv, hidden) + 8 * hidden * hidden
    yield Pass(GATE, 2 * times * conv.batch * weights, times * weights * FP32)


def _projections(conv: Conv, hidden: int) -> int:
    return hidden * (conv.c_in + conv.c_out)


def gate_weights(convs: Sequence[Conv], hidden: int) -> int:
    """Elements of the gate's parameters, its one LSTM cell included."""
    gated = [conv for conv in convs if conv.gated]
    biases = sum(hidden + conv.c_out for conv in gated) + 8 * hidden
    return sum(_projections(conv, hidden) for conv in gated) + 8 * hidden * hidden + biases


def _others(shapes: Shapes, element: int, *, training: bool) -> Iterator[Pass]:
    for elements in shapes.residuals:
        yield Pass(OTHER, 0, (3 if training else 1) * elements * element)
    for read, written in shapes.others:
        for _ in range(2 if training else 1):
            yield Pass(OTHER, 0, (read + written) * element)
    for linear in shapes.linears:
        yield from [_linear(linear, element)] * (3 if training else 1)


def _linear(linear: Linear, element: int) -> Pass:
    moved = linear.batch * (linear.c_in + linear.c_out) + linear.c_in * linear.c_out
    return Pass(OTHER, 2 * linear.macs, moved * element)


def by_kind(passes: Iterator[Pass], machine: Machine) -> dict[str, float]:
    """Seconds by kind; their sum is the floor."""
    seconds_by_kind: dict[str, float] = defaultdict(float)
    for one in passes:
        seconds_by_kind[one.kind] += one.seconds(machine)
    return dict(seconds_by_kind)


@dataclass(frozen=True)
class Floors:
    """Of one network and batch, in seconds by kind, and the ratio of the FLOPs alone."""

    plain: dict[str, float]
    ours: dict[str, float]
    flops_ratio: float

    @property
    def ratio(self) -> float:
        """AdaFilter / plain on this machine."""
        return sum(self.ours.values()) / sum(self.plain.values())


def floors(networks: Networks, batch: int, machine: Machine, *, training: bool) -> Floors:
    """Of a training step, or of a forward in evaluation."""
    settings = networks.settings
    shapes = shapes_of(networks.base, batch, settings.size, networks.pairs)
    passes = train_passes if training else infer_passes
    element, hidden = settings.dtype.itemsize, networks.hidden
    plain, ours = (list(passes(shapes, element, size)) for size in (None, hidden))
    return Floors(
        by_kind(iter(plain), machine),
        by_kind(iter(ours), machine),
        sum(one.flops for one in ours) / sum(one.flops for one in plain),
    )
