"""What each ZeRO stage computes, beside DDP, in one process group of two ranks.

Two ranks run ``main(PREPARED, OUT, LONG)``; the first one writes OUT, JSON of what
tests/distributed/test_zero.py asserts. All in one process a rank, because starting and meeting take
longer than the steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adafilter_dist.distributed import World, join_world
from adafilter_dist.engine import FullState
from adafilter_dist.errors import DivergedError
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.training.method_start import start_method
from adafilter_dist.training.session import Session, build_session

STAGES = (0, 1, 2, 3)
SEEDS = (0, 1, 2)
RECIPE = Path(__file__).with_name("small.yaml")
ENGINES = ("engine=ddp", *(f"engine=deepspeed engine.zero_stage={stage}" for stage in STAGES))
# Weight decay, which must not reach what is frozen; weights that no gate covers are frozen too.
STILL = "optim.weight_decay=0.1 model.ungated=freeze"
# With a count of steps beside two moments; partitioned and sharded.
ADAMW = ((ENGINES[2], "adamw"), (ENGINES[4], "adamw"))


class Worker:
    """Sessions of one small recipe under one engine after another."""

    def __init__(self, prepared: str, world: World) -> None:
        self._words = [f"recipe={RECIPE}", f"data.prepared={prepared}", "train.precision=fp32"]
        self.world = world

    def recipe(self, *words: str) -> Recipe:
        # ZeRO-3 trains with plain modules whatever is asked for; so that rounding is not compared,
        # all others do here.
        same = "train.kernels=reference"
        return load_recipe([*self._words, same, *" ".join(words).split()])

    def session(self, *words: str) -> Session:
        session = build_session(self.recipe(*words), self.world)
        torch.set_num_threads(1)
        return session


def train(session: Session, first: int, last: int) -> list[float]:
    """Steps ``first`` to ``last`` - 1 of the first epoch; their losses."""
    losses = []
    with session.epoch(0, first) as batches:
        for step in range(first, last):
            figures, _ = session.step.run(step, 0, batches, 1.0, stop=False, save=False)
            losses.append(float(figures[0]))
    return losses


def one_step(session: Session, step: int) -> bool:
    """The same step each time it is called; whether it was taken."""
    with session.epoch(0, step) as batches:
        _, skipped = session.step.run(step, 0, batches, 1.0, stop=False, save=False)
    return not skipped


def kept(session: Session) -> FullState:
    """A copy of the whole state."""
    state = session.full_state()
    parts = ("model", "optimizer", "ema")
    copies = {p: {n: t.detach().clone() for n, t in getattr(state, p).items()} for p in parts}
    return replace(state, **copies)


def distance(a: FullState, b: FullState) -> dict[str, float]:
    """The largest difference of weights, of statistics, of the optimizer's state."""
    ours, theirs = dict(a.tensors()), dict(b.tensors())
    assert ours.keys() == theirs.keys()
    far = {"weights": 0.0, "statistics": 0.0, "optimizer": 0.0, "ema": 0.0}
    for name, one in ours.items():
        part = "statistics" if "running_" in name else name.partition(":")[0]
        part = "weights" if part == "model" else part
        far[part] = max(far[part], float((one.double() - theirs[name].double()).abs().max()))
    return far


def same_bits(a: FullState, b: FullState) -> list[str]:
    """Names of the tensors that differ in any bit, or that only one has."""
    ours, theirs = dict(a.tensors()), dict(b.tensors())
    changed = [n for n in ours.keys() & theirs.keys() if not _equal(ours[n], theirs[n])]
    return sorted([*changed, *(ours.keys() ^ theirs.keys())])


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def frozen(state: FullState) -> dict[str, Tensor]:
    return {name: t for name, t in state.model.items() if "frozen_" in name}


