"""What the host does for a training step on a GPU: operations dispatched, and its time for them.

    python benchmarks/host_work.py                        # ResNet-50 and ResNet-18
    python benchmarks/host_work.py --model resnet18 --micro-batches 1,8

Needs no GPU. A step of plain fine-tuning, of the naive two-branch layer and of AdaFilter runs in
the Python code that a GPU takes, on CPU tensors: Triton's launches are bound and looked up as on a
GPU, and then counted instead of handed to the driver (bench/absent_gpu.py). All layers have a 16th
of their channels, pictures have 32 pixels, and convolutions compute nothing: what is left is the
host's work, which does not depend on the size of tensors.

*ops* are what reaches PyTorch's dispatcher below autograd: each ATen operation, views too, and each
operator of the package as one. *launches* are the Triton kernels inside these operators, *inside*
the ATen operations in them. ms is CPU time of one thread, the median over the rounds, each of which
runs every variant. A step is zero_grad, forward with the loss, backward, SGD with momentum (its
foreach form, as on a GPU), and AdaFilter's statistics. With several micro-batches a forward, each
has 4 pictures; plain has no micro-batches, and takes them as one batch. Not counted as on a GPU:
the naive gate's LSTM cell, one operation there and a dozen on a CPU.

The last line is that of the first model with one micro-batch a forward, without the look ahead at
pictures: it runs only where the gate has divided them, as in the row *AdaFilter, divided*.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bench.absent_gpu import Launches, absent_gpu
from bench.naive import naive
from bench.reporting import Column, Table, say
from bench.settings import Parser
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.backbones import build_architecture
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.micro_batches import in_micro_batches
from adafilter_dist.models.gating.step_statistics import gathering_modules, update_statistics
from adafilter_dist.models.ops.operators import BODIES
from adafilter_dist.recipe.sections.model import Gate
from adafilter_dist.system.exit_code import exit_code

NARROWER, SIZE, PICTURES = 16, 32, 4
PLAIN, NAIVE, OURS, DIVIDED = "plain", "naive", "AdaFilter", "AdaFilter, divided"
PARTS = ("forward", "backward", "update")
COLUMNS = [
    Column("model"),
    Column("micro-batches", 0),
    Column("variant"),
    *(Column(part, 0) for part in PARTS),
    Column("ops", 0),
    Column("to plain", 2),
    Column("launches", 0),
    Column("inside", 0),
    Column("ms", 1),
    Column("ms to plain", 2),
]


class Counting(TorchDispatchMode):
    """Counts what is dispatched; `inside` is what the package's own operators dispatch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.inside = 0
        self._deep = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name
        if self._deep:
            self.inside += 1
        else:
            self.names[name] += 1
        if self._deep or (body := BODIES.get(name)) is None:
            return function(*args, **(kwargs or {}))
        # What is dispatched in there belongs to this one operation.
        self._deep = True
        try:
            with self:
                return body(*args, **(kwargs or {}))
        finally:
            self._deep = False


@dataclass
class Step:
    """A network in training, and steps of it on the same images."""

    net: nn.Module
    micro_batches: int

    def __post_init__(self) -> None:
        trained = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            trained, lr=1e-6, momentum=0.9, weight_decay=1e-4, foreach=True
        )
        count = PICTURES * self.micro_batches
        images = torch.randn(count, 3, SIZE, SIZE)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.arange(count) % 10
        self.gathers = bool(gathering_modules(self.net))

    def forward(self) -> Tensor:
        """The loss."""
        self.optimizer.zero_grad(set_to_none=True)
        return functional.cross_entropy(self.net(self.images), self.labels)

    def update(self) -> None:
        """Of weights, and of AdaFilter's statistics."""
        self.optimizer.step()
        if self.gathers:
            update_statistics(self.net)

    def run(self, around: Callable[[Callable[[], Any]], Any]) -> None:
        """One step, each of its parts handed to `around`, which calls it."""
        with in_micro_batches(self.micro_batches):
            loss = around(self.forward)
            around(loss.backward)
            around(self.update)


@dataclass
class Counted:
    """Of a step: operations by part, Triton launches, ATen operations inside the package's own."""

    parts: list[int]
    launches: int
    inside: int

    @property
    def ops(self) -> int:
        return sum(self.parts)


def counted(step: Step, launches: Launches, show: bool) -> Counted:
    """The operations of one step; with `show` each kind with its number."""
    work = Counted([], launches.count, 0)

    def count(part: Callable[[], Any]) -> Any:
        with Counting() as counting:
            result = part()
        work.parts.append(counting.names.total())
        work.inside += counting.inside
        if show:
            say(f"  {', '.join(f'{n} {name}' for name, n in counting.names.most_common(40))}")
        return result

    step.run(count)
    work.launches = launches.count - work.launches
    return work


