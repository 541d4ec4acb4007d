"""What saving, stopping and going on cost: a Markdown table for each, measured side by side.

    python benchmarks/checkpoint.py                                    # minutes, on 2 cores
    python benchmarks/checkpoint.py --model resnet50 --image-size 224 --batch 64 --scratch /data

Made-up pictures, prepared by `adafilter prepare`; a network with AdaFilter and random weights.
Every round takes quiet steps, then one step with each way of saving behind it, in one process; the
disk is given time to finish between the ways. Medians over the rounds are printed, with the lowest
and the highest. Files go below --scratch: name a folder on the disk that is to be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from adafilter_dist.checkpoint.interval import best_interval
from adafilter_dist.checkpoint.saver import Saved, Saver
from adafilter_dist.checkpoint.store import Checkpoints, Position, check_finite
from adafilter_dist.data.loading.loader import MicroBatch
from adafilter_dist.distributed import join_world
from adafilter_dist.engine import FullState
from adafilter_dist.metrics import read_lines
from adafilter_dist.models.gating.step_statistics import collect
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.sections.base import seconds
from adafilter_dist.recipe.sections.output import Checkpoint
from adafilter_dist.run.ownership import claim
from adafilter_dist.training.delayed_metrics import DelayedMetrics
from adafilter_dist.training.environment import describe_environment
from adafilter_dist.training.preemption import DELAY
from adafilter_dist.training.session import Session, build_session, frozen_tensor_names

ROOT = Path(__file__).resolve().parent.parent
QUIET = 3  # steps a round that nothing disturbs
FLAGS = 3  # wait, stop and save: what agreeing adds to the step's vector
OURS, WAITED = "Saver", "Saver, then result(wait=True)"
PLAIN, SYNCED = "torch.save", "torch.save and fsync"
Times = dict[str, list[float]]


def main() -> None:
    if "OMP_WAIT_POLICY" not in os.environ:  # as the command has it, and it is read with torch
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18", help="a network by name (resnet18)")
    parser.add_argument("--image-size", type=int, default=96, help="side of the pictures (96)")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step (16)")
    parser.add_argument("--micro-batch", type=int, help="pictures a micro-batch (the batch)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5, help="of quiet steps and saves (5)")
    parser.add_argument("--restarts", type=int, default=3, help="times the command goes on (3)")
    parser.add_argument("--reductions", type=int, default=2000, help="pairs of all-reduces (2000)")
    parser.add_argument("--scratch", type=Path, help="where to write (the folder for such files)")
    parser.add_argument("words", nargs="*", help="more of the recipe, as key=value")
    given = parser.parse_args()
    print(f"    {shlex.join(['python', *sys.argv])}\n")
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        measure(given, Path(folder))


def measure(given: argparse.Namespace, folder: Path) -> None:
    """All tables; first what happens in one process, then the real command, then two ranks."""
    words = prepare(given, folder)
    recipe = load_recipe(words)
    with join_world(recipe) as world:
        began = time.perf_counter()
        session = build_session(recipe, world)
        parts = {"session": time.perf_counter() - began}
        began = time.perf_counter()
        session.step.warm_up(session.preprocess.crop)
        parts["warm-up"] = time.perf_counter() - began
        tell_machine(session, folder)
        steps = Steps(session)
        firsts = [first_save(steps, folder / f"first{number}") for number in range(3)]
        found = saves(steps, firsts[-1][0], folder / "plain.pt", given.rounds)
        step = statistics.median(found["step"])
        tell_saves(found, [stall for _, stall in firsts], step, recipe.checkpoint)
        for saver, _ in firsts:
            saver.close()
        last = folder / f"first{len(firsts) - 1}"
        flags = reading_of_flags(session)
        values = collect(session.engine.model).numel()
    starts = restarts(words, folder, given.restarts)
    sizes(last, folder)
    starts |= loading(last)
    announce_start(starts, parts)
    tell_agreement(reductions(values, given.reductions, folder), flags, values, step)
    print(f"\nLoad average at the end: {load()}")


def prepare(given: argparse.Namespace, folder: Path) -> list[str]:
    """The words of a recipe with made-up pictures for 40 steps, prepared by the real command."""
    draws = np.random.default_rng(0)
    size = given.image_size
    for number in range(42 * given.batch):
        place = folder / "pictures" / ("train" if number < 40 * given.batch else "test")
        place = place / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        patches = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        patches.resize((size, size), Image.Resampling.BICUBIC).save(place / f"{number}.jpg")
    words = [
        "recipe=imagefolder",
        f"data.root={folder / 'pictures'}",
        f"data.prepared={folder / 'prepared'}",
        f"data.stored_size={size}",
        f"data.resolution={size}",
        f"data.eval_resize={size}",
        "data.val_fraction=0",
        f"model.name={given.model}",
        "model.weights=null",
        "method=adafilter",
        f"train.global_batch={given.batch}",
        f"train.micro_batch={given.micro_batch or given.batch}",
        "train.epochs=1",
        "optim.warmup_epochs=0",
        f"engine.device={given.device}",
        "log.every=1",
        *given.words,
    ]
    if started(folder, "prepare", *words).wait(1800) != 0:
        fail(folder, "adafilter prepare failed")
    return words


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """``adafilter WORDS``; what it prints goes to a file."""
    command = [sys.executable, "-m", "adafilter_dist", *words]
    home = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "printed.txt").open("ab") as file:
        return subprocess.Popen(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": home}, stdout=file, stderr=file
        )


def fail(folder: Path, why: str) -> NoReturn:
    printed = (folder / "printed.txt").read_text().splitlines()[-20:]
    raise SystemExit("\n".join([*printed, why]))


class Steps:
    """Training steps of a session, one at a time, timed until the device has done them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.done = 0
        self._delayed = DelayedMetrics(DELAY)
        self._batches = self._endless()

    def _endless(self) -> Iterator[MicroBatch]:
        for epoch in range(10**9):
            with self.session.epoch(epoch) as batches:
                yield from batches

    def run(self) -> float:
        """Seconds of the next step; the first of an epoch waits for its loader and is not told."""
        while True:
            epoch, first = divmod(self.done, self.session.steps_per_epoch)
            began = time.perf_counter()
            figures, _ = self.session.step.run(
                self.done, epoch, self._batches, 1e-3, stop=False, save=False
            )
            self._delayed.push(self.done, figures)
            list(self._delayed.ready(self.done))
            self.wait()
            self.done += 1
            if first:
                return time.perf_counter() - began

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.session.world.device.type == "cuda":
            torch.cuda.synchronize()