def steps_of_one_state(worker: Worker) -> dict[str, Any]:
    """From one state one step under every engine, and under DDP with another thread count (E4)."""
    rates = "optim.lr_gate=0.05 optim.lr_head=0.02"  # groups of their own
    start = worker.session("engine=ddp", rates)
    train(start, 0, 3)
    state = kept(start)
    results: dict[str, Any] = {"taken over": {}, "far": {}}
    steps: dict[str, FullState] = {}
    for engine in (*ENGINES, "threads"):
        session = worker.session("engine=ddp" if engine == "threads" else engine, rates)
        session.load_full_state(state)
        results["taken over"][engine] = same_bits(kept(session), state)
        torch.set_num_threads(2 if engine == "threads" else 1)
        train(session, 3, 4)
        torch.set_num_threads(1)
        steps[engine] = kept(session)
        results["far"][engine] = distance(steps[engine], steps["engine=ddp"])
        results.setdefault("moved", distance(steps[engine], state))
    return results


def convolutions_that_pad_first(worker: Worker) -> dict[str, float]:
    """A kind of convolution of timm's own, whose frozen twin runs its forward: ZeRO-3 and DDP."""
    words = "model.name=timm/tf_efficientnet_lite0 method.layers=conv_stem|blocks.1"
    start = worker.session("engine=ddp", words)
    state = kept(start)
    train(start, 0, 1)
    sharded = worker.session(ENGINES[4], words)
    sharded.load_full_state(state)
    train(sharded, 0, 1)
    return distance(kept(sharded), kept(start))


def saved_and_gone_on(worker: Worker) -> dict[str, list[str]]:
    """Stages: what differs in any bit after 2 + 2 steps, in one go or from a state (E2)."""
    found = {}
    for engine, optimizer in (*((engine, "sgd") for engine in ENGINES[1:]), *ADAMW):
        words = (engine, f"optim.name={optimizer} optim.lr=0.001", STILL)
        whole = worker.session(*words)
        before = kept(whole)
        train(whole, 0, 2)
        state = kept(whole)
        train(whole, 2, 4)
        again = worker.session(*words)
        train(again, 0, 1)  # a state of its own, to be replaced
        again.load_full_state(state)
        found[f"{engine} {optimizer}, loaded"] = same_bits(kept(again), state)
        train(again, 2, 4)
        found[f"{engine} {optimizer}"] = same_bits(kept(again), kept(whole))
        found[f"{engine} {optimizer}, frozen"] = moved(whole, before)
    return found


def started(worker: Worker) -> dict[str, dict[str, float]]:
    """How far LP-FT's start is from DDP's, and each average and first step from its start.

    The step is taken at rate 0: what differs then was put where the update does not look.
    """
    found: dict[str, dict[str, float]] = {}
    wanted: FullState | None = None
    for engine in ENGINES:
        # Pictures that the ranks cannot share evenly.
        session = worker.session(engine, "method=lp_ft augment.mixup=0 data.label_fraction=0.21")
        before, said = kept(session), list[str]()
        start_method(session, said.append, lambda: None)
        state = kept(session)
        wanted = wanted or state
        with session.epoch(0, 0) as batches:
            session.step.run(0, 0, batches, 0.0, stop=False, save=False)
        trained = state.ema.keys()
        head, after = ("fc.weight", "fc.bias"), kept(session)
        far = {
            "moved": max(_far(state.model[n], before.model[n]) for n in head),
            "others": max(
                _far(state.model[n], before.model[n]) for n in state.ema.keys() - {*head}
            ),
            "engines": max(_far(state.model[n], wanted.model[n]) for n in trained),
            "average": max(_far(state.model[n], state.ema[n]) for n in trained),
            "stepped": max(_far(state.model[n], after.model[n]) for n in trained),
        }
        found[" ".join([engine, *said[1:]])] = far
    return found


