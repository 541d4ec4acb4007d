"""AdaFilter against plain fine-tuning of the same network, side by side in one run.

    python benchmarks/speed.py train                      # a training step: whole and in phases
    python benchmarks/speed.py infer                      # a forward at batches 1, 8 and 64
    python benchmarks/speed.py memory                     # peak of a training step, bytes saved
    python benchmarks/speed.py train --precision bf16 --batch 64,256 --size 224 --compile   # a GPU

Compared are plain fine-tuning, the naive two-branch layer (naive.py), the package's reference
layer and its fused one; at inference plain, plain with BatchNorm folded, naive, and
`for_inference`. Every round runs each of them once, after a warm-up that does not count; the order
turns. Given are medians over the rounds with quartiles, the ratio to plain of the same run, and the
floor of floor.py. The process has a fixed number of threads and fixed seeds; the layout is
channels-last. Weights are random: their values do not change the speed.

Results go to the console and, as a CSV and a Markdown file named by what, model, hardware and date,
to --out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Before torch is imported: see adafilter_dist/__main__.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bench.inference import infer
from bench.reporting import facts, load_average, require_folder, say, write
from bench.settings import parse
from bench.step_memory import memory, tell_one
from bench.training import train

from adafilter_dist.system.exit_code import exit_code

WHAT = {"train": train, "infer": infer, "memory": memory}


def main(words: Sequence[str] | None = None) -> int:
    """0 done, 2 bad input, 130 after Ctrl-C."""
    settings = parse(__doc__ or "", words, what=tuple(WHAT), compiled=("train", "infer"))
    if settings.only is not None:
        tell_one(settings)
        return 0
    require_folder(settings)
    own = facts(settings)
    began = load_average()
    say(f"load average {began}")
    table, notes = WHAT[settings.what](settings)
    own["load average"] = f"{began} at the start, {load_average()} at the end"
    write(settings, table, notes, own)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
