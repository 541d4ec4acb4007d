"""``adafilter compact``: a smaller export, without the filters that are never chosen."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adafilter_dist.commands.parser import Parser
from adafilter_dist.errors import UserError, resume_line
from adafilter_dist.recipe.hints import no_run
from adafilter_dist.run.files import RunFiles
from adafilter_dist.run.find import find_run_of
from adafilter_dist.run.no_run import no_run_in
from adafilter_dist.system.console import Console, print_plain

if TYPE_CHECKING:
    from adafilter_dist.data.stored.prepared import SplitName
    from adafilter_dist.recipe import Recipe

HELP = "drop the filters that are never chosen from a run's best model"


def run(words: list[str]) -> int:
    """Parse ``RUN | EXPORT recipe=NAME [--out FOLDER] ...``, write the folder, show figures."""
    parser = Parser(
        "adafilter compact",
        description=f"{HELP}: gates that are the same for all calibration pictures are taken for "
        "granted. Accuracy before and after is shown; the folder is read by adafilter_dist.load.",
        examples=["adafilter compact runs/demo/1a2b3c4d --images 512"],
    )
    parser.add_argument("--out", type=Path, help="default: RUN/compact, or EXPORT-compact")
    parser.add_argument(
        "--split", choices=("val", "train"), default="val", help="calibration pictures"
    )
    parser.add_argument("--images", type=int, help="at most so many of them, evenly spread")
    parser.add_argument(
        "--report", choices=("test", "val"), default="test", help="where accuracy is measured"
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN | EXPORT | key=value",
        help="run folder, or folder of an export and recipe=NAME for its data; overrides",
    )
    options = parser.parse_intermixed_args(words)
    if options.images is not None and options.images < 1:
        raise UserError(f"--images {options.images}: at least 1")
    source, recipe, run = _find(options.words)
    out = options.out or (
        RunFiles(source.parent).compact if _is_best(source) else Path(f"{source}-compact")
    )
    out = out.expanduser()
    if out.resolve() == source.resolve():
        raise UserError(f"--out {out}: that is the export itself, which is kept")
    return _compact(source, out, recipe, run, options.split, options.images, options.report)


def _find(words: list[str]) -> tuple[Path, Recipe, Path | None]:
    """The export to compact, the recipe that knows its data, and the run where that is its own."""
    folder = Path(words[0]).expanduser()
    if "=" in words[0] or RunFiles(folder).recipe.is_file():
        run_folder, recipe = find_run_of(words)
        return RunFiles(run_folder).best, recipe, run_folder
    if wrong := no_run(words[0], words[1:]):
        raise UserError(wrong)
    if not (folder / "config.json").is_file():
        raise UserError(no_run_in(folder, or_export=True))
    if any(word.startswith("recipe=") for word in words[1:]):
        from adafilter_dist.recipe import load_recipe

        return folder, load_recipe(words[1:]), None
    if RunFiles(folder.parent).recipe.is_file():
        return folder, find_run_of([str(folder.parent), *words[1:]])[1], folder.parent
    raise UserError(
        f"{folder}: an export does not know its pictures; add recipe=NAME (and its overrides), "
        "as for `adafilter train`"
    )


def _is_best(source: Path) -> bool:
    return source == RunFiles(source.parent).best


def _compact(
    source: Path,
    out: Path,
    recipe: Recipe,
    run: Path | None,
    split: SplitName,
    images: int | None,
    report: SplitName,
) -> int:
    from adafilter_dist.data.stored.prepared import open_prepared
    from adafilter_dist.distributed.world import join_world, set_arithmetic
    from adafilter_dist.evaluate import Evaluator
    from adafilter_dist.export.place import require_place
    from adafilter_dist.methods.export import load, read_config
    from adafilter_dist.models.backbone.backbones import resolve_preprocess
    from adafilter_dist.models.gating.convert import AdaFilterNet
    from adafilter_dist.models.ops.dtypes import weights_dtype
    from adafilter_dist.report.compacting import compact_export
    from adafilter_dist.system.progress import counting
    from adafilter_dist.training.best import load_best
    from adafilter_dist.training.run_data import read_run_data, require_classes, require_run_data
    from adafilter_dist.training.stage_data import verify_on_nodes

    if not (source / "config.json").is_file():
        raise UserError(f"{source}: no best model in it yet: {resume_line(source.parent)}")
    require_place(out)
    data = read_run_data(run) if run is not None else None
    prepared = open_prepared(recipe, known=data.fingerprint if data else None)
    advice = f", or name the data whose pictures decide: adafilter compact {source} recipe=NAME"
    require_run_data(source.parent, data, prepared, advice)
    for name, option in ((split, "--split"), (report, "--report")):
        if not len(prepared.split(name)[1]):
            raise UserError(f"{option} {name}: the recipe has data.val_fraction=0; use another")
    with join_world(recipe) as world:
        set_arithmetic(recipe)
        notices = verify_on_nodes(prepared, recipe, world)
        console = Console(quiet=not world.is_rank0)
        print_plain(console, *notices)
        net = load_best(source.parent) if _is_best(source) else load(source)[0]
        if not isinstance(net, AdaFilterNet):
            raise UserError(f"{source}: it has no gates to decide by, or was compacted before")
        require_classes(source, read_config(source)["classes"], prepared)
        result = compact_export(
            net.to(world.device, weights_dtype(recipe.train.precision)),
            source,
            out,
            Evaluator(
                recipe,
                prepared,
                resolve_preprocess(recipe),
                world,
                counting=partial(counting, console),
            ),
            calibrate=split,
            images=images,
            report=report,
        )
        print_plain(console, *result.lines(), f"{'written':<12} {out}")
    return 0
