"""Training runs by the real command, as gpu_check.py starts them: one word says which.

    python benchmarks/gpu_runs.py precisions SCRATCH       # fp32, bf16, fp16 under torchrun
    python benchmarks/gpu_runs.py resume SCRATCH           # killed with -9, resumed: the same bits
    python benchmarks/gpu_runs.py nvjpeg SCRATCH           # the same of data.loader=nvjpeg
    python benchmarks/gpu_runs.py memory SCRATCH           # out of memory is one line, exit code 2
    python benchmarks/gpu_runs.py deepspeed SCRATCH        # two steps, a save and a load by ZeRO-2
    python benchmarks/gpu_runs.py loader SCRATCH           # ResNet-50 at 224 px: data wait

SCRATCH holds pictures of gratings in four directions, made on the first call, and is used again.
Exits 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("across", "down", "rising", "falling")
SIDE = 96
ADAFILTER = [sys.executable, "-m", "adafilter_dist"]
POLL = 0.05  # s


class Runs:
    """Commands over one set of pictures on one device."""

    def __init__(self, scratch: Path, device: str, pictures: int) -> None:
        self.scratch, self.device = scratch, device
        self.data = scratch / f"pictures-{pictures}"
        if not self.data.exists():
            make_pictures(self.data, pictures)

    def words(self, name: str, *more: str) -> list[str]:
        """A small recipe: ResNet-18 at 64 px; later words win."""
        small = {
            "recipe": "imagefolder",
            "name": name,
            "data.root": str(self.data),
            "data.prepared": str(self.scratch / "prepared-72"),
            "data.stored_size": "72",
            "data.resolution": "64",
            "data.loader": "torchvision",
            "model.name": "resnet18",
            "model.weights": "null",
            "train.global_batch": "128",
            "train.micro_batch": "32",
            "train.epochs": "3",
            "optim.warmup_epochs": "0.2",
            "optim.lr_head": "0.01",
            "optim.lr_gate": "0.01",
            "train.clip_norm": "1",
            "log.to": "[]",
            "log.every": "1",
            "evaluate.gates": "false",
            "engine.device": self.device,
        }
        for word in more:
            key, _, value = word.partition("=")
            small[key] = value
        return [f"{key}={value}" for key, value in small.items()]

    def folder(self, name: str) -> Path:
        """A run folder."""
        return self.scratch / "runs" / name

    def call(self, *command: str, expect: int = 0) -> str:
        """Run it to its end; its output. AssertionError for another exit code."""
        began = time.perf_counter()
        done = subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        print(done.stdout[-4000:])
        print(f"-- {' '.join(command[-6:])}: {time.perf_counter() - began:.1f} s", flush=True)
        assert done.returncode == expect, f"exit code {done.returncode}, expected {expect}"
        return done.stdout

    def prepare(self, words: Sequence[str]) -> None:
        """Store the pictures."""
        self.call(*ADAFILTER, "prepare", *words)


def make_pictures(folder: Path, count: int) -> None:
    """``count`` training and an eighth as many test pictures, JPEG, of gratings with noise."""
    y, x = np.mgrid[:SIDE, :SIDE] / 4.0

    def write(split: str, number: int) -> None:
        label = number % len(CLASSES)
        draws = np.random.default_rng([split == "test", number])
        phase, noise = draws.uniform(0, 6), draws.normal(0, 30, (SIDE, SIDE, 3))
        wave = np.sin((y, x, x + y, x - y)[label] + phase)
        pixels = (127 + 80 * wave[..., None] + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(
            partial / split / CLASSES[label] / f"{number:05d}.jpg", quality=92
        )

    partial = folder.with_name(f"{folder.name}.partial")
    for split in ("train", "test"):
        for name in CLASSES:
            (partial / split / name).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda n: write("train", n), range(count)))
        list(pool.map(lambda n: write("test", n), range(count // 8)))
    partial.rename(folder)


def rows(run: Path, kind: str) -> list[dict[str, float]]:
    """The whole lines of one kind of metrics.jsonl."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0].splitlines()
    return [row for row in map(json.loads, whole) if row["kind"] == kind]


def print_times(run: Path) -> None:
    """Where a run's seconds went: before its first row, in training, after it; images a second."""
    train = rows(run, "train")
    start = (run / "recipe.yaml").stat().st_mtime
    end = (run / "status.json").stat().st_mtime
    first, last = train[0]["time"], train[-1]["time"]
    rates = [row["images_per_second"] for row in train]
    print(
        f"{run.name}: {first - start:.1f} s to the first row, {last - first:.1f} s to the last, "
        f"{end - last:.1f} s after it; images/s {rates[0]:.0f} first, {np.median(rates):.0f} median"
    )


