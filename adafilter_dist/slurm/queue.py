"""Asks SLURM about jobs: one call for any number of them, each with a time-out."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

_ID = re.compile(r"\d+(_\d+)?")
_PENDING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_RUNNING = {
    *("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED"),
    *("RESIZING", "SIGNALING", "STAGE_OUT"),
}
_WHY = {
    "Resources": "waiting for free nodes",
    "Priority": "behind jobs of higher priority",
    "BeginTime": "SLURM waits before it starts the job",
    "Dependency": "waiting for another job",
    "DependencyNeverSatisfied": "what it waits for will not happen: scancel {job}",
    "JobHeldUser": "held: scontrol release {job}",
    "JobHeldAdmin": "held by an administrator",
    "job requeued in held state": "scontrol release {job}",
    "launch failed requeued held": "scontrol release {job}",
    "JobArrayTaskLimit": "as many of the array run as may at once",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "PartitionNodeLimit": "asks for more nodes than the partition allows",
    "PartitionDown": "the partition takes no jobs just now",
    "PartitionInactive": "the partition starts no jobs just now",
    "ReqNodeNotAvail": "nodes are down, drained or reserved",
    "NodeDown": "a node is down",
    "BadConstraints": "no node is as the job wants it",
    "Reservation": "waiting for its reservation",
    "Licenses": "waiting for a licence",
    "Cleaning": "what is left of its last start is being cleaned up",
}


@dataclass(frozen=True)
class QueuedJob:
    """A job as SLURM knows it. ``state`` and ``reason`` are SLURM's words.

    ``name`` is 1234, or 1234_5 in an array; ``number`` is what SLURM_JOB_ID holds in it. ``start``
    in seconds since 1970: when it started last, or, while it is pending, is expected to.
    """

    name: str
    number: str
    state: str
    reason: str = ""
    nodes: tuple[str, ...] = ()
    start: float | None = None

    @property
    def pending(self) -> bool:
        """Whether it waits to be started, for the first time or again."""
        return self.state in _PENDING

    @property
    def running(self) -> bool:
        """Whether it has nodes, those about to start or to end included."""
        return self.state in _RUNNING

    @property
    def ended(self) -> bool:
        """Whether it is over and will not be started again."""
        return not self.pending and not self.running

    @property
    def why(self) -> str:
        """SLURM's reason and, where there are any, plain words for it."""
        words = _WHY.get(self.reason.partition(",")[0])
        if words is None and re.match(r"(Assoc|QOS)", self.reason):
            words = "a limit of the account or QOS"
        return f"{self.reason} ({words.format(job=self.name)})" if words else self.reason

    @property
    def state_text(self) -> str:
        """The state as SLURM spells it, with its reason once the job has ended."""
        return f"{self.state} ({self.reason})" if self.ended and self.reason else self.state


def jobs(ids: Iterable[str]) -> dict[str, QueuedJob] | None:
    """What SLURM knows of jobs, by id (1234 or 1234_5); None where SLURM cannot be asked.

    A member of an array that was started can also be asked for by its SLURM_JOB_ID.
    """
    queue = Queue()
    known = queue.look(ids)
    return None if queue.trouble else {name: job for name, job in known.items() if job}


