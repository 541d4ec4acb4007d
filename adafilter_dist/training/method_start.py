"""What a method computes from the training pictures before the first step, on every rank alike."""

from __future__ import annotations

from collections.abc import Callable

import torch

from adafilter_dist.data.stored.prepared import SplitName
from adafilter_dist.evaluate.linear_probe import extract_features
from adafilter_dist.methods.base import Features, StartData
from adafilter_dist.training.loader_callback import LoaderWithCallback
from adafilter_dist.training.session import Session


def start_method(session: Session, say: Callable[[str], None], tick: Callable[[], None]) -> None:
    """Give the method its start: the head that LP-FT begins with, and the like.

    Called once a run, before the first step. Collective: every rank computes, rank 0's values are
    taken, as other ranks may run with other libraries. A function of weights and data alone, so
    that a run that is killed before its first checkpoint starts in the same way again. ``tick`` is
    called before each batch of pictures.
    """
    trainable, engine, world = session.trainable, session.engine, session.world
    if trainable.start is None:
        return
    say(f"method={trainable.method}: looks at the training pictures before the first step")
    with engine.whole_model():
        data = StartData(
            _features(session, "train", tick),
            _features(session, "val", tick) if len(session.prepared.split("val")[1]) else None,
            trainable.num_classes,
        )
        values = trainable.start(data)
    buffers, parts = dict(engine.model.named_buffers()), engine.parts()
    for name, value in values.items():
        own = value.to(engine.dtype).to(world.device).flatten()
        whole = engine.reduce(own if world.is_rank0 else torch.zeros_like(own)).reshape(value.shape)
        with torch.no_grad():
            if name in buffers:
                buffers[name].copy_(whole)
            else:
                parts[name].copy_(engine.part_of(name, whole))
    if session.ema is not None:
        session.ema.load({})  # the average starts from the values that training starts from


def _features(session: Session, split: SplitName, tick: Callable[[], None]) -> Features:
    evaluator, trainable = session.evaluator, session.trainable
    loader = LoaderWithCallback(evaluator.loader(split), tick)
    return extract_features(session.engine.model, trainable.classifier, loader, evaluator.settings)