def precisions(runs: Runs) -> None:
    """Each precision under torchrun, all at once: finished, losses finite and falling."""
    runs.prepare(runs.words("precisions"))
    known = ["fp32", "bf16", "fp16"] if runs.device == "cuda" else ["fp32", "bf16"]

    def train(precision: str) -> None:
        words = runs.words(
            "precisions", f"train.precision={precision}", f"run_dir={runs.folder(precision)}"
        )
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        runs.call(*torchrun, "--nproc-per-node=1", "-m", "adafilter_dist", "train", *words)

    with ThreadPoolExecutor(len(known)) as pool:
        list(pool.map(train, known))
    for precision in known:
        run = runs.folder(precision)
        print_times(run)
        losses = [row["loss"] for row in rows(run, "train")]
        early, late = np.mean(losses[:5]), np.mean(losses[-5:])
        print(f"{precision}: {len(losses)} steps, loss {early:.3f} -> {late:.3f}", flush=True)
        assert np.isfinite(losses).all() and late < early, f"{precision}: losses {losses}"
        state = json.loads((run / "status.json").read_text())["state"]
        assert state == "finished", f"{precision}: {state}"


def resume(runs: Runs, *more: str) -> None:
    """A run killed with -9 and resumed ends with the weights of one that was not."""
    name = "-".join(["resume", *more])
    whole, killed = runs.folder(f"{name}-whole"), runs.folder(f"{name}-killed")
    words = runs.words("resume", "deterministic=true", "checkpoint.every=4", *more)
    if runs.device == "cuda":
        words.append("train.precision=bf16")
    runs.prepare(words)
    runs.call(*ADAFILTER, "train", *words, f"run_dir={whole}")
    process = subprocess.Popen(
        [*ADAFILTER, "train", *words, f"run_dir={killed}"], start_new_session=True
    )
    try:
        while not any(row["step"] >= 5 for row in rows(killed, "train")):
            assert process.poll() is None, f"ended before it was killed: {process.returncode}"
            time.sleep(POLL)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    print("killed with -9", flush=True)
    runs.call(*ADAFILTER, "resume", str(killed))
    digests = [
        hashlib.sha256((run / "best" / "model.safetensors").read_bytes()).hexdigest()
        for run in (whole, killed)
    ]
    losses = [[row["loss"] for row in rows(run, "train")] for run in (whole, killed)]
    print(f"sha256 of best/: {digests}", flush=True)
    assert losses[0] == losses[1], "losses differ"
    assert digests[0] == digests[1], "weights differ"


def nvjpeg(runs: Runs) -> None:
    """The same where the GPU decodes."""
    resume(runs, "data.loader=nvjpeg")


def memory(runs: Runs) -> None:
    """A micro-batch that cannot fit is one line that names one that should."""
    words = runs.words(
        "memory", "model.name=resnet50", "data.resolution=448", "train.global_batch=1024"
    )
    runs.prepare(words)
    output = runs.call(*ADAFILTER, "train", *words, "train.micro_batch=1024", "--check", expect=2)
    assert "Traceback" not in output and "out of memory" in output and "should fit" in output
    fitting = output.partition("train.micro_batch=")[2].split()[0]
    runs.call(*ADAFILTER, "train", *words, f"train.micro_batch={fitting}", "--check")


def deepspeed(runs: Runs) -> None:
    """ZeRO-2 makes two steps, saves and loads."""
    words = runs.words("deepspeed", "engine=deepspeed", "train.precision=bf16")
    runs.prepare(words)
    runs.call(*ADAFILTER, "train", *words, "--check")


def loader(runs: Runs) -> None:
    """ResNet-50 at 224 px: images a second and the share of a step that waits for data."""
    words = runs.words(
        "loader",
        "model.name=resnet50",
        "data.stored_size=256",
        f"data.prepared={runs.scratch / 'prepared-256'}",
        "data.resolution=224",
        "train.global_batch=256",
        "train.micro_batch=64",
        "train.epochs=5",
        "train.precision=bf16",
    )
    runs.prepare(words)
    kinds = ["numba", "torchvision"]
    if runs.device == "cuda" and importlib.util.find_spec("torchcodec"):
        kinds.append("nvjpeg")
    for kind in kinds:
        run = runs.folder(f"loader-{kind}")
        runs.call(*ADAFILTER, "train", *words, f"data.loader={kind}", f"run_dir={run}")
        print_times(run)
        for row in rows(run, "train"):
            print({key: value for key, value in row.items() if key not in ("loss", "gates")})


PARTS: dict[str, Callable[[Runs], None]] = {
    "precisions": precisions,
    "resume": resume,
    "nvjpeg": nvjpeg,
    "memory": memory,
    "deepspeed": deepspeed,
    "loader": loader,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("scratch", type=Path, help="folder for pictures and runs")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--pictures", type=int, default=2000, help="training pictures (2000)")
    words = parser.parse_args()
    words.scratch.mkdir(parents=True, exist_ok=True)
    try:
        PARTS[words.part](Runs(words.scratch.absolute(), words.device, words.pictures))
    except AssertionError as error:
        print(f"FAIL {words.part}: {error}", flush=True)
        return 1
    print(f"ok   {words.part}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
