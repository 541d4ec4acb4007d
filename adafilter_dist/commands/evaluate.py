"""``adafilter evaluate``: measure the best model of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adafilter_dist import atomic
from adafilter_dist.commands.parser import Parser
from adafilter_dist.commands.resume import add_gates
from adafilter_dist.console import Console
from adafilter_dist.errors import UserError
from adafilter_dist.kept_recipe import read_kept
from adafilter_dist.recipe import Recipe, load_recipe
from adafilter_dist.recipe.engine import DDP, AnyEngine
from adafilter_dist.recipe.hints import no_run
from adafilter_dist.recipe.identity import run_dir
from adafilter_dist.resuming import resume_line

if TYPE_CHECKING:
    from adafilter_dist.data.prepared import Prepared, SplitName

HELP = "accuracy, gates and linear probe of a run's best model"


def run(words: list[str]) -> int:
    """Parse ``RUN | recipe=NAME ... [--split test|val] [--probe] [--no-gates]`` and measure."""
    parser = Parser(
        "adafilter evaluate",
        description=f"{HELP}; written to RUN/evaluation-SPLIT.json.",
        examples=[
            "adafilter evaluate runs/demo/1a2b3c4d --split val",
            "adafilter evaluate recipe=food101 data.root=/data/food-101 --probe",
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
    parser.add_argument("--no-gates", action="store_true", help="leave out permuted and mean gates")
    add_gates(parser)
    parser.add_argument(
        "words", nargs="+", metavar="RUN | key=value", help="run folder or recipe=NAME; overrides"
    )
    options = parser.parse_intermixed_args(words)
    folder, recipe = find_run_of(options.words)
    return _evaluate(
        folder,
        recipe,
        options.split,
        options.probe,
        not options.no_gates,
        options.gates,
        options.other_data,
    )


def find_run_of(words: list[str]) -> tuple[Path, Recipe]:
    """The run folder and its recipe, from the folder or from the words that trained it.

    The recipe's engine is DDP's: what trained the run need not be installed to measure it.
    """
    if any(word.startswith("recipe=") for word in words):
        recipe = load_recipe(words)
        folder = run_dir(recipe).expanduser()
        if not (folder / "recipe.yaml").is_file():
            raise UserError(
                f"{folder}: this recipe has no run there yet; train it first, or give the run's "
                "folder: adafilter evaluate RUN"
            )
        read_kept(folder)
        return folder, _with_ddp(recipe)
    if wrong := no_run(words[0], words[1:]):
        raise UserError(wrong)
    folder = Path(words[0]).expanduser()
    read_kept(folder)
    return folder, _with_ddp(load_recipe([f"recipe={folder / 'recipe.yaml'}", *words[1:]]))


def _with_ddp(recipe: Recipe) -> Recipe:
    engine = DDP(**recipe.engine.model_dump(include=set(AnyEngine.model_fields)))
    return recipe.model_copy(update={"engine": engine})


def _named_alike(folder: Path, classes: list[str], prepared: Prepared) -> Prepared:
    """The data with the model's numbers for the classes; UserError where the names differ."""
    from adafilter_dist.data.renumbered import in_classes
    from adafilter_dist.run_data import require_classes

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
    import torch

    from adafilter_dist.best import load_best
    from adafilter_dist.data.prepared import open_prepared
    from adafilter_dist.engine.world import join_world, set_arithmetic
    from adafilter_dist.models.backbones import resolve_preprocess
    from adafilter_dist.models.export import read_config
    from adafilter_dist.node_copies import verify_on_nodes
    from adafilter_dist.report.measure import measure
    from adafilter_dist.report.summary import print_summary
    from adafilter_dist.run_data import read_run_data, require_run_data

    if not (folder / "best" / "config.json").is_file():
        raise UserError(
            f"{folder}: no best model in it; it is written after the first validation, and again "
            f"where it is gone: {resume_line(folder)}"
        )
    data = read_run_data(folder)
    prepared = open_prepared(recipe, known=data.fingerprint if data else None)
    classes = read_config(folder / "best")["classes"]
    path = folder / f"evaluation-{split}.json"
    if other_data:
        path = folder / f"evaluation-{split}-{prepared.fingerprint[:8]}.json"
    else:
        alike = sorted(classes) == sorted(prepared.classes)
        advice = ", or measure it on these: --other-data" if alike else ""
        require_run_data(folder, data, prepared, advice)
    prepared = _named_alike(folder, classes, prepared)
    if split == "val" and not len(prepared.split("val")[1]):
        raise UserError("--split val: the recipe has data.val_fraction=0; use --split test")
    with join_world(recipe) as world:
        set_arithmetic(recipe)
        notices = verify_on_nodes(prepared, recipe, world)
        model = load_best(folder)
        dtype = torch.float64 if recipe.train.precision == "fp64" else torch.float32
        results = measure(
            model.to(world.device, dtype),
            recipe,
            prepared,
            resolve_preprocess(recipe),
            world,
            split=split,
            probe=probe,
            gates=gates,
        )
        if world.first:
            console = Console()
            for line in (*notices, prepared.notice):
                if line:
                    console.print(line, highlight=False, markup=False, soft_wrap=True)
            atomic.write_json(path, results.to_dict())
            print_summary(console, folder, results, {"numbers": path}, every_gate=every_gate)
    return 0
