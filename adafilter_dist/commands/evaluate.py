"""``adafilter evaluate``: measure the best model of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adafilter_dist.commands.parser import Parser
from adafilter_dist.errors import UserError, resume_line
from adafilter_dist.recipe import Recipe
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.find import find_run_of
from adafilter_dist.system import files
from adafilter_dist.system.console import Console, print_plain

if TYPE_CHECKING:
    from adafilter_dist.data.stored.prepared import Prepared, SplitName

HELP = "accuracy, gates and linear probe of a run's best model"


def run(words: list[str]) -> int:
    """Parse ``RUN | recipe=NAME ... [--split test|val] [--probe] [--no-gates]`` and measure."""
    parser = Parser(
        "adafilter evaluate",
        description=f"{HELP}; written to RUN/evaluation-SPLIT.json.",
        examples=[
            "adafilter evaluate runs/demo/1a2b3c4d --split val",
            "adafilter evaluate recipe=food101 data.root=/data/food-101 --probe",
            "adafilter evaluate runs/demo/1a2b3c4d --control runs/demo/5e6f7a8b",
        ],
    )
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument(
        "--probe", action="store_true", help="also fit a linear probe on the frozen features"
    )
    parser.add_argument(
        "--other-data",
        action="store_true",
        help="measure on other pictures of the same classes, e.g. with data.root=FOLDER; written "
        "to evaluation-SPLIT-FINGERPRINT.json",
    )
    parser.add_argument(
        "--no-gates", action="store_true", help="leave out all measures of the gates"
    )
    parser.add_argument(
        "--control",
        metavar="RUN",
        help="a run on the same data, such as one with a frozen gate: its accuracy on the same "
        "pictures is subtracted, with an interval (evaluate.control)",
    )
    parser.add_gates()
    parser.add_argument(
        "words", nargs="+", metavar="RUN | key=value", help="run folder or recipe=NAME; overrides"
    )
    options = parser.parse_intermixed_args(words)
    folder, recipe = find_run_of(options.words)
    if options.control is not None:
        control = Path(options.control).expanduser().absolute()
        measured = recipe.evaluate.model_copy(update={"control": control})
        recipe = recipe.model_copy(update={"evaluate": measured})
    return _evaluate(
        folder,
        recipe,
        options.split,
        options.probe,
        not options.no_gates,
        options.gates,
        options.other_data,
    )


def _named_alike(folder: Path, classes: list[str], prepared: Prepared) -> Prepared:
    """The data with the model's numbers for the classes; UserError where the names differ."""
    from adafilter_dist.data.stored.views import in_classes
    from adafilter_dist.training.run_data import require_classes

    if sorted(classes) != sorted(prepared.classes):
        require_classes(folder, classes, prepared)
    return in_classes(prepared, classes)


def _evaluate(
    folder: Path,
    recipe: Recipe,
    split: SplitName,
    probe: bool,
    gates: bool,
    every_gate: bool,
    other_data: bool,
) -> int:
    from adafilter_dist.data.stored.prepared import open_prepared
    from adafilter_dist.distributed.world import join_world, set_arithmetic
    from adafilter_dist.evaluate import Evaluator
    from adafilter_dist.methods.export import read_config
    from adafilter_dist.models.backbone.backbones import resolve_preprocess
    from adafilter_dist.models.ops.dtypes import weights_dtype
    from adafilter_dist.report.measure import measure
    from adafilter_dist.report.outcomes import write_test_outcomes
    from adafilter_dist.report.summary import print_summary
    from adafilter_dist.report.test_pictures import write_test_pictures
    from adafilter_dist.system.progress import counting
    from adafilter_dist.training.best import load_best
    from adafilter_dist.training.control_run import open_control
    from adafilter_dist.training.gate_start import gates_at_start_of
    from adafilter_dist.training.run_data import read_run_data, require_run_data
    from adafilter_dist.training.stage_data import verify_on_nodes

    run_files = RunFiles(folder)
    if not run_files.best_config.is_file():
        raise UserError(
            f"{folder}: no best model in it; it is written after the first validation, and again "
            f"where it is gone: {resume_line(folder)}"
        )
    data = read_run_data(folder)
    prepared = open_prepared(recipe, known=data.fingerprint if data else None)
    classes = read_config(run_files.best)["classes"]
    path = run_files.evaluation(split)
    if other_data:
        path = run_files.evaluation(split, prepared.fingerprint)
    else:
        alike = sorted(classes) == sorted(prepared.classes)
        advice = ", or measure it on these: --other-data" if alike else ""
        require_run_data(folder, data, prepared, advice)
    prepared = _named_alike(folder, classes, prepared)
    if split == "val" and not len(prepared.split("val")[1]):
        raise UserError("--split val: the recipe has data.val_fraction=0; use --split test")
    control = open_control(recipe.evaluate.control, prepared)
    with join_world(recipe) as world:
        set_arithmetic(recipe)
        notices = verify_on_nodes(prepared, recipe, world)
        console = Console(quiet=not world.is_rank0)
        print_plain(console, *filter(None, (*notices, prepared.notice)))
        model = load_best(folder)
        results = measure(
            model.to(world.device, weights_dtype(recipe.train.precision)),
            Evaluator(
                recipe,
                prepared,
                resolve_preprocess(recipe),
                world,
                counting=partial(counting, console),
            ),
            split=split,
            probe=probe,
            gates=gates,
            start=None if other_data else gates_at_start_of(run_files, prepared),
            control=control,
        )
        if world.is_rank0:
            files.write_json(path, results.to_dict())
            # Of a run of an earlier version; what the end of a run has written stays.
            if split == "test" and not other_data:
                assert results.outcomes is not None
                if not run_files.test_outcomes.exists():
                    write_test_outcomes(folder, results.outcomes, prepared)
                # What was measured without gates is no reason to keep none of them.
                if not run_files.test_pictures.exists() and gates:
                    choices = results.gates.choices if results.gates is not None else None
                    write_test_pictures(folder, results.outcomes, choices, prepared)
            print_summary(console, folder, results, {"numbers": path}, every_gate=every_gate)
    return 0
