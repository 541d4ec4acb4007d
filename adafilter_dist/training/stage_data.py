"""Copies the data to each node if ``data.stage_to`` asks for it, or verifies the shared files.

The first rank of each node copies or verifies; all ranks wait for all nodes. They exchange messages
through the key-value store, because a copy may take far longer than a collective waits. A rank that
copies or verifies sends heartbeats; if none comes for engine.timeout, the others stop waiting.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adafilter_dist.data.stored.manifest import read_manifest
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.staging import NotStaged, expanded, redirected, stage
from adafilter_dist.data.stored.verification import DamagedStore, verify
from adafilter_dist.distributed import World
from adafilter_dist.distributed.nodes import NodeInfo, first_rank_of_node, gather
from adafilter_dist.errors import RankError, UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.command import prepare_line
from adafilter_dist.recipe.sections.base import seconds

_BEAT_SECONDS = 1.0
_LEAVE_SECONDS = 5.0
_TELL_SECONDS = 30.0


@dataclass(frozen=True)
class StagingCallbacks:
    """Called while data are copied or verified: ``tick`` at least once a second.

    ``stopped`` says whether to give up copying, ``tell`` gets a progress line now and then.
    """

    tick: Callable[[], None] = lambda: None
    stopped: Callable[[], bool] = lambda: False
    tell: Callable[[str], None] = print


def stage_or_verify(
    prepared: Prepared,
    recipe: Recipe,
    world: World,
    nodes: Sequence[NodeInfo],
    callbacks: StagingCallbacks,
) -> tuple[Prepared, list[str]]:
    """The data for this rank to read, and lines that say from where.

    Collective: returns when every node has its copy or has verified the shared files. Raises
    UserError on every rank if the shared files are damaged.
    """
    data = recipe.data
    if data.stage_to is None and data.verify == "never":
        return prepared, []
    firsts = first_rank_of_node(nodes)
    first = firsts[world.rank]
    if first.rank == world.rank:
        outcome = _stage_or_verify_here(prepared, recipe, world, callbacks)
        world.store.set(f"staged {world.rank}", json.dumps(outcome))
    limit = seconds(recipe.engine.timeout)
    hosts = {one.rank: one.host for one in firsts.values()}
    does = "verifies" if data.stage_to is None else "copies"
    outcomes = {
        rank: _wait_for_node(rank, host, does, world, callbacks, limit)
        for rank, host in hosts.items()
    }
    errors = [outcome["error"] for outcome in outcomes.values() if "error" in outcome]
    if errors:
        _leave_together(world)
        raise UserError(errors[0])
    lines = [] if data.stage_to is None else _lines(prepared, data.stage_to, hosts, outcomes)
    lines += [outcome["verified"] for outcome in outcomes.values() if "verified" in outcome]
    return _local_copy(prepared, outcomes[first.rank], world, callbacks), lines


def verify_on_nodes(prepared: Prepared, recipe: Recipe, world: World) -> list[str]:
    """Have the shared files verified where ``data.verify`` asks for it; lines that say so.

    Collective. Raises UserError on every rank where they are damaged.
    """
    data = recipe.data.model_copy(update={"stage_to": None})
    shared = recipe.model_copy(update={"data": data})
    return stage_or_verify(prepared, shared, world, gather(world), StagingCallbacks())[1]


def _leave_together(world: World) -> None:
    """Keep rank 0, whose process may hold the store, until all others have read the error."""
    told = world.store.add("told of damage", 1)
    until = time.monotonic() + _LEAVE_SECONDS
    while world.is_rank0 and told < world.world_size and time.monotonic() < until:
        time.sleep(0.02)
        told = world.store.add("told of damage", 0)


def _stage_or_verify_here(
    prepared: Prepared, recipe: Recipe, world: World, callbacks: StagingCallbacks
) -> dict[str, Any]:
    """Copy the data or verify the shared files; returns the outcome for all ranks to read."""
    data, began = recipe.data, time.monotonic()
    beats, due, tell = 0, 0.0, began + _TELL_SECONDS
    doing = f"staging to {data.stage_to}"

    def beat(done: int, total: int) -> None:
        nonlocal beats, due, tell
        if callbacks.stopped():
            raise NotStaged("asked to stop")
        now = time.monotonic()
        if now < due:
            return
        beats, due = beats + 1, now + _BEAT_SECONDS
        world.store.set(f"staging {world.rank}", str(beats))
        callbacks.tick()
        if world.is_rank0 and now >= tell:
            tell = now + _TELL_SECONDS
            callbacks.tell(f"{doing}: {done / total:.0%}")

    outcome: dict[str, Any] = {}
    try:
        if data.stage_to is not None:
            try:
                whole = data.verify == "always"
                copy = stage(prepared, expanded(data.stage_to), beat, whole=whole)
                took = None if copy.reused else time.monotonic() - began
                return {"folder": str(copy.folder), "seconds": took}
            except NotStaged as error:
                outcome["reason"] = str(error)
        doing = f"verifying {prepared.folder}"
        manifest = None if data.verify == "never" else read_manifest(prepared.folder)
        if manifest is not None and not callbacks.stopped():
            done = verify(prepared.folder, manifest, always=data.verify == "always", beat=beat)
            if done is not None:
                outcome["verified"] = done.line(f"{prepared.folder} on {socket.gethostname()}")
    except NotStaged:
        pass  # asked to stop: whoever starts again verifies
    except DamagedStore as error:
        outcome["error"] = f"{error}; to have it written again run: {_prepare_command(recipe)}"
    except (UserError, OSError) as error:
        outcome["error"] = str(error)
    return outcome


def _prepare_command(recipe: Recipe) -> str:
    """The `prepare` command that reads every byte, also of files that passed as verified."""
    data = recipe.data.model_copy(update={"verify": "always"})
    return prepare_line(recipe.model_copy(update={"data": data}))


def _wait_for_node(
    rank: int, host: str, does: str, world: World, callbacks: StagingCallbacks, limit: float
) -> dict[str, Any]:
    """A node's outcome, when its first rank has written it; RankError if its heartbeats stop."""
    store, last_beat, since, pause = world.store, b"", time.monotonic(), 0.02
    while not store.check([f"staged {rank}"]):
        callbacks.tick()
        if store.check([f"staging {rank}"]) and (beat := store.get(f"staging {rank}")) != last_beat:
            last_beat, since = beat, time.monotonic()
        if time.monotonic() - since > limit:
            raise RankError(
                f"rank {world.rank}: rank {rank} on {host}, which {does} the data there, gave no "
                f"sign of life for engine.timeout={limit:.0f} s; its output may say why"
            )
        time.sleep(pause)
        pause = min(2 * pause, _BEAT_SECONDS)
    outcome: dict[str, Any] = json.loads(store.get(f"staged {rank}"))
    return outcome