def save(steps: Steps, saver: Saver) -> dict[str, float]:
    """Does what `CheckpointSchedule.save` does; seconds of each part, in which training stands."""
    session = steps.session
    began = time.perf_counter()
    state = session.full_state()
    check_finite(state)
    checked = time.perf_counter()
    environment = describe_environment(session.recipe, 1, session.world.threads, "")
    saver.save(state, Position(step=steps.done), {"environment": environment})
    copied = time.perf_counter()
    return {"check": checked - began, "copy": copied - checked, "stall": copied - began}


def first_save(steps: Steps, run: Path) -> tuple[Saver, float]:
    """A run's saver after its first save, and how long training stood for that."""
    saver = Saver(claim(run), keep=2)
    saver.start_from(frozen_tensor_names(steps.session.engine.model), None, None)
    steps.run()
    stall = save(steps, saver)["stall"]
    published(saver)
    return saver, stall


def published(saver: Saver) -> Saved:
    result = saver.result(wait=True)
    if not isinstance(result, Saved):
        raise SystemExit(f"a save failed: {result}")
    return result


def saves(steps: Steps, saver: Saver, plain: Path, rounds: int) -> Times:
    """Seconds, a value a round; of ``step`` and ``busy step`` one a step.

    ``slower`` is the ratio of the round's mean steps with and without the writer, less one.
    """
    found: Times = defaultdict(list)
    for _ in range(rounds):
        quiet = [steps.run() for _ in range(QUIET)]
        found["step"] += quiet

        steps.run()
        parts = save(steps, saver)
        found[OURS].append(parts["stall"])
        found["check"].append(parts["check"])
        found["copy"].append(parts["copy"])
        result, busy = None, []
        while result is None:
            busy.append(steps.run())
            result = saver.result()
        if not isinstance(result, Saved):
            raise SystemExit(f"a save failed: {result}")
        found["write"].append(result.seconds)
        found["busy steps"].append(len(busy))
        found["busy step"] += busy
        found["slower"].append(statistics.fmean(busy) / statistics.fmean(quiet) - 1)
        found["extra"].append(sum(busy) - len(busy) * statistics.fmean(quiet))

        steps.run()
        began = time.perf_counter()
        save(steps, saver)
        published(saver)
        found[WAITED].append(time.perf_counter() - began)

        for way in (PLAIN, SYNCED):
            steps.run()
            found[way].append(torch_save(steps.session.full_state(), plain, way == SYNCED))
    return found


