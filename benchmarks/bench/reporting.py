"""Results as a table on the console, a CSV and a Markdown file, with what they depend on."""

from __future__ import annotations

import csv
import datetime
import importlib
import io
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table as RichTable

from adafilter_dist.errors import UserError
from adafilter_dist.system.files import make_folder, write_text
from adafilter_dist.version import __version__
from bench.settings import Settings

Value = str | float | None


@dataclass(frozen=True)
class Column:
    """A heading, and digits behind the point if it holds numbers."""

    name: str
    digits: int | None = None

    def text(self, value: Value) -> str:
        """A value as it is shown; nothing for None."""
        if value is None or isinstance(value, str):
            return value or ""
        return f"{value:,.{self.digits or 0}f}"


@dataclass
class Table:
    """Rows under a title; numbers are kept whole and rounded only where they are shown."""

    title: str
    columns: list[Column]
    rows: list[list[Value]] = field(default_factory=list)

    def add(self, *values: Value) -> None:
        """One row; ValueError if it has another length or a number is not finite."""
        if len(values) != len(self.columns):
            raise ValueError(f"{len(values)} values for {len(self.columns)} columns")
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            raise ValueError(f"a number of {values} is not finite")
        self.rows.append(list(values))

    def shown(self) -> list[list[str]]:
        """The rows as text."""
        return [
            [column.text(value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def markdown(self) -> str:
        """The table in Markdown, the title in bold above."""
        lines = [
            "| " + " | ".join(column.name for column in self.columns) + " |",
            "|" + "".join("---|" if c.digits is None else "---:|" for c in self.columns),
            *("| " + " | ".join(cells) + " |" for cells in self.shown()),
        ]
        return f"**{self.title}**\n\n" + "\n".join(lines) + "\n"

    def print_markdown(self) -> None:
        """In Markdown, to be copied into a page."""
        print(f"\n{self.markdown()}", end="", flush=True)

    def csv(self, facts: dict[str, str]) -> str:
        """The whole numbers, behind the facts as comment lines."""
        out = io.StringIO()
        out.writelines(f"# {key}: {value}\n" for key, value in facts.items())
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        writer.writerows([["" if v is None else v for v in row] for row in self.rows])
        return out.getvalue()

    def print(self, console: Console) -> None:
        """On a terminal."""
        table = RichTable(title=self.title)
        for column in self.columns:
            table.add_column(
                column.name, justify="left" if column.digits is None else "right", overflow="fold"
            )
        for cells in self.shown():
            table.add_row(*cells)
        console.print(table)


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def facts(settings: Settings) -> dict[str, str]:
    """What the numbers depend on: machine, versions, the command."""
    built_with = re.search(r"MKL-DNN v([\w.]+)", torch.__config__.show())
    lines = {
        "command": settings.command,
        "adafilter-dist": f"{__version__}, commit {commit()}",
        "hardware": hardware(settings.device),
        "threads": f"{settings.threads} of {os.cpu_count()} CPUs",
        "precision": settings.precision
        + (", autocast, weights in fp32" if settings.precision == "bf16" else ""),
        "layout": "channels-last",
        "weights": f"random, seed {settings.seed}: their values do not change the speed",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "oneDNN": built_with[1] if built_with else "none",
        "Python": platform.python_version(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    }
    if settings.device.type == "cuda":
        lines["cuDNN"] = str(torch.backends.cudnn.version())
        lines["CUDA"] = str(torch.version.cuda)
        tf32 = torch.backends.cudnn.allow_tf32
        lines["fp32 on the GPU"] = f"matmul high, convolutions {'TF32' if tf32 else 'full'}"
    return lines


def require_folder(settings: Settings) -> None:
    """Make --out before anything is measured; UserError if that fails or it cannot be written."""
    try:
        make_folder(settings.out)
    except OSError as error:
        raise UserError(f"--out {settings.out}: cannot be made: {error.strerror}") from error
    if not os.access(settings.out, os.W_OK):
        raise UserError(f"--out {settings.out}: not writable")


def write(settings: Settings, table: Table, notes: Sequence[str], own: dict[str, str]) -> Path:
    """Print the table; write its CSV and Markdown, each whole or not at all. The Markdown's path.

    A result of the same day with the same settings is replaced, and said to be.
    """
    name = file_name(settings)
    path = settings.out / f"{name}.md"
    try:
        if path.exists():
            say(f"replaces {path}")
        lines = [f"- {key}: {value}" for key, value in own.items()]
        text = "\n".join(["", *notes, ""]) if notes else ""
        write_text(settings.out / f"{name}.csv", table.csv(own))
        write_text(path, f"{table.markdown()}{text}\n" + "\n".join(lines) + "\n")
    except OSError as error:
        raise UserError(f"--out {settings.out}: cannot write there: {error}") from error
    console = Console()
    table.print(console if console.is_terminal else Console(width=140))
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    console.print(f"written: {path} and .csv", soft_wrap=True, highlight=False)
    return path


def file_name(settings: Settings) -> str:
    """<what>-<model>-<hardware>-<date>; what is not the default belongs to `what`."""
    what = [settings.what]
    what += ["bf16"] if settings.precision == "bf16" else []
    what += ["compile"] if settings.compile else []
    what += [f"batch{'+'.join(map(str, settings.batch))}"] if settings.batch else []
    what += [f"{settings.size}px"] if settings.size != 160 else []
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    words = ("-".join(what), settings.model, hardware(settings.device), today)
    return "-".join(slug(word) for word in words)


def slug(text: str) -> str:
    """Letters, digits, points, plus and minus alone."""
    text = re.sub(r"\((r|tm)\)|\bcpu\b|@", " ", text.lower())
    return re.sub(r"[^a-z0-9.+-]+", "-", text).strip("-")


def hardware(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load_average() -> str:
    """Of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def commit() -> str:
    """The clone's commit, and whether files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head, status = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + (" with changes" if status.strip() else "")


def _version(name: str) -> str:
    try:
        return str(importlib.import_module(name).__version__)
    except ImportError:
        return "none"
