"""CPU seconds of whole runs without `train.cache`, while it fills, and with what it holds.

    python benchmarks/activation_cache.py                  # minutes, on one core

EfficientNet-Lite0 on Fashion-MNIST at 48 px by the demo's recipe, blocks 11 to 15 and the last
convolution trained, 120 steps of 64, one thread. Each run is a command of its own: its user and
system seconds are those of its process and all that it started. A run without training steps beside
it (`adafilter train --help`) says what the imports take. Runs must end with the same weights.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.reporting import processor

WORDS = (
    *("recipe=demo", "data.train_per_class=171", "train.epochs=5", "resume=never"),
    *("engine.device=cpu", "engine.threads=1", "log.to=[]"),
)
LAYERS = r"method.layers=_blocks\.1[1-5]\.|_conv_head"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default="finetune,adafilter", help="by comma")
    parser.add_argument("words", nargs="*", help="more words of the recipe, as key=value")
    chosen = parser.parse_args()
    words = [*WORDS, *chosen.words]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        seconds(folder, ["prepare", *words])
        print(f"{processor()}; CPU seconds of a run\n")
        print("| method | without | the first with it | later ones | later / without |")
        print("|---|---:|---:|---:|---:|")
        for method in chosen.methods.split(","):
            of_method = ["train", *words, f"method={method}", LAYERS]
            cached = f"train.cache={folder / f'cache-{method}'}"
            runs = {
                "without": seconds(folder, [*of_method, f"run_dir={folder / 'without'}"]),
                "first": seconds(folder, [*of_method, cached, f"run_dir={folder / 'first'}"]),
                "later": seconds(folder, [*of_method, cached, f"run_dir={folder / 'later'}"]),
            }
            if len({weights(folder / name) for name in runs}) != 1:
                sys.exit(f"{method}: the runs did not end with the same weights")
            numbers = " | ".join(f"{each:.1f}" for each in runs.values())
            print(f"| {method} | {numbers} | {runs['later'] / runs['without']:.2f} |", flush=True)
        print(f"\nimports alone: {seconds(folder, ['train', '--help']):.1f}")


def seconds(folder: Path, words: list[str]) -> float:
    """User and system seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "adafilter_dist", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}:\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def weights(run: Path) -> bytes:
    """The exported weights of a run."""
    return (run / "best" / "model.safetensors").read_bytes()


if __name__ == "__main__":
    main()
