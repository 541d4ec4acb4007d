"""Print the floor of a training step and of inference.

    python benchmarks/floor.py                           # ResNet-50, batch 16, 160 px
    python benchmarks/floor.py --model resnet18 --batch 64 --size 224 --precision bf16

The machine's arithmetic and bandwidth are measured first; bench/floors.py says how the floor is
counted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.floors import KINDS, Floors, floors
from bench.peaks import measure_machine
from bench.reporting import Column, Table
from bench.settings import parse
from bench.shapes import shapes_of
from bench.variants import Networks

from adafilter_dist.system.exit_code import exit_code


def main(words: Sequence[str] | None = None) -> int:
    """Print the floors of a training step and of inference."""
    settings = parse(__doc__ or "", words)
    settings.pin()
    machine = measure_machine(settings.device, settings.dtype)
    networks = Networks(settings)
    for batch in settings.batches((16,)):
        shapes = shapes_of(networks.base, 1, settings.size, networks.pairs)
        print(f"{settings.model}, {settings.size} px: {shapes.macs / 1e9:.2f} GMACs an image;")
        print(f"batch {batch}, {settings.precision}, {settings.threads} threads; {machine}")
        for title, training in (("a training step", True), ("inference", False)):
            tell(title, floors(networks, batch, machine, training=training))
    return 0


def tell(title: str, bounds: Floors) -> None:
    """A Markdown table on the console."""
    table = Table(
        f"Floor of {title}, ms", [Column("part"), Column("plain", 2), Column("AdaFilter", 2)]
    )
    for kind in KINDS:
        if kind in bounds.ours:
            table.add(kind, 1000 * bounds.plain.get(kind, 0.0), 1000 * bounds.ours[kind])
    table.add("sum", 1000 * sum(bounds.plain.values()), 1000 * sum(bounds.ours.values()))
    print(f"\n{table.markdown()}")
    print(f"FLOPs alone: {bounds.flops_ratio:.3f}; floor: {bounds.ratio:.3f}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
