"""README.md of an export: the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.errors import UserError
from adafilter_dist.evaluate.wilson import wilson
from adafilter_dist.export import licences
from adafilter_dist.export.check import Check
from adafilter_dist.methods.build import METHODS
from adafilter_dist.methods.export import Export
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.identity import numbers_of, run_hash
from adafilter_dist.report.outcomes import PictureOutcomes, read_test_outcomes
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.json_files import read_object
from adafilter_dist.version import __version__

_CLASSES_SHOWN = 20


@dataclass(frozen=True)
class Source:
    """The run that a model is from; ``prepared`` is None where its data are not there.

    ``folder`` is the export that was read: the run's best model, or what was compacted of it.
    """

    run: Path
    folder: Path
    recipe: Recipe
    fingerprint: str | None
    prepared: Prepared | None


def card(
    export: Export, config: Mapping[str, Any], source: Source | None, check: Check | None
) -> str:
    """The text. ``export`` is what was exported, ``config`` the new folder's configuration."""
    parts = [_head(export, config, source), _use(config), _input(export, config)]
    if check is not None:
        parts.append(f"## Checked\n\nAgainst PyTorch, {check.line()}.")
    if source is None:
        parts.append(
            "## Recipe, data, figures\n\nNot known: this was exported from an export, without its "
            "run. Enter them before you hand the model on, and the licences of weights and data."
        )
    else:
        parts += [_figures(source), _data(source), _licences(source), _recipe(source)]
    parts.append(_LIMITS)
    return "\n\n".join(parts) + "\n"


def _head(export: Export, config: Mapping[str, Any], source: Source | None) -> str:
    name = source.recipe.name if source else config["model"]
    form = {"onnx": "an ONNX file", "torch": "a program of torch.export"}
    kind = form.get(config.get("kind", ""), "weights and their configuration")
    compacted = (
        " Filters that were never chosen on the calibration pictures are left out "
        "(`adafilter compact`)."
        if "compact" in export.config
        else ""
    )
    classes = list(config["classes"])
    more = f" and {len(classes) - _CLASSES_SHOWN} more" if len(classes) > _CLASSES_SHOWN else ""
    named = ", ".join(classes[:_CLASSES_SHOWN]) + more
    return (
        f"# {name}\n\n{METHODS[config['method']].title} on {config['model']}, as {kind}, written "
        f"by adafilter {__version__} and PyTorch {torch.__version__}.{compacted} It tells "
        f"{len(classes)} classes apart: {named}."
    )


def _use(config: Mapping[str, Any]) -> str:
    lines = [
        "## Use",
        "",
        '    model, transform = adafilter_dist.load("FOLDER")    # of adafilter-dist',
        '    logits = model(transform("picture.jpg")[None])        # model.classes names them',
    ]
    if config.get("kind") == "onnx":
        name = config["input"]
        lines += [
            "",
            "or with onnxruntime alone (classes and preprocessing are in the file's metadata too):",
            "",
            '    session = onnxruntime.InferenceSession("model.onnx")',
            f'    (logits,) = session.run(["logits"], {{"{name}": {name}}})',
        ]
    if config.get("kind") == "torch":
        lines += [
            "",
            "or with PyTorch alone:",
            "",
            '    program = torch.export.load("model.pt2").module()',
            f"    logits = program({config['input']})",
        ]
    return "\n".join(lines)


def _input(export: Export, config: Mapping[str, Any]) -> str:
    p = export.preprocess
    first = (
        f"the shortest side to {p.stored_size} px (bicubic, antialiased), then to {p.resize} px"
        if p.stored_size is not None
        else f"the shortest side to {p.resize} px"
    )
    steps = (
        f"A picture is upright RGB; {first} ({p.interpolation}, antialiased), and cropped to the "
        f"{p.crop} x {p.crop} px in its middle."
    )
    if config.get("input") == "pixels":
        inside = (
            f"The model takes these pixels: uint8 (N, {p.crop}, {p.crop}, 3). It normalises them "
            "itself."
        )
    else:
        inside = (
            f"Then values go from 0 to 1, less the mean {list(p.mean)}, divided by {list(p.std)}: "
            f"{config.get('dtype', 'float32')} (N, 3, {p.crop}, {p.crop})."
        )
    return f"## Input\n\n{steps} {inside} N is any number of pictures. Logits are (N, classes)."


