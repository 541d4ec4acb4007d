"""The fast tests and the demo's first epoch on every Python, with the oldest and the newest torch.

Each case is a clone of the last commit of its own, set up by its ``make setup``; what it came to is
written at once into its row of docs/versions.md.

    python tools/versions.py --list
    python tools/versions.py --only 3.12/oldest 3.13
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

CLONE = Path(__file__).resolve().parent.parent
TABLE = CLONE / "docs" / "versions.md"
HEARTBEAT_S = 60
SPACE = 8e9  # an environment and its packages in the installer's cache: the same files
PACKAGES = ("torch", "torchvision", "numpy", "triton", "ffcv", "deepspeed")
_SHOW = """
import importlib.metadata as m, json, platform
installed = {d.name.lower(): d.version for d in m.distributions()}
print(json.dumps({"python": platform.python_version(), **installed}))
"""


@dataclass(frozen=True)
class Case:
    """One environment: a Python, and versions that are fixed; the newest of all the rest."""

    name: str
    python: str
    constraints: tuple[str, ...]


class StepError(Exception):
    """A step of a case ended badly: one line."""


def bounds(lines: list[str]) -> list[str]:
    """The lower bounds of requirements, as constraints: ``torch>=2.11`` gives ``torch==2.11``."""
    pins = []
    for requirement in map(Requirement, lines):
        for one in requirement.specifier:
            if one.operator == ">=":
                pins.append(f"{requirement.name}=={one.version}")
    return pins


def matrix(pyproject: Path) -> list[Case]:
    """What pyproject.toml allows.

    ``oldest`` has the oldest torch, with the torchvision that belongs to it; ``lowest``, on the
    oldest Python alone, all of the core's requirements at their lower bounds.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    allowed = SpecifierSet(project["requires-python"])
    words = [
        line.rpartition(" :: ")[2] for line in project["classifiers"] if ":: Python ::" in line
    ]
    pythons = [word for word in words if re.fullmatch(r"3\.\d+", word) and word in allowed]
    lowest = bounds(project["dependencies"])
    oldest = [line for line in lowest if line.startswith("torch==")]
    cases = []
    for python in pythons:
        cases.append(Case(f"{python}/oldest", python, tuple(oldest)))
        cases.append(Case(f"{python}/newest", python, ()))
    return [*cases, Case(f"{pythons[0]}/lowest", pythons[0], tuple(lowest))]


def find_python(version: str) -> str:
    """A Python of ``version``: on PATH or pyenv's; otherwise ``version``, for uv to find."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    beside = sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True)
    for python in (shutil.which(f"python{version}"), *map(str, beside)):
        # pyenv leaves commands on PATH that only say that no version was chosen.
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return python
    return version


def end(process: subprocess.Popen[bytes]) -> None:
    """End ``process`` and all that it started, also what has a session of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(family, timeout=10)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what was started meanwhile
    # Not Popen.wait: a Ctrl-C within Popen.poll can leave its lock taken for ever.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, 0)


def run(
    command: list[str], folder: Path, log: Path, limit_s: float, environment: dict[str, str]
) -> str:
    """Run a step, its output in ``log``: what it printed; StepError with its last line."""
    with log.open("a") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        first = out.tell()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to us alone
        )
        begun = time.monotonic()
        try:
            while process.poll() is None:
                left = begun + limit_s - time.monotonic()
                if left <= 0:
                    end(process)
                    raise StepError(f"not done in {limit_s / 60:g} min")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(left, HEARTBEAT_S))
                if process.returncode is None:
                    say(f"    ... {time.monotonic() - begun:.0f} s")
        except BaseException:
            end(process)
            raise
    with log.open(errors="replace") as text:
        text.seek(first)
        printed = text.read()
    if process.returncode:
        raise StepError(f"exit {process.returncode}: {last_line(printed)}", printed)
    return printed


def last_line(printed: str) -> str:
    """The last line that says something: not make's own, which only passes the failure on."""
    lines = [line.strip() for line in printed.splitlines()]
    kept = [line for line in lines if line and not re.match(r"make(\[\d+\])?: ", line)]
    return kept[-1][:160].replace("|", "/") if kept else "it printed nothing"


def counted(printed: str) -> str:
    """pytest's counts, added up over its runs: ``2,881 passed, 26 skipped``; empty if none end."""
    counts: Counter[str] = Counter()
    for line in re.findall(r"^=* ?(\d+ \w+(?:, \d+ \w+)*) in [\d.]+s", printed, re.MULTILINE):
        for number, word in re.findall(r"(\d+) (\w+)", line):
            counts[word.removesuffix("s")] += int(number)
    shown = [word for word in ("failed", "error", "passed", "skipped") if counts[word]]
    return ", ".join(f"{counts[word]:,} {word}" for word in shown)


def remarks(printed: str) -> list[str]:
    """What to look at: tests that failed, and why others were skipped."""
    failed = re.findall(r"^(?:FAILED|ERROR) .*", printed, re.MULTILINE)
    reasons: Counter[str] = Counter()
    for number, reason in re.findall(r"^SKIPPED \[(\d+)\] \S+ (.*)", printed, re.MULTILINE):
        reasons[reason] += int(number)
    return [*failed, *(f"skipped {number}: {reason}" for reason, number in reasons.items())]