def torch_save(state: FullState, path: Path, synced: bool) -> float:
    """Seconds of torch.save; in any case the file is on disk when this returns."""
    content = {"model": state.model, "optimizer": state.optimizer, "scaler": state.scaler}
    with path.open("wb") as file:
        began = time.perf_counter()
        torch.save(content, file)
        took = time.perf_counter() - began
        file.flush()
        os.fsync(file.fileno())
        return time.perf_counter() - began if synced else took


def reading_of_flags(session: Session, times: int = 1000) -> list[float]:
    """Seconds of putting three values into a step's vector and reading six a few steps later."""
    dtype, device = session.engine.dtype, session.world.device
    figures, delayed, found = torch.zeros(6, dtype=dtype, device=device), DelayedMetrics(DELAY), []
    for step in range(times):
        began = time.perf_counter()
        figures[3:] = figures.new_tensor([0.0, False, False])
        delayed.push(step, figures)
        list(delayed.ready(step))
        found.append(time.perf_counter() - began)
    return found


def restarts(words: list[str], folder: Path, times: int) -> Times:
    """Start, stop by TERM and go on with a run; seconds from the start of each that goes on.

    The last one runs to its end.
    """
    run = folder / "run"
    found: Times = defaultdict(list)
    stop(started(folder, "train", *words, f"run_dir={run}"), run, 0)
    for number in range(times):
        before = max(row["step"] for row in rows(run))
        began = time.time()
        process = started(folder, "resume", str(run))
        if number < times - 1:
            stop(process, run, before)
        elif process.wait(1800) != 0:
            fail(folder, f"the run ended with {process.returncode}")
        attempt = number + 2
        claimed = (run / "attempts" / str(attempt) / "owner.json").stat().st_mtime
        (at,) = [
            moment(event["time"])
            for event in read_lines(run / "events.jsonl")
            if event["kind"] == "start" and event["attempt"] == attempt
        ]
        new = [row["time"] for row in rows(run) if row["step"] > before]
        # A row is written when the figures of its step are read, DELAY steps later.
        step = statistics.median(np.diff(new[: DELAY + 2]))
        found["claimed"].append(claimed - began)
        found["built and loaded"].append(at - claimed)
        found["warm-up and a step"].append(new[0] - DELAY * step - at)
        found["first step"].append(new[0] - DELAY * step - began)
        found["first row"].append(new[0] - began)
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "import adafilter_dist.training.attempt"], cwd=ROOT, check=True
        )
        found["imports"].append(time.perf_counter() - began)
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_lines(run / "metrics.jsonl") if row["kind"] == "train"]


