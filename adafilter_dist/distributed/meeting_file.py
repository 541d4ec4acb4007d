"""Ranks that a scheduler started meet through a file on the file system they share.

Rank 0 opens a store on a port that the kernel gives it, and writes into the file where that is: two
jobs on a node cannot get the same port, and a restart gets another. The file's name is new for each
start, and the store must confirm the random name in it: what an earlier start left misleads nobody.
Whoever cannot be reached, or does not come, is named within a bounded time.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from adafilter_dist.distributed.interface import (
    addresses,
    choose_gloo_interface,
    is_loopback,
    names,
    require,
    use,
)
from adafilter_dist.errors import RankError
from adafilter_dist.slurm.environment import SlurmEnvironment
from adafilter_dist.system.files import write_json

_CONNECT_SECONDS = 3.0  # for one address, of which there may be several
_CONFIRM_SECONDS = 5.0
_LEAST_SECONDS = 15.0  # to connect, however late the file came
_LEAVE_SECONDS = 5.0


@dataclass(frozen=True)
class Place:
    """Where rank 0 is to be found; what the file holds."""

    host: str
    addresses: list[str]
    port: int
    name: str  # random
    job: str | None
    restart: str


class Meeting:
    """A store that all ranks have reached. Rank 0 holds it: it has to be the last to leave."""

    def __init__(self, rank: int, world_size: int, store: dist.Store) -> None:
        self.store = store
        self._rank, self._size = rank, world_size

    def leave(self) -> None:
        """Rank 0 waits a few seconds for the others, whose last words may be for the store."""
        with suppress(RuntimeError):
            if self._rank:
                self.store.add("left", 1)
                return
            until = time.monotonic() + _LEAVE_SECONDS
            while self.store.add("left", 0) < self._size - 1 and time.monotonic() < until:
                time.sleep(0.02)


def meet_in_file(
    file: Path,
    rank: int,
    world_size: int,
    *,
    within: float,
    timeout: timedelta,
    interface: str | None = None,
) -> Meeting:
    """The store of this start of the ranks, after all of them have come.

    Waits for the others at most about ``within`` seconds; RankError then says who or what is
    missing. ``timeout`` is for what is asked of the store afterwards.
    """
    if interface is not None:
        use(require(interface))
    until = time.monotonic() + within
    if rank == 0:
        store = _open(file, interface, timeout)
        _await_all(store, world_size, until, within)
    else:
        place = _read(file, rank, until, within)
        store = _reach(place, rank, max(until, time.monotonic() + min(within, _LEAST_SECONDS)))
        store.set_timeout(timeout)
        _await_word(store, place, rank, within)
    return Meeting(rank, world_size, store)


def _open(file: Path, interface: str | None, timeout: timedelta) -> dist.Store:
    store = dist.TCPStore("127.0.0.1", 0, None, True, timeout, wait_for_workers=False)
    name = uuid.uuid4().hex
    store.set("name", name)
    host = socket.gethostname()
    place = Place(host, addresses(interface), store.port, name, *_start())
    try:
        write_json(file, asdict(place))
    except OSError as error:
        raise RankError(
            f"rank 0 on {host} cannot write {file}, by which the ranks meet: {error}"
        ) from None
    return store


def _start() -> tuple[str | None, str]:
    """Job and restart, where SLURM tells them."""
    slurm = SlurmEnvironment()
    return slurm.job, str(slurm.restart)


def _await_all(store: dist.Store, world_size: int, until: float, within: float) -> None:
    """Rank 0: until all others have said that they are here."""
    while store.add("came", 0) < world_size - 1:
        if time.monotonic() > until:
            missing = [r for r in range(1, world_size) if not store.check([f"came {r}"])]
            store.set("word", f"missing {_numbers(missing)}")
            time.sleep(2.0)  # for those who are here to read it
            raise RankError(
                f"rank 0 on {socket.gethostname()} waited {within:.0f} s for {_ranks(missing)} of "
                f"{world_size}: their output says why, if they were started at all; "
                f"{_more_time()} where nodes start slowly"
            )
        time.sleep(0.02)
    if world_size > 1:
        choose_gloo_interface(json.loads(store.get("came 1"))["reached"])
    store.set("word", "all")


def _await_word(store: dist.Store, place: Place, rank: int, within: float) -> None:
    """The others: until rank 0 says that all are here, or who is not."""
    me, pause = f"rank {rank} on {socket.gethostname()}", 0.02
    # Rank 0 may have come later than this one; its own time is bounded.
    until = time.monotonic() + within + _LEAST_SECONDS
    try:
        while not store.check(["word"]):
            if time.monotonic() > until:
                raise RankError(f"{me}: rank 0 on {place.host} gave no answer for {within:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        word = store.get("word").decode()
    except RuntimeError:
        raise RankError(
            f"{me}: rank 0 on {place.host} ended while the ranks met; its output says why"
        ) from None
    if word != "all":
        missing = [int(number) for number in word.split()[1].split(",")]
        raise RankError(f"{me}: rank 0 on {place.host} waited in vain for {_ranks(missing)}")


def _read(file: Path, rank: int, until: float, within: float) -> Place:
    """What rank 0 wrote, once it is there."""
    pause = 0.05
    while True:
        with suppress(OSError):
            os.utime(file.parent)  # a network file system's client must not answer from its memory
        with suppress(OSError, ValueError, TypeError):
            os.listdir(file.parent)
            place = Place(**json.loads(file.read_text()))
            if (place.job, place.restart) == _start():
                return place
        if time.monotonic() > until:
            raise RankError(
                f"rank {rank} on {socket.gethostname()} waited {within:.0f} s for rank 0: its "
                f"output says why (it did not write {file}); {_more_time()} where nodes start "
                "slowly"
            )
        time.sleep(pause)
        pause = min(1.5 * pause, 1.0)


def _reach(place: Place, rank: int, until: float) -> dist.Store:
    """The store of rank 0, by the first of its addresses that answers as it should."""
    here = socket.gethostname()
    ways = [a for a in place.addresses if place.host == here or not is_loopback(a)]
    tried: dict[str, str] = {}
    while True:
        for way in (*ways, place.host):  # a name may take long to resolve
            try:
                mine, theirs = _knock(way, place.port)
                store = _confirmed(way, place)
                store.set(f"came {rank}", json.dumps({"host": here, "reached": theirs}))
                store.add("came", 1)
            except (OSError, RuntimeError) as error:
                tried[f"{way}:{place.port}"] = _reason(error)
                continue
            choose_gloo_interface(mine)
            return store
        if time.monotonic() > until:
            attempts = ", ".join(f"{way} ({why})" for way, why in tried.items())
            raise RankError(
                f"rank {rank} on {here} cannot reach rank 0 on {place.host} at {attempts}: "
                f"{wrong_network()}"
            )
        time.sleep(0.5)


def wrong_network() -> str:
    """What to do where addresses do not answer."""
    return (
        "a firewall or the wrong network; choose one with launch.interface=NAME, on "
        f"{socket.gethostname()} there are: {', '.join(names()) or 'none'}"
    )


def _knock(way: str, port: int) -> tuple[str, str]:
    """(our address, theirs) of a connection; OSError if there is none within a few seconds."""
    result: list[tuple[str, str] | OSError] = []

    def connect() -> None:
        try:
            with socket.create_connection((way, port), timeout=_CONNECT_SECONDS) as knock:
                result.append((knock.getsockname()[0], knock.getpeername()[0]))
        except OSError as error:
            result.append(error)

    _within(_CONNECT_SECONDS + 2, connect)  # the name of a host is resolved without a time-out
    answer = result[0] if result else TimeoutError()
    if isinstance(answer, OSError):
        raise answer
    return answer


def _confirmed(way: str, place: Place) -> dist.Store:
    """The store there; OSError if it is none, or another one's."""
    result: list[dist.Store] = []
    reasons: list[str] = []

    def connect() -> None:
        try:
            timeout = timedelta(seconds=_CONFIRM_SECONDS)
            store = dist.TCPStore(way, place.port, None, False, timeout, wait_for_workers=False)
            if store.check(["name"]) and store.get("name").decode() == place.name:
                result.append(store)
            else:
                reasons.append("somebody else's")
        except RuntimeError as error:
            reasons.append(str(error).splitlines()[0])

    # torch waits without a time-out for the first words of whoever accepts the connection.
    _within(_CONFIRM_SECONDS, connect)
    if not result:
        raise OSError(0, reasons[0] if reasons else "accepted, but gives no answer")
    return result[0]


def _within(seconds: float, work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)


def _reason(error: OSError | RuntimeError) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    message = error.strerror if isinstance(error, OSError) else None
    return (message or str(error).splitlines()[0]).lower()


def _more_time() -> str:
    return "more time: launch.connect_timeout"


def _numbers(ranks: list[int]) -> str:
    return ",".join(map(str, ranks))


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
