"""What the timings are taken with: the command line, checked, and the pins of the process."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import torch

from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.zoo import zoo_of
from adafilter_dist.slurm.cpus import cpus_of_rank
from adafilter_dist.system.freed_memory import keep_freed_memory

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RESULTS = Path(__file__).parents[1] / "results"
LEAST_SIZE = 32


@dataclass(frozen=True)
class Settings:
    """`batch` is empty where none was given; `what` is the first word of speed.py."""

    what: str
    model: str
    batch: tuple[int, ...]
    size: int
    precision: Precision
    compile: bool
    repeats: int
    threads: int
    device: torch.device
    out: Path
    command: str
    only: str | None = None
    classes: int = 101
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """That of activations."""
        return DTYPES[self.precision]

    @property
    def device_name(self) -> str:
        """As the command line takes it."""
        return str(self.device)

    def batches(self, usual: tuple[int, ...]) -> tuple[int, ...]:
        """Those given, or the usual ones."""
        return self.batch or usual

    def pin(self) -> None:
        """Fix threads and seeds; choose kernels and keep freed memory as the package's runs do."""
        torch.set_num_threads(self.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(self.seed)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True

    def autocast(self) -> torch.autocast:
        """bf16 where it was asked for, else without effect."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )


class Parser(argparse.ArgumentParser):
    """argparse with the package's way to say a mistake: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help says what is allowed)")


def parse(
    description: str,
    words: Sequence[str] | None,
    *,
    what: Sequence[str] = (),
    compiled: Sequence[str] = (),
    repeats: int = 10,
) -> Settings:
    """Settings from the command line (sys.argv by default); UserError for what cannot be.

    `what` are the allowed first words, none if the script does one thing; those `compiled` take
    --compile.
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if what:
        parser.add_argument("what", choices=what, help="what is measured")
    parser.add_argument("--model", default="resnet50", help="a network by name (resnet50)")
    parser.add_argument("--batch", default="", help="images, or several with commas (16, 1,8,64)")
    parser.add_argument("--size", type=int, default=160, help="pixels (160)")
    parser.add_argument("--precision", default="fp32", choices=[*DTYPES], help="bf16: autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile beside eager")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds ({repeats})")
    parser.add_argument("--threads", type=int, default=cpus_of_rank(), help="of a CPU (all)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (cuda where there is one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (benchmarks/results)")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # memory: one variant, a process each
    options = parser.parse_args(words)
    first = options.what if what else ""
    _require(
        not options.compile or first in compiled,
        f"--compile: for {' and '.join(compiled) or 'speed.py'} only",
    )
    _require(options.size >= LEAST_SIZE, f"--size {options.size}: at least {LEAST_SIZE} pixels")
    _require(options.repeats >= 1, f"--repeats {options.repeats}: at least 1 round")
    _require(options.threads >= 1, f"--threads {options.threads}: at least 1")
    _require(
        not options.out.exists() or options.out.is_dir(),
        f"--out {options.out}: a file, not a folder",
    )
    zoo_of(options.model)
    return Settings(
        what=first,
        model=options.model,
        batch=_batches(options.batch, least=2 if first in TRAINING else 1),
        size=options.size,
        precision=options.precision,
        compile=options.compile,
        repeats=options.repeats,
        threads=options.threads,
        device=_device(options.device),
        out=options.out,
        command=_command(words),
        only=options.only,
    )


TRAINING = ("train", "memory")  # a BatchNorm cannot train on one image


def _batches(text: str, least: int) -> tuple[int, ...]:
    words = [word for word in text.split(",") if word.strip()]
    try:
        sizes = tuple(int(word) for word in words)
    except ValueError:
        raise UserError(f"--batch {text}: whole numbers with commas between, like 1,8,64") from None
    _require(all(n >= least for n in sizes), f"--batch {text}: at least {least} each")
    return sizes


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; cpu, cuda or cuda:NUMBER") from None
    _require(device.type in ("cpu", "cuda"), f"--device {name}: only cpu and cuda are measured")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        _require((device.index or 0) < count, f"--device {name}: there are {count} GPUs here")
    return device


def _command(words: Sequence[str] | None) -> str:
    own = sys.argv[1:] if words is None else list(words)
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *own])


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