def _local_copy(
    prepared: Prepared, outcome: dict[str, Any], world: World, callbacks: StagingCallbacks
) -> Prepared:
    """This node's copy if this rank can see it (a container may hide it), else the shared files."""
    if "folder" not in outcome:
        return prepared
    copy = redirected(prepared, expanded(outcome["folder"]))
    pairs = [(copy.train_store, prepared.train_store), (copy.test_store, prepared.test_store)]
    try:
        seen = all(mine.stat().st_size == shared.stat().st_size for mine, shared in pairs)
    except OSError:
        seen = False
    if not seen:
        callbacks.tell(
            f"rank {world.rank} does not see the copy in {outcome['folder']}; it reads the "
            f"shared files in {prepared.folder}"
        )
    return copy if seen else prepared


def _lines(
    prepared: Prepared,
    stage_to: str,
    host_names: dict[int, str],
    outcomes: dict[int, dict[str, Any]],
) -> list[str]:
    copied: list[str] = []
    reused: list[str] = []
    refused: dict[str, list[str]] = {}
    for rank, outcome in outcomes.items():
        if "folder" not in outcome and "reason" in outcome:
            refused.setdefault(outcome["reason"], []).append(host_names[rank])
        elif "folder" in outcome and outcome["seconds"] is None:
            reused.append(host_names[rank])
        elif "folder" in outcome:
            copied.append(f"{host_names[rank]} in {outcome['seconds']:.0f} s")
    lines = []
    parts = [f"copied on {', '.join(copied)}"] if copied else []
    parts += [f"there already on {', '.join(reused)}"] if reused else []
    if parts:
        lines.append(f"data are read from {stage_to}: {'; '.join(parts)}")
    for reason, hosts in refused.items():
        lines.append(
            f"warning: data.stage_to={stage_to} not used on {', '.join(hosts)}: {reason}; the "
            f"shared files in {prepared.folder} are read"
        )
    return lines
