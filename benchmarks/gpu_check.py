"""All that only a GPU can show, in order of worth, each part with a limit of its own.

    make gpu-check                                        # everything, about 12 minutes on one H100
    python benchmarks/gpu_check.py --list                 # the parts, their limits, what each shows
    python benchmarks/gpu_check.py --half 1               # correctness; --half 2: speed
    python benchmarks/gpu_check.py --only kernels,resume  # these parts alone
    python benchmarks/gpu_check.py --first 300            # begin no part that may end after 300 s
    python benchmarks/gpu_check.py --device cpu --only identities,precisions,resume

Every part is a process; one that fails or takes too long is killed with its children, and the next
begins. Output and results are written as they come to benchmarks/results/gpu-<card>-<date>/ (or
--out): PART.log, results of the benchmarks, summary.md with a table of the parts. A part whose
package is missing is skipped with the reason. Exits 1 if a part failed, 2 where there is no GPU,
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from adafilter_dist.system.files import make_folder, write_text

HERE = Path(__file__).resolve().parent
OPERATIONS = "tests/models/ops"
LAST_LINES = 12
_ON_CPU = 10  # limits are those of a GPU; a CPU, busy perhaps, needs longer


@dataclass(frozen=True)
class Part:
    """One process: its command, most seconds, what it shows, the packages that it needs."""

    name: str
    half: int
    limit: int
    shows: str
    command: tuple[str, ...]
    packages: tuple[str, ...] = ()
    on_cpu: bool = False


def parts(device: str, scratch: Path, out: Path) -> list[Part]:
    """All parts, in order of worth within each half."""
    small = ("--device", "cpu", "--pictures", "512") if device == "cpu" else ()

    def script(name: str, *words: str) -> tuple[str, ...]:
        return (sys.executable, str(HERE / name), *words)

    def run(part: str) -> tuple[str, ...]:
        return script("gpu_runs.py", part, str(scratch), *small)

    def speed(what: str, *words: str) -> tuple[str, ...]:
        return script("speed.py", what, "--precision", "bf16", "--out", str(out), *words)

    tests = (
        *(f"{OPERATIONS}/test_{name}.py" for name in ("layer_triton", "gate_step")),
        *(f"{OPERATIONS}/test_{name}.py" for name in ("chosen_moments", "selected_triton")),
        f"{OPERATIONS}/test_operator_tape.py",
        "tests/models/inference/test_cuda_graph.py",
    )
    workers = ("-n", "6") if importlib.util.find_spec("xdist") else ()
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers)
    all_parts = [
        Part(
            "doctor",
            1,
            40,
            "what is installed, as `adafilter doctor` tells it",
            (sys.executable, "-m", "adafilter_dist", "doctor"),
            on_cpu=True,
        ),
        Part(
            "kernels",
            1,
            120,
            "Triton kernels against float64, the same bits twice; capture",
            (*pytest, "-k", "cuda or recorded", *tests),
            ("pytest", "triton"),
        ),
        Part(
            "identities",
            1,
            150,
            "fused = plain modules, fp64 to fp16; compiled; deterministic",
            script("gpu_identities.py", "--device", device),
            on_cpu=True,
        ),
        Part(
            "precisions",
            1,
            120,
            "training by torchrun in fp32, bf16, fp16; NCCL of one rank",
            run("precisions"),
            on_cpu=True,
        ),
        Part(
            "resume",
            1,
            200,
            "killed with -9 and resumed: the bits of a run left alone",
            run("resume"),
            on_cpu=True,
        ),
        Part(
            "nvjpeg",
            1,
            200,
            "the same where the GPU decodes (data.loader=nvjpeg)",
            run("nvjpeg"),
            ("torchcodec",),
        ),
        Part(
            "graph",
            1,
            150,
            "replayed steps: the bits of eager ones; step time eager, replayed, compiled",
            script("gpu_graph.py", "--device", device),
            on_cpu=True,
        ),
        Part("memory", 1, 90, "out of memory is one line, and what it names fits", run("memory")),
        Part(
            "deepspeed",
            1,
            60,
            "ZeRO-2: two steps, a save and a load",
            run("deepspeed"),
            ("deepspeed",),
        ),
        Part(
            "train",
            2,
            110,
            "a step against plain fine-tuning, batches 64 and 256",
            speed("train", "--batch", "64,256", "--size", "224", "--repeats", "5"),
        ),
        Part(
            "step",
            2,
            90,
            "nothing in a step waits; 1 to 8 micro-batches of 32 a forward",
            script("gpu_step.py", "train.precision=bf16"),
        ),
        Part(
            "bandwidth",
            2,
            60,
            "each kernel against a copy and a matrix product",
            script("kernels.py", "--repeats", "10", "--csv", str(out / "kernels.csv")),
            ("triton",),
        ),
        Part(
            "infer",
            2,
            70,
            "inference against plain, batches 1, 8, 64, 256",
            speed("infer", "--batch", "1,8,64,256", "--size", "224", "--repeats", "5"),
        ),
        Part(
            "peak",
            2,
            60,
            "memory of a step against plain",
            speed("memory", "--batch", "64", "--size", "224"),
        ),
        Part("loader", 2, 150, "ResNet-50 at 224 px, by each decoder: data wait", run("loader")),
        Part(
            "jpeg",
            2,
            90,
            "nvJPEG beside the loader: speed, bits, damage",
            script("gpu_jpeg.py"),
            ("torchcodec",),
        ),
        Part(
            "compiled",
            2,
            200,
            "a step under torch.compile, beside eager",
            speed("train", "--compile", "--batch", "256", "--size", "224", "--repeats", "3"),
        ),
    ]
    if device == "cpu":
        return [replace(part, limit=_ON_CPU * part.limit) for part in all_parts]
    return all_parts


@dataclass
class Outcome:
    """What became of a part."""

    part: Part
    state: str
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)


def not_possible(part: Part, device: str) -> str | None:
    """Why a part cannot run here, None if it can."""
    if device == "cpu" and not part.on_cpu:
        return "needs a GPU"
    missing = [name for name in part.packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else None


def run_part(part: Part, log: Path) -> Outcome:
    """Run it with its output in ``log``, and end it with its children at its limit."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    path = [str(HERE.parent), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    with log.open("wb") as output:
        output.write(f"$ {shlex.join(part.command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            part.command,
            cwd=HERE.parent,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(part.limit)
            state = "ok" if code == 0 else f"FAILED, exit code {code}"
        except subprocess.TimeoutExpired:
            state = f"FAILED, ended after its {part.limit} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return Outcome(part, state, time.perf_counter() - began, lines)


def summary(outcomes: list[Outcome], facts: Mapping[str, str]) -> str:
    """The table of the parts and the machine, in Markdown."""
    lines = ["| part | what it shows | result | s |", "|---|---|---|---:|"]
    lines += [f"| {o.part.name} | {o.part.shows} | {o.state} | {o.seconds:.0f} |" for o in outcomes]
    return "\n".join([*lines, "", *(f"- {key}: {value}" for key, value in facts.items()), ""])


def facts(device: str) -> dict[str, str]:
    """The card and the versions."""
    known = {"python": platform.python_version(), "torch": torch.__version__}
    if device == "cuda":
        known["card"] = torch.cuda.get_device_name()
        known["CUDA, cuDNN"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
    with contextlib.suppress(ImportError):
        import triton

        known["triton"] = triton.__version__
    return known


def folder_name(device: str) -> str:
    """gpu-<card>-<date>."""
    card = torch.cuda.get_device_name() if device == "cuda" else "none"
    slug = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    return f"gpu-{slug}-{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"


@contextlib.contextmanager
def scratch_folder(path: Path | None) -> Iterator[Path]:
    """The folder asked for, or one that is removed at the end."""
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="adafilter-gpu-check-") as name:
            yield Path(name)


def chosen(known: list[Part], only: str | None, half: int | None) -> list[Part]:
    """The parts asked for; SystemExit with the known names for an unknown one."""
    names = [part.name for part in known]
    wanted = names if only is None else only.split(",")
    unknown = [name for name in wanted if name not in names]
    if unknown:
        print(
            f"--only: no part {', '.join(unknown)}; there are {', '.join(names)}", file=sys.stderr
        )
        raise SystemExit(2)
    return [part for part in known if part.name in wanted and half in (None, part.half)]


def check(todo: list[Part], out: Path, device: str, first: float) -> list[Outcome]:
    """Run the parts one after the other; the summary is on disk after each of them."""
    began = time.perf_counter()
    outcomes: list[Outcome] = []
    for part in todo:
        reason = not_possible(part, device)
        left = first - (time.perf_counter() - began)
        if reason is None and left < part.limit:
            reason = f"{left:.0f} s were left, it may take {part.limit}"
        if reason is not None:
            outcomes.append(Outcome(part, f"skipped: {reason}"))
        else:
            print(f"{part.name}: {part.shows} ...", flush=True)
            outcomes.append(run_part(part, out / f"{part.name}.log"))
        last = outcomes[-1]
        print(f"{part.name}: {last.state}, {last.seconds:.0f} s", flush=True)
        if last.state.startswith("FAILED"):
            print("\n".join(f"    {line[:200]}" for line in last.lines), flush=True)
        write_text(out / "summary.md", summary(outcomes, facts(device)))
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="name the parts and end")
    parser.add_argument("--only", metavar="PART,...", help="these parts alone")
    parser.add_argument("--half", type=int, choices=[1, 2], help="1: correctness, 2: speed")
    parser.add_argument("--first", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--scratch", type=Path, help="folder of pictures and runs, kept")
    words = parser.parse_args()
    if words.list:
        for part in parts(words.device, Path("SCRATCH"), Path("OUT")):
            print(f"{part.name:12}half {part.half}  at most {part.limit:3} s  {part.shows}")
        return 0
    if words.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check.py: torch sees no GPU here; see --device cpu", file=sys.stderr)
        return 2
    out = words.out or HERE / "results" / folder_name(words.device)
    make_folder(out)
    with scratch_folder(words.scratch) as scratch:
        known = parts(words.device, scratch, out.absolute())
        outcomes = check(chosen(known, words.only, words.half), out, words.device, words.first)
    print(f"\n{summary(outcomes, facts(words.device))}\nwritten: {out}")
    return 1 if any(outcome.state.startswith("FAILED") for outcome in outcomes) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
