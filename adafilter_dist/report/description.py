"""What a recipe would train and what it costs, as tables."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from adafilter_dist.data.prepare.summary import own_validation
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.errors import UserError
from adafilter_dist.methods import TrainableModel, build_method
from adafilter_dist.models.backbone.backbones import Backbone, load_backbone
from adafilter_dist.models.gating.conversion_report import ConversionReport
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.baselines import FineTune
from adafilter_dist.report.costs import Costs, estimate_memory, measure_costs
from adafilter_dist.system.console import print_plain

_CLASSES = {
    "fashion_mnist": 10,
    "mixed_domains": 10,
    "food101": 101,
    "caltech256": 256,
    "stanford_dogs": 120,
    "fgvc_aircraft": 100,
    "indoor67": 67,
    "ucf101": 101,
    "omniglot": 1623,
}
_UNKNOWN_CLASSES = 10


def describe(recipe: Recipe, classes: int | None, console: Console) -> None:
    """Print the description for ``classes`` classes, by default those of the data.

    UserError for a recipe that cannot be built.
    """
    classes = _classes(recipe, classes, console)
    backbone = _backbone(recipe, classes, console)
    preprocess, side = backbone.preprocess, backbone.preprocess.crop
    print_plain(
        console,
        f"{recipe.name}: {backbone.name}, {backbone.source}; {classes} classes; input {side} px, "
        f"{preprocess.interpolation}, evaluation resize {preprocess.resize} px",
    )
    trainable = build_method(backbone, recipe)
    if trainable.report is not None:
        _print_conversion(console, trainable.report)
    console.print()
    console.print(_parameters(trainable, recipe.model.head))
    console.print()
    costs = measure_costs(trainable.model, side, recipe.train.precision, trainable.penalty)
    console.print(_operations(recipe, trainable, costs, _plain_costs(recipe, classes, side)))
    console.print()
    console.print(_memory(recipe, trainable, costs))


def _classes(recipe: Recipe, wanted: int | None, console: Console) -> int:
    if wanted is not None:
        if wanted < 2:
            raise UserError(f"--classes {wanted}: at least two classes are needed")
        return wanted
    try:
        prepared = open_prepared(recipe)
        if prepared.validation:
            print_plain(console, own_validation(prepared.validation))
        return len(prepared.classes)
    except UserError as error:
        why = str(error).partition("; ")[0]
    named, name = recipe.data.classes, recipe.data.name
    if named is not None:
        number, source = len(named), "as data.classes has"
    elif name in _CLASSES:
        number, source = _CLASSES[name], f"as {name} has"
    else:
        number, source = _UNKNOWN_CLASSES, "--classes N says how many"
    print_plain(console, f"{why}: {number} classes assumed, {source}")
    return number


def _random(recipe: Recipe) -> Recipe:
    update = {"weights": None, "head": "new"}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=update)})


def _backbone(recipe: Recipe, classes: int, console: Console) -> Backbone:
    try:
        return load_backbone(recipe, classes)
    except UserError as missing:
        # Shapes and costs do not depend on the values; anything else wrong is wrong here too.
        backbone = load_backbone(_random(recipe), classes)
        print_plain(console, f"{missing}; random weights here")
        return backbone


def _print_conversion(console: Console, report: ConversionReport) -> None:
    table = Table(
        title=f"{len(report.gated)} gated layers in order of execution (found by "
        f"{report.found_by})",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("layer", overflow="fold")
    for name in ("kernel", "channels", "filters"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, layer in enumerate(report.gated, start=1):
        kernel = f"{layer.kernel[0]}x{layer.kernel[1]}"
        kernel += f" /{layer.stride[0]}" if max(layer.stride) > 1 else ""
        kernel += f", {layer.groups} groups" if layer.groups > 1 else ""
        table.add_row(
            f"{number}", layer.name, kernel, f"{layer.in_channels}", f"{layer.out_channels}"
        )
    console.print(table)
    filters = sum(layer.out_channels for layer in report.gated)
    print_plain(
        console,
        f"{filters:,} filters, each a bit per image; {report.gated_share:.1%} of the "
        "convolution weights are gated",
    )
    if report.left_out:
        left = Table(title="convolutions left out", title_justify="left", box=SIMPLE_HEAD)
        left.add_column("layer", overflow="fold")
        left.add_column("why")
        for name, reason in report.left_out:
            left.add_row(name, reason)
        console.print(left)
    print_plain(console, *(f"warning: {warning}" for warning in report.warnings()))


def _norms_of(trainable: TrainableModel) -> str:
    shared = isinstance(trainable.model, AdaFilterNet) and trainable.model.batchnorm == "shared"
    return "one for both kinds of filter" if shared else "one for each kind of filter"


def _parameters(trainable: TrainableModel, head: str) -> Table:
    table = Table(title="parameters", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("part")
    table.add_column("number", justify="right")
    table.add_column("")
    if trainable.report is not None:
        counts = trainable.report.parameters
        rows = [
            ("frozen filters", counts.frozen, "kept in buffers, never trained"),
            ("fine-tuned filters", counts.tuned, "start as the frozen ones"),
            ("gate", counts.gate, ""),
            ("BatchNorm", counts.batchnorm, _norms_of(trainable)),
            ("classifier", counts.head, "new" if head == "new" else "of the weights"),
            ("other", counts.other, "ungated layers"),
        ]
        if counts.still:
            rows.append(("held still", counts.still, "model.ungated=freeze; counted above"))
    else:
        parameters = list(trainable.model.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        held = sum(p.numel() for p in parameters) - trained
        rows = [("trained", trained, ""), ("frozen", held, "")]
    for name, number, remark in rows:
        table.add_row(name, f"{number:,}", remark)
    return table


def _plain_costs(recipe: Recipe, classes: int, side: int) -> Costs:
    plain = recipe.model_copy(update={"method": FineTune(layers=None)})
    trainable = build_method(load_backbone(_random(plain), classes), plain)
    return measure_costs(trainable.model, side, recipe.train.precision, trainable.penalty)


def _operations(recipe: Recipe, trainable: TrainableModel, costs: Costs, plain: Costs) -> Table:
    table = Table(
        title="operations per image, 10^6 multiply-adds (convolutions and matrix products)",
        title_justify="left",
        caption="both filters of a gated layer are computed" if trainable.report else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("")
    for name in ("plain fine-tuning", trainable.method, "ratio"):
        table.add_column(name, justify="right")
    for name, ours, theirs in (
        ("prediction", costs.forward, plain.forward),
        ("training step", costs.step, plain.step),
    ):
        table.add_row(name, f"{theirs / 1e6:,.1f}", f"{ours / 1e6:,.1f}", f"{ours / theirs:.2f}")
    return table


def _memory(recipe: Recipe, trainable: TrainableModel, costs: Costs) -> Table:
    memory = estimate_memory(trainable.model, costs, recipe)
    m = recipe.train.micro_batch
    table = Table(
        title=f"memory of a training process (micro_batch={m}, {recipe.train.precision})",
        title_justify="left",
        caption="an estimate; libraries and the workspace of kernels come on top",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("")
    table.add_column("MiB", justify="right")
    for name, size in (
        ("weights and buffers", memory.weights),
        ("gradients", memory.gradients),
        (f"optimizer ({recipe.optim.name})", memory.optimizer),
        ("EMA", memory.ema),
        ("activations", memory.activations),
    ):
        table.add_row(name, f"{size / 2**20:,.1f}")
    table.add_section()
    table.add_row("total", f"{memory.total / 2**20:,.1f}")
    return table