def _figures(source: Source) -> str:
    compacting = read_object(source.folder / "compacting.json", [])
    if compacting:
        return _compacted(compacting)
    try:
        outcomes = read_test_outcomes(source.run)
    except UserError as error:
        return f"## Figures\n\nNot measured on test pictures: {error}."
    n, right = len(outcomes.labels), int(outcomes.correct.sum())
    rows = [_row("test, top-1", right, n)]
    summary = read_object(RunFiles(source.run).summary_numbers, [])
    measured = summary.get("evaluation")
    measured = measured if isinstance(measured, dict) and measured.get("n") == n else {}
    if isinstance(measured.get("top5"), float):
        rows.append(_row("test, top-5", round(measured["top5"] * n), n))
    for domain in measured.get("domains", []):
        of_domain = round(domain["top1"] * domain["n"])
        rows.append(_row(f"test, top-1, {domain['name']}", of_domain, domain["n"]))
    rows += [f"| test, mean per class | {_mean_per_class(outcomes):.1%} | | {n:,} |"]
    return (
        "## Figures\n\n"
        + "\n".join([*_HEAD, *rows])
        + "\n\nIntervals are Wilson's, over test pictures. They do not know the spread between "
        "seeds, nor pictures of another kind. Measured by the run on the network that was "
        "exported."
    )


_HEAD = ["| pictures | accuracy | 95 % interval | n |", "|---|---|---|---|"]


def _compacted(figures: Mapping[str, Any]) -> str:
    """Of compacting.json, by `adafilter compact`."""
    rows = []
    for when in ("before", "after"):
        n, top1 = figures[when]["n"], figures[when]["top1"]
        rows.append(_row(f"{figures['report']}, top-1 {when} compacting", round(top1 * n), n))
    share = figures["differing"] / max(1, figures["expected"])
    return (
        "## Figures\n\n"
        + "\n".join([*_HEAD, *rows])
        + f"\n\nIntervals are Wilson's, over pictures. {figures['dropped']:,} of "
        f"{figures['filters']:,} filter pairs lost one filter, by "
        f"{figures['calibration_images']:,} pictures of {figures['calibrated_on']}; {share:.2%} of "
        "the gates that are taken for granted would have been something else on the pictures "
        "measured."
    )


def _row(name: str, right: int, n: int) -> str:
    low, high = wilson(right, n)
    return f"| {name} | {right / n:.1%} | {low:.1%} to {high:.1%} | {n:,} |"


def _mean_per_class(outcomes: PictureOutcomes) -> float:
    occurring = sorted(set(outcomes.labels.tolist()))
    recalls = [float(outcomes.correct[outcomes.labels == label].mean()) for label in occurring]
    return sum(recalls) / len(recalls)


def _data(source: Source) -> str:
    fingerprint = source.fingerprint or "not known"
    lines = [f"## Data\n\n`data.name={source.recipe.data.name}`, fingerprint `{fingerprint}`."]
    if source.prepared is not None:
        counts = {name: len(source.prepared.split(name)[1]) for name in ("train", "val", "test")}
        each = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        lines.append(f"Pictures: {each}.")
    return " ".join(lines)


def _licences(source: Source) -> str:
    return (
        "## Licences\n\n"
        f"- weights that training began with: {licences.of_weights(source.recipe)}\n"
        f"- data: {licences.of_data(source.recipe)}\n"
        "- code of adafilter-dist: Apache-2.0\n\n"
        "The licence of these trained weights follows from the first two, and is for you to say."
    )


def _recipe(source: Source) -> str:
    numbers = yaml.safe_dump(json.loads(json.dumps(numbers_of(source.recipe))), sort_keys=False)
    indented = "\n".join(f"    {line}" for line in numbers.splitlines())
    return (
        f"## Recipe\n\n`{source.recipe.name}`, run hash `{run_hash(source.recipe)}`: all that the "
        f"numbers depend on.\n\n{indented}"
    )


_LIMITS = """## Limits

- It answers with one of its classes for any picture, also for one that shows none of them.
- Probabilities are not calibrated: a 0.9 is not right nine times of ten.
- It was measured on pictures like those that it was trained on, and on no others.
- What the pre-trained network and the pictures favour or leave out, it does too. Nobody has looked
  for it.
- Gates whose logit is almost 0 may flip by rounding, so that a picture takes another path on
  another machine (docs/inference.md of adafilter-dist)."""
