"""Measure a trained model for its report: figures of a split, gates, linear probe."""

from __future__ import annotations

from torch import nn

from adafilter_dist.data.loading.loader import EvalLoader
from adafilter_dist.data.stored.prepared import Prepared, SplitName
from adafilter_dist.distributed.world import World
from adafilter_dist.evaluate import EvalBatches, evaluate, evaluate_gates
from adafilter_dist.evaluate.linear_probe import Features, Probe, extract_features, fit_probe
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.recipe import Recipe
from adafilter_dist.report.results import Results


def measure(
    model: nn.Module,
    recipe: Recipe,
    prepared: Prepared,
    preprocess: Preprocess,
    world: World,
    *,
    split: SplitName = "test",
    probe: bool = True,
    gates: bool = True,
) -> Results:
    """Results of ``model`` (not wrapped, on ``world.device``) on a split.

    Collective; all ranks get the same, except that only rank 0 gets the probe.
    """
    loader = _loader(recipe, prepared, preprocess, world, split)
    classes = len(prepared.classes)
    gate_results = None
    if gates and isinstance(model, AdaFilterNet):
        gate_results = evaluate_gates(
            model,
            loader,
            preprocess,
            device=world.device,
            num_classes=classes,
            precision=recipe.train.precision,
            channels_last=recipe.train.channels_last,
            seed=recipe.seed,
        )
        evaluation = gate_results.learned
    else:
        evaluation = evaluate(
            model,
            loader,
            preprocess,
            device=world.device,
            num_classes=classes,
            precision=recipe.train.precision,
            channels_last=recipe.train.channels_last,
        )
    return Results(
        recipe=recipe.name,
        seed=recipe.seed,
        method=recipe.method.name,
        split=split,
        evaluation=evaluation,
        gates=gate_results,
        probe=_probe(recipe, prepared, preprocess, world, split) if probe else None,
    )


def _loader(
    recipe: Recipe, prepared: Prepared, preprocess: Preprocess, world: World, split: SplitName
) -> EvalBatches:
    return EvalLoader(
        prepared,
        split,
        recipe,
        preprocess,
        rank=world.rank,
        world_size=world.world_size,
        batch_size=max(64, recipe.train.micro_batch),
    )


def _probe(
    recipe: Recipe, prepared: Prepared, preprocess: Preprocess, world: World, split: SplitName
) -> Probe | None:
    """On the features of the backbone as it was before training; fitted by rank 0 alone."""
    classes = len(prepared.classes)
    backbone = load_backbone(recipe, classes)
    module = backbone.module.to(world.device)

    def features(name: SplitName) -> Features:
        return extract_features(
            module,
            backbone.head,
            _loader(recipe, prepared, preprocess, world, name),
            preprocess,
            device=world.device,
            channels_last=recipe.train.channels_last,
        )

    # What is reported on must not choose the strength.
    chooser = features("val") if split != "val" and len(prepared.split("val")[1]) else None
    train, reported = features("train"), features(split)
    if not world.is_rank0:
        return None
    return fit_probe(train, chooser, reported, classes, world.device)