class Queue:
    """SLURM, asked at most every so many seconds; each call is given up after ``timeout``.

    ``trouble`` says after :meth:`look` why SLURM could not be asked; empty if it was. ``asked``:
    when the answer was given, in seconds since 1970.
    """

    def __init__(self, *, every: float = 0.0, timeout: float = 5.0) -> None:
        self.trouble = ""
        self.asked = 0.0
        self._every = every
        self._timeout = timeout
        self._next = 0.0
        self._answer: dict[str, QueuedJob | None] = {}
        self._past: dict[str, QueuedJob | None] = {}  # squeue has forgotten them, for good

    def look(
        self, ids: Iterable[str], *, past: Collection[str] | None = None
    ) -> Mapping[str, QueuedJob | None]:
        """Jobs by id; None for one that SLURM does not know, no entry for one not asked for yet.

        ``past``: of these (default all) accounting is asked where the queue has forgotten them.
        """
        if time.monotonic() < self._next:
            return self._answer
        self.trouble = ""
        self.asked = time.time()
        ids = {name for name in ids if _ID.fullmatch(name)}
        queued = self._queued(sorted(ids - set(self._past)))
        if queued is None:
            self._answer = {}
        else:
            gone = ids - set(queued) - set(self._past)
            self._ask_past(sorted(gone if past is None else gone & set(past)))
            self._answer = {name: queued.get(name) or self._past.get(name) for name in ids}
        self._next = time.monotonic() + self._every
        return self._answer

    def _queued(self, ids: list[str]) -> dict[str, QueuedJob] | None:
        """What squeue knows, those that ended minutes ago included."""
        if not ids:
            return {}
        # The reason comes last: it is the only field that can hold anything.
        form = "%i|%A|%T|%S|%N|%r"
        answer = self._run(["squeue", "-h", "-r", "-t", "all", "-o", form, "-j", ",".join(ids)])
        if answer is None:
            return None
        code, output, errors = answer
        # Said of a single unknown job only; among several it is left out.
        if code and "Invalid job id" not in errors:
            last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
            self.trouble = f"squeue says: {last}"
            return None
        queued = {}
        for line in output.splitlines():
            fields = line.split("|", 5)
            if len(fields) == 6:
                name, number, state, start, nodes, reason = fields
                if state in ("CANCELLED", "COMPLETED"):
                    reason = ""  # left over from when it was pending
                job = QueuedJob(
                    name, number, state, _meant(reason), hosts(_meant(nodes)), _seconds(start)
                )
                queued[name] = queued[number] = job
        return queued

    def _ask_past(self, ids: list[str]) -> None:
        """Of jobs that squeue has forgotten, how they ended: where there is accounting."""
        if not ids:
            return
        form = "JobID,JobIDRaw,State,ExitCode,Start,NodeList"
        answer = self._run(["sacct", "-X", "-n", "-P", "-o", form, "-j", ",".join(ids)])
        if answer is None or answer[0]:
            self.trouble = ""  # the queue did answer
            return
        self._past |= dict.fromkeys(ids)
        for line in answer[1].splitlines():
            fields = line.split("|")
            if len(fields) != 6 or fields[0] not in ids:
                continue
            name, number, state, code, start, nodes = fields
            # "CANCELLED by 1000"
            job = QueuedJob(
                *(name, number, state.split()[0], _code(code)),
                *(hosts(_meant(nodes)), _seconds(start)),
            )
            if job.ended:  # else accounting has missed its end
                self._past[name] = job

    def _run(self, command: list[str]) -> tuple[int, str, str] | None:
        # What users set for their own squeue and sacct must not filter or format ours.
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SACCT_"))}
        try:
            done = subprocess.run(
                command,
                env=ours | {"SLURM_TIME_FORMAT": "%s"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._timeout,
                check=False,
            )
        except FileNotFoundError:
            self.trouble = f"no {command[0]} here"
        except OSError as error:
            self.trouble = f"{command[0]}: {error.strerror}"
        except subprocess.TimeoutExpired:
            self.trouble = f"{command[0]} gave no answer within {self._timeout:.0f} s"
        else:
            return done.returncode, done.stdout, done.stderr
        return None


def hosts(text: str) -> tuple[str, ...]:
    """The hosts in a list as SLURM writes it: ``n[1-2,07],login`` is n1, n2, n07, login."""
    names: list[str] = []
    for group in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        pieces = re.split(r"\[([^\]]*)\]", group)  # every second one stood in brackets
        choices = [_range(p) if i % 2 else [p] for i, p in enumerate(pieces)]
        names += ("".join(parts) for parts in itertools.product(*choices))
    return tuple(names)


def _range(text: str) -> list[str]:
    numbers = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and last.isdecimal():
            numbers += [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
        else:
            numbers.append(part)
    return numbers


def _meant(field: str) -> str:
    return "" if field in ("None", "(null)", "None assigned", "N/A", "Unknown") else field


def _seconds(field: str) -> float | None:
    return float(field) if field.isdecimal() else None


def _code(field: str) -> str:
    code, _, signal = field.partition(":")
    if signal == "53":  # a number of SLURM's own
        return "could not be launched: see whether its folder and its log can be written"
    if code not in ("", "0"):
        return f"exit code {code}"
    return f"signal {signal}" if signal not in ("", "0") else ""