def try_case(case: Case, folder: Path, limit_s: float) -> tuple[dict[str, str], bool]:
    """Set up, test and train in a fresh clone at ``folder``: the cells of its row, and success."""
    cells = dict.fromkeys(("python", *PACKAGES, "tests", "demo"), "-")
    log = folder.parent / f"{folder.name}.log"
    log.unlink(missing_ok=True)
    constraints = folder / "constraints-of-the-case.txt"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    environment = kept | {
        "ADAFILTER_PYTHON": find_python(case.python),
        # Not by the set-up's own constraints: these it takes from uv's cache, whatever is newer.
        "ADAFILTER_CONSTRAINTS": "",
        "UV_CONSTRAINT": str(constraints),
    }
    environment.pop("VIRTUAL_ENV", None)
    python, adafilter = (str(folder / ".venv" / "bin" / name) for name in ("python", "adafilter"))

    def step(name: str, *command: str) -> str:
        say(f"  {name}")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.monotonic()
        printed = run(list(command), folder, log, limit_s, environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        say(f"    {time.monotonic() - begun:.0f} s, {cpu:.0f} s of CPU time")
        return printed

    ok = True
    try:
        subprocess.run(["git", "clone", "-q", str(CLONE), str(folder)], check=True)
        constraints.write_text("".join(f"{line}\n" for line in case.constraints))
        step("set-up", "make", "setup")
        shown = json.loads(subprocess.check_output([python, "-c", _SHOW], cwd=folder))
        cells |= {name: shown[name] for name in ("python", *PACKAGES) if name in shown}
    except StepError as error:
        cells["tests"] = f"no set-up: {error.args[0]}"
        return cells, False
    try:
        printed = step("fast tests", "make", "test-fast")
        cells["tests"] = counted(printed) or "none ran"
    except StepError as error:
        ok, printed = False, "".join(error.args[1:])
        cells["tests"] = counted(printed) or error.args[0]
    for line in remarks(printed):
        say(f"    {line}")
    try:
        step("demo: pictures", adafilter, "prepare", "recipe=demo")
        step("demo: one epoch", adafilter, "train", "recipe=demo", "train.epochs=1")
        summary = next(folder.glob("runs/demo/*/figures/summary.json"))
        top1 = json.loads(summary.read_text())["evaluation"]["top1"]
        cells["demo"] = f"{100 * top1:.1f} %"
    except StepError as error:
        ok, cells["demo"] = False, error.args[0]
    return cells, ok


def write_row(table: Path, case: str, cells: dict[str, str]) -> None:
    """Put the row of ``case`` into the table, in place of an older one, sorted."""
    row = [case, *cells.values(), time.strftime("%Y-%m-%d")]
    lines = table.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| case "))
    stop = start + 2
    while stop < len(lines) and lines[stop].startswith("|"):
        stop += 1
    rows = [line for line in lines[start + 2 : stop] if line.split("|")[1].strip() != case]
    lines[start + 2 : stop] = sorted([*rows, "| " + " | ".join(row) + " |"])
    partial = table.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(table)


def say(line: str) -> None:
    """A line of progress, at once."""
    print(line, flush=True)


def refuse(line: str) -> NoReturn:
    """End with one line and 2."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def chosen(cases: list[Case], words: list[str]) -> list[Case]:
    """The cases that ``--only`` names, by their names or their Python."""
    known = {case.name for case in cases} | {case.python for case in cases}
    for word in words:
        if word not in known:
            names = ", ".join(case.name for case in cases)
            refuse(f"--only {word}: there is {names}")
    return [case for case in cases if not words or {case.name, case.python} & set(words)]


def main() -> int:
    """Run the cases one after the other; 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="show the cases and end")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="CASE", help="3.12/oldest, or 3.12"
    )
    parser.add_argument(
        "--limit", type=float, default=60, metavar="MIN", help="of a step, in minutes"
    )
    parser.add_argument("--keep", action="store_true", help="keep the clones, 6 GB each")
    options = parser.parse_args()
    cases = chosen(matrix(CLONE / "pyproject.toml"), options.only)
    if options.list:
        for case in cases:
            say(f"{case.name:12} {' '.join(case.constraints) or 'the newest of everything'}")
        return 0
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("ADAFILTER_CACHE") or Path(cache, "adafilter")) / "versions"
    folder.mkdir(parents=True, exist_ok=True)
    changed: Any = subprocess.run(
        ["git", "-C", str(CLONE), "status", "--porcelain", "-uno"], capture_output=True, text=True
    )
    if changed.returncode:
        refuse(f"{CLONE} is no git clone: the cases are clones of it")
    if changed.stdout:
        say("what is not committed is left out")
    failed = []
    for number, case in enumerate(cases, 1):
        say(f"[{number}/{len(cases)}] {case.name}: log {folder / case.name.replace('/', '-')}.log")
        if shutil.disk_usage(folder).free < SPACE:
            refuse(
                f"{folder}: less than {SPACE / 1e9:g} GB are free; ADAFILTER_CACHE names another"
            )
        clone = folder / case.name.replace("/", "-")
        shutil.rmtree(clone, ignore_errors=True)
        try:
            cells, ok = try_case(case, clone, 60 * options.limit)
        finally:
            if not options.keep:
                shutil.rmtree(clone, ignore_errors=True)
        write_row(TABLE, case.name, cells)
        say(f"  tests: {cells['tests']}; demo: {cells['demo']}")
        failed += [] if ok else [case.name]
    say(f"{len(cases) - len(failed)} of {len(cases)} held; {TABLE}")
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
