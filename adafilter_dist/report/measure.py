"""Measure a trained model for its report: figures of a split, gates, linear probe, a control."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from adafilter_dist.data.stored.prepared import SplitName
from adafilter_dist.evaluate import Evaluation, Evaluator, evaluate_gates, outcomes_of
from adafilter_dist.evaluate.gate_probe import GateMovement, ProbeGates, probe_gates
from adafilter_dist.evaluate.gate_recorder import has_bits
from adafilter_dist.evaluate.linear_probe import Probe, extract_features, fit_probe
from adafilter_dist.evaluate.oracle import require_oracle
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.models.backbone.linear_fit import Features
from adafilter_dist.recipe.sections.model import AdaFilter
from adafilter_dist.report.control import ControlModel, compare_with_control
from adafilter_dist.report.results import Results


def measure(
    model: nn.Module,
    evaluator: Evaluator,
    *,
    split: SplitName = "test",
    probe: bool = True,
    gates: bool = True,
    start: ProbeGates | None = None,
    control: ControlModel | None = None,
) -> Results:
    """Results of ``model`` (not wrapped, on the rank's device) on a split.

    ``start`` holds the gates before the first step, to be compared with those of ``model``.
    Collective; all ranks get the same, except that only rank 0 gets the probe. UserError where
    ``evaluate.oracle`` does not fit the data.
    """
    recipe = evaluator.recipe
    oracle = recipe.evaluate.oracle
    require_oracle(oracle, evaluator.prepared)
    loader, settings = evaluator.loader(split), evaluator.settings
    classes = evaluator.num_classes
    gate_results = movement = None
    if gates and has_bits(model):
        gate_results = evaluate_gates(model, loader, settings, classes, recipe.seed, oracle)
        outcomes = gate_results.outcomes
        if start is not None:
            now = probe_gates(model, evaluator, start.split)
            movement = GateMovement.between_probes(start, now)
    else:
        outcomes = outcomes_of(model, loader, settings, classes)
    compared = (
        None if control is None else compare_with_control(outcomes, control, evaluator, split)
    )
    return Results(
        recipe=recipe.name,
        seed=recipe.seed,
        method=recipe.method.name,
        split=split,
        evaluation=Evaluation.of(outcomes, classes, loader.domains),
        gates=gate_results,
        gate_learns=isinstance(recipe.method, AdaFilter) and recipe.method.gate.mode == "learned",
        movement=movement,
        probe=_probe(evaluator, split) if probe else None,
        control=compared,
        outcomes=outcomes,
    )


def _probe(evaluator: Evaluator, split: SplitName) -> Probe | None:
    """On the features of the backbone as it was before training; fitted by rank 0 alone."""
    device, classes = evaluator.world.device, evaluator.num_classes
    backbone = load_backbone(evaluator.recipe, evaluator.prepared.classes)
    module = backbone.module.to(device)
    settings = replace(evaluator.settings, precision="fp32")

    def features(name: SplitName) -> Features:
        return extract_features(module, backbone.head, evaluator.loader(name), settings)

    # What is reported on must not choose the strength.
    has_val = len(evaluator.prepared.split("val")[1]) > 0
    chooser = features("val") if split != "val" and has_val else None
    train, reported = features("train"), features(split)
    if not evaluator.world.is_rank0:
        return None
    # Rank 0 alone, for as long as it takes: nobody waits for it.
    with evaluator.world.progress.unlimited("fitting the linear probe"):
        return fit_probe(train, chooser, reported, classes, device)
