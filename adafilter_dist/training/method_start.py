"""What a method computes from the training pictures before the first step, on every rank alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adafilter_dist.data.loading.device import to_device
from adafilter_dist.data.loading.loader import EvalLoader
from adafilter_dist.data.stored.prepared import SplitName
from adafilter_dist.data.stored.views import PreparedSubset
from adafilter_dist.evaluate.linear_probe import extract_features
from adafilter_dist.methods.base import Pictures, StartData
from adafilter_dist.models.backbone.linear_fit import Features
from adafilter_dist.training.loader_callback import LoaderWithCallback
from adafilter_dist.training.session import Session

_AT_ONCE = 64


def start_method(session: Session, say: Callable[[str], None], tick: Callable[[], None]) -> None:
    """Give the method its start: the head that LP-FT begins with, and the like.

    Called once a run, before the first step. Collective: every rank computes, rank 0's values are
    taken, as other ranks may run with other libraries. A function of weights and data alone, so
    that a run that is killed before its first checkpoint starts in the same way again. ``tick`` is
    called before each batch of pictures, ``say`` prints a line.
    """
    trainable, engine = session.trainable, session.engine
    if trainable.start is None:
        return
    say(f"method={trainable.method}: looks at the training pictures before the first step")
    with engine.whole_model() as model:
        has_val = len(session.prepared.split("val")[1]) > 0
        data = StartData(
            _features(session, model, "train", tick),
            _features(session, model, "val", tick) if has_val else None,
            trainable.num_classes,
            session.world.device,
            _pictures(session, trainable.start_pictures, tick),
            tick,
            say,
        )
        start = trainable.start(data)
    engine.set_values({name: _of_rank0(session, value) for name, value in start.values.items()})
    if session.ema is not None:
        session.ema.load({})  # the average starts from the values that training starts from
    say(f"method={trainable.method}: {start.line}")


def _features(
    session: Session, model: nn.Module, split: SplitName, tick: Callable[[], None]
) -> Features:
    evaluator, trainable = session.evaluator, session.trainable
    loader = LoaderWithCallback(evaluator.loader(split), tick)
    return extract_features(model, trainable.classifier, loader, evaluator.settings)


def _pictures(session: Session, number: int, tick: Callable[[], None]) -> Pictures | None:
    """That many training pictures, evenly spaced, the same on every rank."""
    if not number:
        return None
    evaluator = session.evaluator
    settings, subset = evaluator.settings, PreparedSubset.of(session.prepared, number)
    loader = EvalLoader(
        subset,
        "train",
        session.recipe,
        session.preprocess,
        rank=0,
        world_size=1,
        batch_size=_AT_ONCE,
    )
    batches = [
        to_device(
            batch,
            settings.preprocess,
            settings.device,
            session.engine.dtype,
            settings.channels_last,
        )
        for batch in LoaderWithCallback(loader, tick)
    ]
    images, labels = zip(*batches, strict=True)
    return Pictures(torch.cat(images), torch.cat(labels))


def _of_rank0(session: Session, value: Tensor) -> Tensor:
    """Rank 0's value, on the device."""
    own = value.to(session.engine.dtype).to(session.world.device).flatten()
    whole = session.engine.reduce(own if session.world.is_rank0 else torch.zeros_like(own))
    return whole.reshape(value.shape)
