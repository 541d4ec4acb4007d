"""Who may write to a run: one attempt at a time, numbered; a later number fences off all before it.

No file lock takes part: on some cluster file systems they are ignored. A number is claimed by
renaming a folder into ``attempts/``, which succeeds once on every file system. Its owner is known
dead by its process on the same machine, and elsewhere by the age of ``attempts/<N>/alive``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from adafilter_dist.errors import UserError
from adafilter_dist.run.files import AttemptFiles, RunFiles
from adafilter_dist.slurm.environment import SlurmEnvironment
from adafilter_dist.system.files import fsync_folder, make_folder, write_json

LEASE = 60.0
"""Seconds without a sign of life after which an owner on another machine counts as dead."""

ALIVE_EVERY = 2.0
"""Seconds between signs of life."""


class LostRunError(UserError):
    """Another attempt has taken the run over; this one may not write to it any more."""

    exit_code = 1


@dataclass(frozen=True)
class Owner:
    """The process that claimed an attempt; ``restart`` counts how often its job was requeued."""

    attempt: int
    host: str
    machine: str  # within it a pid and its time of birth name one process
    pid: int
    born: int
    job: str | None = None
    restart: int = 0

    @property
    def name(self) -> str:
        """For messages."""
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


def this_process() -> Owner:
    """This process as the owner of attempt 0, with its SLURM job if it has one."""
    slurm = SlurmEnvironment()
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return Owner(
        attempt=0,
        host=socket.gethostname(),
        machine=f"{boot} {os.readlink('/proc/self/ns/pid')}",
        pid=os.getpid(),
        born=_born(os.getpid()) or 0,
        job=slurm.job,
        restart=slurm.restart,
    )


def _born(pid: int) -> int | None:
    """When a running process was started (clock ticks since boot), None if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_running(owner: Owner) -> bool:
    """Whether the process of an owner on this machine still runs; a stopped one does."""
    return owner.pid > 0 and _born(owner.pid) == owner.born


def owners(run: Path) -> Iterator[Owner]:
    """The owners of all attempts of a run, the first one first."""
    for number in _attempts(run):
        try:
            yield Owner(**{**RunFiles(run).attempt(number).read_owner(), "attempt": number})
        except TypeError:
            # Claimed, but the owner's file cannot be read any more: treated as a dead owner.
            yield Owner(number, "unknown", "", 0, 0)


def newest_owner(run: Path) -> Owner | None:
    """The process that claimed the run last; None if none has yet."""
    return max(owners(run), key=lambda owner: owner.attempt, default=None)


def _attempts(run: Path) -> list[int]:
    try:
        return sorted(int(n) for n in os.listdir(RunFiles(run).attempts) if n.isdecimal())
    except FileNotFoundError:
        return []


def is_alive(
    run: Path, owner: Owner, *, lease: float = LEASE, now: float | None = None
) -> bool | None:
    """Whether an owner still runs; None where only time can tell.

    ``now`` is the file system's clock in seconds (default this machine's).
    """
    files = RunFiles(run).attempt(owner.attempt)
    if files.ended.exists():
        return False
    if owner.machine == this_process().machine:
        return is_running(owner)
    seen = _seen(files)
    if seen is None or (time.time() if now is None else now) - seen > lease:
        return False
    return None


def _seen(attempt: AttemptFiles) -> float | None:
    """The last sign of life; opened first, so that a network file system asks its server."""
    for path in (attempt.alive, attempt.owner):
        try:
            with path.open("rb") as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            continue
    return None


class Ownership:
    """The right to write to a run, until somebody claims a later attempt."""

    def __init__(self, run: Path, attempt: int) -> None:
        self.run = run
        self.attempt = attempt
        self.files = RunFiles(run)
        self.folder = self.files.attempt(attempt).folder

    def check(self) -> None:
        """LostRunError if a later attempt exists; OSError if the run folder cannot be reached."""
        place = self.files.attempts
        os.utime(place)  # a network file system's client must not answer from its memory
        newest = max((int(name) for name in os.listdir(place) if name.isdecimal()), default=0)
        if newest > self.attempt:
            raise LostRunError(
                f"{self.run} was taken over by attempt {newest} "
                f"({next(o.name for o in owners(self.run) if o.attempt == newest)}); "
                f"this one, attempt {self.attempt}, stops without saving"
            )
        if newest < self.attempt:
            raise FileNotFoundError(2, "the run folder was emptied or replaced", str(self.folder))

    def alive(self) -> None:
        """Leave a sign of life."""
        os.utime(self.files.attempt(self.attempt).alive)

    def end(self, state: str, reason: str, step: int | None) -> None:
        """Give the run free at once, saying how the attempt ended."""
        self.files.attempt(self.attempt).write_end(state, reason, step)


def claim(run: Path, *, lease: float = LEASE, say: Callable[[str], None] = print) -> Ownership:
    """Take the run over for this process; every earlier attempt can publish nothing from then on.

    Raises UserError if its owner is alive, OSError if the folder cannot be written. Where an owner
    on another machine may be alive, it is watched for at most ``lease`` seconds.
    """
    files = RunFiles(run)
    place = files.attempts
    make_folder(place)
    make_folder(files.checkpoints)
    me = this_process()
    temporary = place / f".{me.host}.{me.pid}.{me.born}.tmp"
    while True:
        before = newest_owner(run)
        if before is not None:
            _refuse_if_alive(run, before, me, lease, say)
        number = before.attempt + 1 if before else 1
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            write_json(AttemptFiles(temporary).owner, asdict(replace(me, attempt=number)))
            AttemptFiles(temporary).alive.touch()
            temporary.rename(place / str(number))
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                continue  # another one was faster
            raise
        fsync_folder(place)
        _remove_temporaries(run)
        return Ownership(run, number)


def _remove_temporaries(run: Path) -> None:
    """What earlier attempts were writing: left by the dead, or about to be renamed by a zombie."""
    for left in (*run.glob(".*.tmp"), *RunFiles(run).checkpoints.glob(".*")):
        gone = left.with_name(f"{left.name}.gone") if left.suffix == ".tmp" else left
        with contextlib.suppress(OSError):
            left.rename(gone)  # at once, whatever is still written into it
        if gone.is_dir() and not gone.is_symlink():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink(missing_ok=True)


def _refuse_if_alive(
    run: Path, owner: Owner, me: Owner, lease: float, say: Callable[[str], None]
) -> None:
    if me.job is not None and me.job == owner.job and me.restart > owner.restart:
        return  # our own job was requeued: what is left of it elsewhere is fenced off
    files = RunFiles(run).attempt(owner.attempt)
    alive = is_alive(run, owner, lease=lease, now=_clock(files.folder.parent))
    if alive is None:
        say(
            f"{run} was last used by {owner.name}: watching for up to {lease:.0f} s whether it "
            "still runs"
        )
        seen, until = _seen(files), time.monotonic() + lease
        while alive is None and time.monotonic() < until:
            time.sleep(min(ALIVE_EVERY / 4, lease / 10))
            if files.ended.exists():
                alive = False
            elif _seen(files) != seen:
                alive = True
    if alive:
        raise UserError(
            f"{run} is in use by {owner.name} (attempt {owner.attempt}); wait for its end, stop "
            "it, or choose another run_dir or resume=never"
        )


def _clock(folder: Path) -> float:
    """Seconds on the clock of the file system, which gives signs of life their time."""
    probe = folder / f".clock.{os.getpid()}.tmp"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