def timed(step: Step) -> float:
    """Seconds of CPU time of one step."""
    began = time.process_time()
    step.run(lambda part: part())
    return time.process_time() - began


def narrowed(net: nn.Module) -> nn.Module:
    """`net` with a 16th of the channels in each layer; nothing else changes."""

    def less(channels: int) -> int:
        return channels if channels <= 3 else max(4, channels // NARROWER)

    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            if module.groups != 1:
                raise UserError(f"--model: {name} has {module.groups} groups; resnet18 has none")
            conv = nn.Conv2d(
                less(module.in_channels),
                less(module.out_channels),
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            net.set_submodule(name, conv)
        elif isinstance(module, nn.BatchNorm2d):
            net.set_submodule(name, nn.BatchNorm2d(less(module.num_features)))
        elif isinstance(module, nn.Linear):
            net.set_submodule(name, nn.Linear(less(module.in_features), 10))
    return net.to(memory_format=torch.channels_last)


def variants(model: str) -> dict[str, nn.Module]:
    """The networks that are compared, in training mode."""
    torch.manual_seed(0)
    base = narrowed(build_architecture(model, SIZE, 0))
    gate = Gate(hidden=8)  # the recipes' own gate, but as narrow as the layers
    ours = convert(copy.deepcopy(base), size=SIZE, gate=gate)
    nets: dict[str, nn.Module] = {PLAIN: base, NAIVE: naive(decided(ours, divided=False))}
    nets |= {name: decided(ours, divided=name == DIVIDED) for name in (OURS, DIVIDED)}
    return {name: net.train() for name, net in nets.items()}


def decided(net: AdaFilterNet, *, divided: bool) -> AdaFilterNet:
    """A copy after its decision: all pictures fine-tuned, or by what each shows."""
    twin = copy.deepcopy(net)
    picture = twin.gate.picture
    assert picture is not None
    weight = torch.randn_like(picture.weight) if divided else torch.zeros_like(picture.weight)
    picture.decide({"weight": weight}, net.gate.settings.margin)
    return twin


def measure(table: Table, model: str, micro_batches: int, repeats: int, show: bool) -> str:
    """Add the rows of one setting; returns the line that sums it up."""
    torch._C._set_deterministic_fill_uninitialized_memory(False)
    work: dict[str, Counted] = {}
    seconds: dict[str, list[float]] = {}
    nets = variants(model)  # converted where what is computed can be compared
    with absent_gpu() as launches:
        steps = {name: Step(net, micro_batches) for name, net in nets.items()}
        for name, step in steps.items():
            for _ in range(
                2
            ):  # after the first, a network knows the layers whose filters it stacks
                timed(step)
            if show:
                say(name)
            work[name] = counted(step, launches, show)
        for number in range(repeats + 2):
            for name, step in steps.items():
                taken = timed(step)
                if number >= 2:
                    seconds.setdefault(name, []).append(taken)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, one in work.items():
        ratio = one.ops / work[PLAIN].ops
        shares = (1000 * medians[name], medians[name] / medians[PLAIN])
        more = (one.ops, ratio, one.launches, one.inside, *shares)
        table.add(model, micro_batches, name, *one.parts, *more)
    plain, ours = work[PLAIN].ops, work[OURS].ops
    return f"plain {plain} ops, AdaFilter {ours} ops, ratio {ours / plain:.2f}"


def main(words: Sequence[str] | None = None) -> int:
    """0 done, 2 bad input, 130 after Ctrl-C."""
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default="resnet50,resnet18", help="networks, with commas")
    parser.add_argument("--micro-batches", default="1,2,8", help="in a forward, with commas")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (9)")
    parser.add_argument("--show", action="store_true", help="name the operations")
    options = parser.parse_args(words)
    try:
        counts = [int(word) for word in options.micro_batches.split(",")]
    except ValueError:
        raise UserError(f"--micro-batches {options.micro_batches}: numbers, like 1,8") from None
    if min(counts) < 1 or options.repeats < 1:
        raise UserError("--micro-batches and --repeats: at least 1")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    table = Table("Host's work for a training step on a GPU", COLUMNS)
    lines = []
    try:
        for model in options.model.split(","):
            for count in counts:
                say(f"{model}, {count} micro-batches a forward")
                lines.append(measure(table, model, count, options.repeats, options.show))
    finally:
        torch.set_flush_denormal(False)  # of the whole process, which may be a test's
    table.print_markdown()
    print(f"\n{lines[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
