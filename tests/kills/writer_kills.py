"""Killing a run at a chosen system call of the process that writes its checkpoints."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Sequence
from dataclasses import replace

from adafilter_dist.checkpoint import writer
from tests.kills.chain import Chain, pidfd
from tests.kills.tracing import Call, calls, killed, strace

PATIENCE = 60.0


def traced_writer(chain: Chain, kill: Call | None) -> list[Call]:
    """One attempt with its writer under strace; the calls of the writer's main thread.

    It dies at the call ``kill``, and as soon as it has died everything else of the run is killed as
    well. Where ``kill`` is None the attempt is left alone.
    """
    chain.folder.mkdir(exist_ok=True)
    log = chain.folder / f"writer.{chain.tries + 1}.strace"
    tells = chain.folder / f"writer.{chain.tries + 1}.pid"
    os.mkfifo(tells)
    told = os.open(tells, os.O_RDWR)
    tracer, *words = strace(log, kill)
    # The shell tells its process id and becomes the writer: with -D strace is beside it.
    tell = ["sh", "-c", 'echo $$ >"$0"; exec "$@"', str(tells)]
    before = [__name__, put_before.__name__, *tell, tracer, "-D", *words]
    attempts = chain.start(before=before)
    try:
        ended = pidfd(int(_read(told)))
        if ended is not None:
            select.select([ended], [], [], PATIENCE)
            os.close(ended)
    finally:
        os.close(told)
    if kill is None:
        for attempt in attempts:
            assert attempt.wait() == 0, attempt.printed()
        return calls(log)
    chain.killed(attempts, "at a system call of the writer", lambda: calls(log)[-1].site)
    assert killed(log), "the writer was not killed by strace"
    made = calls(log)
    return made


TRIES = 20
"""Attempts at one call: on a busy machine the opened files before it vary from time to time."""


def kill_at(chain: Chain, call: Call) -> None:
    """An attempt whose writer dies at this call, which is not made, and all others with it."""
    aim = call
    for _ in range(TRIES):
        hit = traced_writer(chain, aim)[-1]
        if hit.site == call.site:
            return
        # Importing opens a file more or less from time to time: aim anew, and not at those.
        aim = replace(call, nth=hit.nth - hit.changing + call.changing)
    raise AssertionError(f"hit {hit.text} instead of {call.text}")


def put_before(*words: str) -> None:
    """From now on the writer of this process is started by these words."""
    command = writer.command
    writer.command = lambda: [*words, *command()]


def _read(told: int) -> str:
    ready, _, _ = select.select([told], [], [], PATIENCE)
    if not ready:
        raise TimeoutError("the writer was not started")
    return os.read(told, 100).decode()


def saves(made: Sequence[Call]) -> list[list[Call]]:
    """The calls of each save that can change something, the answer to the training included."""
    found: list[list[Call]] = [[]]
    for call in made:
        if call.changes:
            found[-1].append(call)
        if re.match(r"write\(1<", call.text):
            found.append([])
    return found[:-1]


def split(save: Sequence[Call]) -> tuple[list[Call], list[Call]]:
    """The calls of a save up to the rename that publishes, and those after it."""
    (last,) = (
        number
        for number, call in enumerate(save)
        if call.name.startswith("rename")
        and re.search(r'/step-\d+"', call.text)
        and ".gone" not in call.text
    )
    return list(save[: last + 1]), list(save[last + 1 :])
