"""The gates before the first step, kept with the run, so that every attempt knows the start."""

from __future__ import annotations

import time
from collections.abc import Callable

from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.distributed.lost_peer import from_rank0
from adafilter_dist.evaluate.gate_probe import ProbeGates, probe_gates, probe_split
from adafilter_dist.run.files import RunFiles
from adafilter_dist.training.session import Session

_LONG = 5.0  # seconds that are worth a line


def gates_at_start(
    session: Session, files: RunFiles, say: Callable[[str], None]
) -> ProbeGates | None:
    """The gates of the probe as the untrained network chooses them; None without gates.

    Called before a checkpoint is loaded: where the run has not kept them, or kept those of other
    data, the network is still the one that training began with. Collective. None too for gates that
    are drawn, fixed or named (`method.gate.mode`), and with ``evaluate.gates=false``.
    """
    gates = session.trainable.gates
    if gates is None or not session.recipe.evaluate.gates:
        return None
    if gates.settings.mode not in ("learned", "frozen"):
        return None
    path, prepared, world = files.gates_at_start, session.prepared, session.world
    kept = from_rank0(world, lambda: gates_at_start_of(files, prepared))
    if kept is not None:
        return kept
    began = time.monotonic()
    with session.whole_model() as model:
        start = probe_gates(model, session.evaluator, probe_split(prepared))
    if world.is_rank0:
        try:
            start.write(path)
        except OSError as error:  # the next attempt looks again
            say(f"warning: {path} not written: {error}; training goes on")
        took = time.monotonic() - began
        if took > _LONG:
            say(
                f"gates before the first step: {len(start.labels)} pictures of {start.split}, "
                f"{took:.0f} s once a run (evaluate.gates=false leaves out all measures of gates)"
            )
    return start


def gates_at_start_of(files: RunFiles, prepared: Prepared) -> ProbeGates | None:
    """What a run has kept; None where that is missing, damaged, or of other data."""
    kept = ProbeGates.read(files.gates_at_start)
    return kept if kept is not None and kept.data == prepared.fingerprint else None