def _far(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def frozen_filters(worker: Worker) -> dict[str, list[str]]:
    """Frozen weights that bf16 changed in any bit in two steps with weight decay (I3)."""
    found = {}
    for engine in ENGINES[1:]:
        session = worker.session(engine, "train.precision=bf16", STILL)
        before = kept(session)
        train(session, 0, 2)
        found[engine] = moved(session, before)
    return found


def moved(session: Session, before: FullState) -> list[str]:
    """Frozen filters and weights that are not trained, as far as they differ in any bit."""
    after = kept(session)
    still = {name for name in before.model if "frozen_weight" in name} | {
        *frozen_parameters(session)
    }
    assert len(still) > 10
    return [name for name in still if not _equal(before.model[name], after.model[name])]


def frozen_parameters(session: Session) -> Iterator[str]:
    for name, parameter in session.engine.model.named_parameters():
        if not parameter.requires_grad:
            yield name


def overflow(worker: Worker) -> dict[str, Any]:
    """fp16 from a scale that is too large: scales of skipped steps, then the update, clipped."""
    words = "train.precision=fp16 train.clip_norm=0.01 optim.weight_decay=0 model.ungated=freeze"
    start = worker.session("engine=ddp", words)
    state = kept(start)
    state.scaler["scale"] = 2.0**17
    results: dict[str, Any] = {}
    wanted: FullState | None = None
    for engine in ENGINES:
        session = worker.session(engine, words)
        session.load_full_state(state)
        scales, changed = [2.0**17], []
        for _ in range(60):
            taken = one_step(session, 0)
            now = kept(session)
            scales.append(now.scaler["scale"])
            if taken:
                break
            changed += same_bits(now, replace(state, scaler=now.scaler))
        wanted = wanted or now
        update = {n: now.model[n].double() - state.model[n].double() for n in now.model}
        norm = sum(float(u.square().sum()) for n, u in update.items() if trained(session, n)) ** 0.5
        results[engine] = {
            "scales": scales,
            "changed": changed,
            "norm": norm,
            "far": distance(now, wanted),
            "frozen": moved(session, state),
        }
    return results


def diverged(worker: Worker) -> dict[str, list[str]]:
    """Stages that check gradients themselves: what a gradient that is NaN changed."""
    found = {}
    for engine in ENGINES[2:]:
        session = worker.session(engine)
        before = kept(session)
        images = torch.full((4, 3, 32, 32), torch.nan)
        with session.engine.micro_batch(last=True):
            session.engine.backward(session.engine.forward(images).sum())
        try:
            session.engine.step(1.0)
        except DivergedError:
            found[engine] = same_bits(kept(session), before)
    return found


def trained(session: Session, name: str) -> bool:
    return name in session.engine.parts()


def bands(
    worker: Worker, engines: tuple[str, ...], seeds: tuple[int, ...]
) -> dict[str, list[list[float]]]:
    """Mean loss of the first 10 of 50 steps and of the last: of fp32 under DDP, and of bf16."""
    found: dict[str, list[list[float]]] = {}
    # Without augmentation, which would hide what fifty steps teach.
    words = "train.global_batch=8 optim.lr=0.02 augment.mixup=0 augment.erasing=0 "
    words += "augment.scale=[1.0,1.0] augment.flip=0"
    for seed in seeds:
        losses = train(worker.session(f"seed={seed}", words), 0, 50)
        plain = sum(losses[-10:]) / 10
        for engine in engines:
            session = worker.session(engine, f"train.precision=bf16 seed={seed}", words)
            half = sum(train(session, 0, 50)[-10:]) / 10
            found.setdefault(engine, []).append([sum(losses[:10]) / 10, plain, half])
    return found


def main(prepared: str, out: str, long: str = "") -> None:
    first = load_recipe([f"recipe={RECIPE}", f"data.prepared={prepared}"])
    results: dict[str, Any] = {}
    with join_world(first) as world:
        worker = Worker(prepared, world)
        parts: dict[str, Callable[[], Any]] = {
            "one step": lambda: steps_of_one_state(worker),
            "started": lambda: started(worker),
            "padded": lambda: convolutions_that_pad_first(worker),
            "gone on": lambda: saved_and_gone_on(worker),
            "frozen": lambda: frozen_filters(worker),
            "overflow": lambda: overflow(worker),
            "diverged": lambda: diverged(worker),
            "bf16": lambda: bands(worker, (ENGINES[3],), SEEDS[:1]),
        }
        if long:
            parts = {"bf16": lambda: bands(worker, ENGINES[1:], SEEDS)}
        for name, part in parts.items():
            results[name] = part()
    if world.is_rank0:
        Path(out).write_text(json.dumps(results))
