"""Training steps that are replayed as CUDA graphs: their bits, and their time.

    python benchmarks/gpu_graph.py
    python benchmarks/gpu_graph.py model=resnet18 train.micro_batch=64
    python benchmarks/gpu_graph.py --device cpu         # the bits alone, with a stand-in for graphs

The words are a recipe's, over steps of 8 micro-batches of 32 made-up pictures. First, with
deterministic kernels, in fp32, bf16 and fp16: losses, weights, running statistics and momentum
after some steps, eager and replayed; all must be equal to the bit (exit 1). Then the time of a step
of plain fine-tuning and of AdaFilter in bf16, eager, replayed and compiled, and the host's time in
it (until everything is launched), to plain fine-tuning, eager. Has not run on a GPU yet. Exits 2
where there is none.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# Before cuBLAS is loaded: its workspace decides whether products are deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from gpu_step import Training, recipe_of
from torch import Tensor

from adafilter_dist.distributed import World, join_world, set_arithmetic
from adafilter_dist.models.ops.device_graph import CudaRecorder, Recorder, own_stream
from adafilter_dist.models.ops.operator_tape import TapeRecorder
from adafilter_dist.recipe import Recipe

STEPS, TIMED, REPEATS = 4, 6, 5
EVERY_WAY = ("eager", "replayed", "compiled")
ON_CPU = (
    *("engine.device=cpu", "model=timm/test_resnet", "data.resolution=32", "train.micro_batch=4"),
    *("train.global_batch=16", "train.kernels=reference", "engine.threads=1"),
)
PLAIN = ("method=finetune",)
# Gates of the paper's kind: their noise and penalty are recorded.
OURS = ("method.gate.estimator=gumbel", "method.sparsity.kind=decide", "method.sparsity.weight=0.1")


def recorder_for(world: World) -> Recorder:
    """CUDA's, or its stand-in."""
    return CudaRecorder(world.device) if world.device.type == "cuda" else TapeRecorder()


def after_steps(recipe: Recipe, world: World, recorder: Recorder | None) -> dict[str, Tensor]:
    """Losses and the whole state behind some steps; RuntimeError where they were not replayed."""
    training = Training.of(recipe, world, recorder)
    losses = training.run(STEPS)
    if notices := training.step.new_notices():
        raise RuntimeError("; ".join(notices))
    state = {name: each.clone() for name, each in training.engine.full_state().tensors()}
    return state | {"losses": torch.tensor(losses, dtype=torch.float64)}


def same_bits(recipe: Recipe, world: World) -> int:
    """How many tensors differ."""
    eager = after_steps(recipe, world, None)
    replayed = after_steps(recipe, world, recorder_for(world))
    return sum(not torch.equal(eager[name], replayed[name]) for name in eager)


def seconds(training: Training) -> tuple[float, float]:
    """A step's time, and the host's time in it."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    training.run(TIMED)
    launched = time.perf_counter()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / TIMED, (launched - began) / TIMED


def measure(folder: Path, words: list[str], world: World) -> None:
    """Print the times, one row a way."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    first = None
    for name, method in (("plain", PLAIN), ("AdaFilter", OURS)):
        for way in EVERY_WAY:
            compiled = ("train.compile=true",) if way == "compiled" else ()
            recipe = recipe_of(folder, [*method, "train.precision=bf16", *words, *compiled])
            recorder = recorder_for(world) if way == "replayed" else None
            training = Training.of(recipe, world, recorder)
            training.run(3)
            rounds = [seconds(training) for _ in range(REPEATS)]
            whole, host = (1000 * statistics.median(each) for each in zip(*rounds, strict=True))
            first = first or whole
            peak = torch.cuda.max_memory_allocated() / 2**30
            print(
                f"{name:10} {way:9} {whole:8.1f} ms, {whole / first:.2f} to plain eager; host "
                f"{host:.1f} ms; {peak:.1f} GiB at the peak",
                flush=True,
            )
            for line in training.step.new_notices():
                print(f"{name}: {line}", flush=True)
            del training, recorder
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def check(folder: Path, words: list[str], world: World) -> bool:
    """Print for each precision whether the bits are the same; whether all are."""
    passed = True
    for precision in ("fp32", "bf16", "fp16"):
        recipe = recipe_of(folder, [*OURS, *words, f"train.precision={precision}"])
        try:
            differ = same_bits(recipe, world)
            good, line = differ == 0, f"{differ} tensors differ"
        except RuntimeError as error:
            good, line = False, f"{type(error).__name__}: {error}"[:500]
        print(f"{'ok  ' if good else 'FAIL'} {precision}: {line}", flush=True)
        passed &= good
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("words", nargs="*", metavar="key=value", help="changes of the recipe")
    options = parser.parse_args()
    words = options.words
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print("gpu_graph.py: torch sees no GPU here; --device cpu", file=sys.stderr)
        return 2
    if not on_gpu:
        words = [*ON_CPU, *words]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = recipe_of(folder, [*words, "deterministic=true"])
        set_arithmetic(recipe)
        with join_world(recipe) as world:
            if on_gpu:
                own_stream(world.device)
            passed = check(folder, words, world)
            if on_gpu:
                measure(folder, words, world)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