def stop(process: subprocess.Popen[bytes], run: Path, before: int) -> None:
    """TERM once three rows are new; the process must leave as stopped."""
    try:
        until = time.monotonic() + 600
        while sum(row["step"] > before for row in rows(run)) < DELAY + 2:
            if process.poll() is not None or time.monotonic() > until:
                fail(run.parent, "the run ended, or did no step in 10 minutes")
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        if process.wait(600) != 75:
            fail(run.parent, f"the run was not stopped but ended with {process.returncode}")
    finally:
        if process.poll() is None:
            process.kill()  # and its writer dies with it


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def loading(run: Path, times: int = 5) -> Times:
    """Seconds of reading and verifying the newest checkpoint, from memory and from the disk."""
    found: Times = defaultdict(list)
    checkpoints = Checkpoints(run)
    folder = next(checkpoints.steps())
    files = [*folder.iterdir(), *checkpoints.folder.glob("frozen.*")]
    found["megabytes"] = [sum(file.stat().st_size for file in files) / 1e6]
    for _ in range(times):
        for name in ("load from disk", "load from memory"):
            if name == "load from disk":
                for file in files:
                    with file.open("rb") as opened:
                        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            checkpoints.load(folder)
            found[name].append(time.perf_counter() - began)
    return found


def reductions(values: int, pairs: int, folder: Path) -> Times:
    """Seconds of all-reduces of ``values`` statistics with and without the flags, on two ranks."""
    answer = folder / "reductions.json"
    cuda = torch.cuda.device_count() >= 2
    context = torch.multiprocessing.get_context("spawn")
    arguments = (values, pairs, cuda, folder / "store", answer)
    ranks = [context.Process(target=reduce_pairs, args=(rank, *arguments)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(600)
        if rank.exitcode != 0:
            rank.kill()
            raise SystemExit("a rank of the all-reduces failed")
    found: Times = json.loads(answer.read_text())
    return found


def reduce_pairs(rank: int, values: int, pairs: int, cuda: bool, store: Path, answer: Path) -> None:
    """One rank: both lengths in turn, the other one first in every second pair."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    lengths = {"without": values + 3, "with": values + 3 + FLAGS}
    vectors = {name: torch.zeros(length, device=device) for name, length in lengths.items()}
    found: Times = defaultdict(list)
    for number in range(pairs + 100):
        names = list(vectors)[:: 1 if number % 2 else -1]
        for name in names:
            began = time.perf_counter()
            dist.all_reduce(vectors[name])
            if cuda:
                torch.cuda.synchronize()
            if number >= 100:
                found[name].append(time.perf_counter() - began)
    found["backend"] = [float(cuda)]
    if rank == 0:
        answer.write_text(json.dumps(found))
    dist.destroy_process_group()


# What is printed.


def tell_machine(session: Session, folder: Path) -> None:
    cuda = session.world.device.type == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"CPU, {session.world.threads} threads"
    model, train = session.recipe.model.name, session.recipe.train
    size = sum(tensor.nbytes for _, tensor in session.full_state().tensors()) / 1e6
    print(
        f"{processor()}, {os.cpu_count()} cores, {device}; files on {file_system(folder)}; "
        f"Python {platform.python_version()}, torch {torch.__version__}; load average at the "
        f"start {load()}.\n"
        f"{model} with AdaFilter, {session.preprocess.crop} px, batch {train.global_batch} in "
        f"micro-batches of {train.micro_batch}, {train.precision}; state {size:.0f} MB before "
        "the first step."
    )


def tell_saves(found: Times, first: list[float], step: float, recipe: Checkpoint) -> None:
    write, extra = statistics.median(found["write"]), statistics.median(found["extra"])
    every, mtbi = seconds(str(recipe.every)), seconds(recipe.mtbi)

    def shares(stall: float, write: float = 0.0) -> tuple[str, str]:
        best = best_interval(stall, stall + write, mtbi)
        return f"{stall / every:.3%}", f"{stall / best:.2%} (every {best:.0f} s)"

    title(f"Training stands still for a save (a step: {spread(found['step'])} ms)")
    table("", "stall, ms", "of a step", f"of all time, every={recipe.every}", "every=auto")
    for way in (OURS, WAITED, PLAIN, SYNCED):
        stall = statistics.median(found[way])
        told = shares(stall, write if way == OURS else 0.0)
        row(way, spread(found[way]), f"{stall / step:.1%}", *told)
    lost = statistics.median(found[OURS]) + max(0.0, extra)
    row(f"{OURS}, slower steps included", "", "", *shares(lost, write))
    row(f"{OURS}, the first of a run", spread(first), f"{statistics.median(first) / step:.1%}")
    row("- of the stall: look for NaN", spread(found["check"]))
    row("- of the stall: copy", spread(found["copy"]))
    title("Steps while the writer writes")
    table("", "")
    row("writing takes", f"{spread(found['write'])} ms")
    row("steps that it touches", spread(found["busy steps"], 1))
    row("such a step, mean", f"{1000 * statistics.fmean(found['busy step']):.0f} ms")
    row("a quiet step, mean", f"{1000 * statistics.fmean(found['step']):.0f} ms")
    row("slower by, round by round", f"{spread(found['slower'], 100)} %")
    row("a save costs in slower steps", f"{spread(found['extra'])} ms")


def sizes(last: Path, folder: Path) -> None:
    one = next(Checkpoints(last).steps())
    title("Bytes on disk")
    table("", "MB")
    plain = (folder / "plain.pt").stat().st_size / 1e6
    row("a checkpoint", f"{volume([one]):.1f}")
    row("the frozen weights, twice a run", f"{volume((last / 'checkpoints').glob('frozen.*')):.1f}")
    row("checkpoints/ at keep=2", f"{volume([last / 'checkpoints']):.1f}")
    row("a finished run, best/ and all", f"{volume([folder / 'run']):.1f}")
    row("torch.save of model and optimizer", f"{plain:.1f}")
    row("two of them", f"{2 * plain:.1f}")


def volume(places: Iterable[Path]) -> float:
    """Megabytes of the files in ``places``, folders or files."""
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def announce_start(found: Times, parts: dict[str, float]) -> None:
    megabytes = found["megabytes"][0]
    title("`adafilter resume`, from the start of the process")
    table("", "s")
    for name, label in (
        ("claimed", "until the run is claimed"),
        ("imports", "- of it the imports, alone"),
        ("built and loaded", "from there to the event `start`"),
        ("load from disk", "- of it load and verify, alone, from the disk"),
        ("load from memory", "- the same out of the page cache"),
        ("warm-up and a step", "from there to the end of the first step"),
        ("first step", "**from process start to the end of the first new step**"),
        ("first row", f"to its row in metrics.jsonl, {DELAY} steps later"),
    ):
        row(label, spread(found[name], 1.0, 2))
    row("building the session, alone (second in a process)", f"{parts['session']:.2f}")
    row("warm-up, alone", f"{parts['warm-up']:.2f}")
    for name in ("load from disk", "load from memory"):
        per = statistics.median(found[name]) / megabytes * 100
        row(f"{name}, per 100 MB", f"{per:.3f}")


def tell_agreement(found: Times, flags: list[float], values: int, step: float) -> None:
    pairs = zip(found["with"], found["without"], strict=True)
    more = statistics.median(a - b for a, b in pairs)
    reading = statistics.median(flags)
    backend = "NCCL" if found["backend"][0] else "gloo"
    title(f"Agreeing to stop ({backend}, 2 ranks, a vector of {values:,} statistics)")
    table("", "µs")
    row("all-reduce without the flags", spread(found["without"], 1e6))
    row(f"all-reduce with {FLAGS} more values", spread(found["with"], 1e6))
    row("difference, median of pairs", f"{1e6 * more:.1f}")
    row("putting the flags in, reading them later", spread(flags, 1e6))
    row("of a step", f"{(max(0.0, more) + reading) / step:.4%}")


def spread(times: list[float], scale: float = 1000.0, digits: int = 0) -> str:
    """The median, with the lowest and the highest."""
    low, middle, high = (
        f"{scale * pick(times):.{digits}f}" for pick in (min, statistics.median, max)
    )
    return f"{middle} ({low} to {high})"


def title(text: str) -> None:
    print(f"\n**{text}**\n")


def table(*cells: str) -> None:
    row(*cells)
    print("|---" * len(cells) + "|")


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system(folder: Path) -> str:
    """The kind of file system that a folder lies on."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [m for m in mounts if folder.resolve().is_relative_to(m[1])]
    return max(inside, key=lambda mount: len(mount[1]))[2]


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
