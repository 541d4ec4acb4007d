"""Killing a run at a chosen system call of the training process itself, the first rank's."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.kills.chain import Chain
from tests.kills.tracing import Call, attach, calls, killed, strace


@dataclass(frozen=True)
class Aim:
    """A call that changes the run folder, in an attempt that began with the run.

    ``done`` is how many steps have their row by then; None while the attempt starts.
    """

    call: Call
    done: int | None


def traced_trainer(chain: Chain, kill: Call | None) -> tuple[list[Call], bool]:
    """One attempt with its first rank's main thread under strace: its calls, and if it was killed.

    It dies at the call ``kill``; where that is None or never comes it ends by itself.
    """
    chain.folder.mkdir(exist_ok=True)
    log = chain.folder / f"trainer.{chain.tries + 1}.strace"
    attempts = chain.start(stopped=True)
    tracer = attach(attempts[0].pid, strace(log, kill))
    for attempt in attempts:
        os.kill(attempt.pid, signal.SIGCONT)
    try:
        attempts[0].wait()
        tracer.communicate(timeout=150)  # it has written its log
    finally:
        tracer.kill()
        tracer.wait()
    made = calls(log)
    if not killed(log):
        for attempt in attempts:
            assert attempt.wait() == 0, attempt.printed()
        return made, False
    chain.killed(attempts, "at a system call of the training", lambda: made[-1].site)
    return made, True


def aims(made: Sequence[Call], run: Path) -> list[Aim]:
    """The calls of an undisturbed attempt that change something in the run folder."""
    found = []
    done: int | None = None
    for call in made:
        if call.changes and run.name in call.text:
            found.append(Aim(call, done))
        if _is_row(call):
            done = (done or 0) + 1
    return found


def of_each_site(found: Sequence[Aim], draw: random.Random, count: int) -> list[Aim]:
    """So many different places of the program, in order, each somewhere in the run.

    Always among them: what comes right after the first evaluation's row is written.
    """
    sites: dict[str, list[Aim]] = {}
    for aim in found:
        sites.setdefault(aim.call.site, []).append(aim)
    chosen = [draw.choice(sites[site]) for site in draw.sample(sorted(sites), count)]
    rows = [number for number, aim in enumerate(found) if "evaluation" in aim.call.site]
    return sorted({*chosen, found[rows[0] + 1]}, key=found.index)


def _is_row(call: Call) -> bool:
    return call.name in ("write", "pwrite64") and "/metrics.jsonl>" in call.text


def nearest(aim: Aim, made: Sequence[Call], step: int) -> Call | None:
    """The same call in an attempt that goes on from ``step``; None where that is past it.

    Not quite the same: such an attempt reads a checkpoint and cuts the rows as well.
    """
    if aim.done is None:
        return aim.call
    if aim.done < step:
        return None
    between, rows = 0, 0
    for call in made:
        rows += _is_row(call)
        between += 0 < rows <= step and call.name == aim.call.name
    return replace(aim.call, nth=max(1, aim.call.nth - between))
