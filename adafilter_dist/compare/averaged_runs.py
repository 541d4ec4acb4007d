"""Contenders that are averaged from finished runs: CONTENDER+wise_ft, +soup, +uniform_soup.

Validation accuracy decides what is averaged. The test set is read once, by what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from adafilter_dist.compare.average_names import split_average
from adafilter_dist.compare.collected import AVERAGES, REFERENCE
from adafilter_dist.compare.plan import Plan, final_run, trial_run
from adafilter_dist.compare.weight_averages import greedy_soup, uniform_soup, wise_ft
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.data.stored.views import in_classes
from adafilter_dist.distributed.world import join_world, set_arithmetic
from adafilter_dist.errors import UserError
from adafilter_dist.evaluate import Evaluator, outcomes_of
from adafilter_dist.methods import build_method
from adafilter_dist.methods.export import load, read_config, read_weights
from adafilter_dist.models.backbone.backbones import load_backbone, resolve_preprocess
from adafilter_dist.models.ops.dtypes import weights_dtype
from adafilter_dist.report.outcomes import write_test_outcomes
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.find import find_run_of
from adafilter_dist.system.files import make_folder, write_json
from adafilter_dist.system.json_files import Row
from adafilter_dist.system.progress import Counting, no_counting
from adafilter_dist.training.run_data import read_run_data, require_run_data


@dataclass(frozen=True)
class _Measure:
    """The network of a run, to be measured with other weights in it, on the run's own data."""

    evaluator: Evaluator
    model: nn.Module

    def accuracy(self, state: dict[str, Tensor]) -> float:
        """Top-1 on the validation split."""
        return self.evaluator.evaluate(self._model(state), "val").top1

    def test(self, state: dict[str, Tensor], folder: Path) -> None:
        """Keep the outcomes of the test split in ``folder``."""
        evaluator = self.evaluator
        loader, classes = evaluator.loader("test"), evaluator.num_classes
        outcomes = outcomes_of(self._model(state), loader, evaluator.settings, classes)
        if evaluator.world.is_rank0:
            write_test_outcomes(folder, outcomes, evaluator.prepared)

    def _model(self, state: dict[str, Tensor]) -> nn.Module:
        self.model.load_state_dict(state)
        return self.model


def average_runs(
    folder: Path,
    plan: Plan,
    name: str,
    say: Callable[[str], None] = lambda line: None,
    counting: Counting = no_counting,
) -> None:
    """Average, and test what is not tested yet, for all seeds of the plan, or for its trials.

    ``say`` prints what was averaged, ``counting`` shows how far each evaluation is.
    UserError where runs that it needs are not finished, or the networks are not of one kind.
    """
    contender, kind = split_average(name)
    if kind == "wise_ft":
        for seed in plan.seeds:
            place = folder / AVERAGES / name / f"seed-{seed}"
            if not RunFiles(place).test_outcomes.exists():
                chosen = _interpolate(final_run(folder, contender, seed), place, counting)
                say(f"{name}, seed {seed}: {chosen}")
        return
    if plan.tune < 2:
        raise UserError(f"{name}: a soup is made from trials, and tune={plan.tune} has too few")
    place = folder / AVERAGES / name / f"seed-{plan.tune_seed}"
    if not RunFiles(place).test_outcomes.exists():
        trials = [trial_run(folder, contender, k) for k in range(plan.tune)]
        say(f"{name}: {_mix(kind, trials, place, counting)}")


def _interpolate(run: Path, place: Path, counting: Counting) -> str:
    with _measured(run, counting) as measure:
        recipe = measure.evaluator.recipe
        backbone = load_backbone(recipe, measure.evaluator.prepared.classes)
        trainable = build_method(backbone, recipe)
        start = trainable.model.state_dict()
        if trainable.exported is not None:
            start = trainable.exported(start)
        tuned = read_weights(RunFiles(run).best)
        head = f"{trainable.classifier}."
        # A new head has no pre-trained weights.
        keep = [n for n in tuned if n.startswith(head)] if recipe.model.head == "new" else []
        try:
            average = wise_ft(start, tuned, measure.accuracy, keep=keep)
        except ValueError as error:
            raise UserError(f"{run}: {error}; wise_ft is for methods that keep its shape") from None
        accuracies = {f"{share:g}": top1 for share, top1 in average.accuracies.items()}
        _keep(place, {"share": average.share, "validation": accuracies})
        measure.test(average.state, place)
    return f"share {average.share:g} of the fine-tuned weights"


def _mix(kind: str, trials: Sequence[Path], place: Path, counting: Counting) -> str:
    states_of = {run: RunFiles(run).read_status().get("state") for run in trials}
    for run, state in states_of.items():
        if state not in ("finished", "failed"):
            raise UserError(f"{run}: not over, and a soup is made from all trials of a contender")
    done = [run for run, state in states_of.items() if state == "finished"]
    if len(done) < 2:
        raise UserError(
            f"{place}: a soup needs two trials that are finished, there are {len(done)}"
        )
    states = [read_weights(RunFiles(run).best) for run in done]
    with _measured(done[0], counting) as measure:
        accuracies = [measure.accuracy(state) for state in states]
        try:
            if kind == "soup":
                soup = greedy_soup(states, accuracies, measure.accuracy)
            else:
                soup = uniform_soup(states, measure.accuracy)
        except ValueError as error:
            raise UserError(f"{place}: {error}; a soup is made from networks alike") from None
        best = max(range(len(states)), key=lambda index: (accuracies[index], -index))
        each = {run.name: top1 for run, top1 in zip(done, accuracies, strict=True)}
        members = [done[index].name for index in soup.members]
        rows = {"members": members, "validation": soup.accuracy, "best_trial": done[best].name}
        _keep(place, {**rows, "trials": each})
        measure.test(states[best], place / REFERENCE)
        measure.test(soup.state, place)
    return f"{len(members)} of {len(done)} trials averaged"


def _keep(place: Path, rows: Row) -> None:
    """Note how an average was chosen; its outcomes, which say that it is done, come last."""
    make_folder(place)
    write_json(place / "average.json", rows)


@contextmanager
def _measured(run: Path, counting: Counting) -> Iterator[_Measure]:
    """Opens a finished run's data; UserError where it has no best model or no validation."""
    files = RunFiles(run)
    if files.read_status().get("state") != "finished":
        raise UserError(f"{run}: not finished; it is averaged once it is")
    _, recipe = find_run_of([str(run)])
    data = read_run_data(run)
    prepared = open_prepared(recipe, known=data.fingerprint if data else None)
    require_run_data(run, data, prepared, "")
    prepared = in_classes(prepared, read_config(files.best)["classes"])
    if not len(prepared.split("val")[1]):
        raise UserError(f"{run}: averages are chosen on validation, and data.val_fraction is 0")
    with join_world(recipe) as world:
        set_arithmetic(recipe)
        model = load(files.best)[0].to(world.device, weights_dtype(recipe.train.precision))
        evaluator = Evaluator(
            recipe, prepared, resolve_preprocess(recipe), world, counting=counting
        )
        yield _Measure(evaluator, model)
