"""What `adafilter inspect` says before training: layers, parameters, operations, memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from adafilter_dist.__main__ import main
from adafilter_dist.recipe import Recipe
from adafilter_dist.report.costs import Costs, estimate_memory, measure_costs
from tests.data import trees

SIDE = 64


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("COLUMNS", "100")
    path = tmp_path / "small.yaml"
    path.write_text(
        "name: small\n"
        f"data: {{name: imagefolder, root: {tmp_path}/nowhere, resolution: {SIDE}}}\n"
        "model: {name: resnet18, weights: null}\n"
        "train: {global_batch: 8, micro_batch: 4}\n"
    )
    yield path


def inspect(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines printed, runs of blanks as one."""
    assert main(["inspect", *words]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_the_classifier_is_new_or_that_of_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    said = {
        head: inspect(
            capsys, "recipe=control/mixed-domains", "method=adafilter", f"model.head={head}"
        )
        for head in ("new", "pretrained")
    }
    assert "classifier 650 new" in said["new"]
    assert "classifier 650 of the weights" in said["pretrained"]


def multiply_adds(net: nn.Module, side: int) -> dict[str, int]:
    """By layer from the shapes alone: output places times filters times their weights."""
    counts: dict[str, int] = {}

    def count(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            places = output[0, 0].numel() if output.dim() == 4 else 1
            counts[name] = places * sum(
                p.numel() for n, p in module.named_parameters() if n == "weight"
            )

        return hook

    handles = [
        module.register_forward_hook(count(name, module))
        for name, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, side, side))
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_operations_against_the_shapes(name: str) -> None:
    net = torchvision.models.get_model(name, weights=None, num_classes=10)
    wanted = multiply_adds(net, SIDE)
    found = measure_costs(net, SIDE, "fp32")
    total, stem = sum(wanted.values()), next(iter(wanted.values()))
    assert found.forward == total
    # Both gradients of every layer, grouped or not; the pictures need none.
    assert found.step == 3 * total - stem


def test_activations_are_what_autograd_keeps() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 10)
    )
    found = measure_costs(net, 16, "fp32")
    # The pictures, the output of the ReLU (its input is not needed), the log-probabilities.
    wanted = 4 * (3 * 16 * 16 + 8 * 16 * 16 + 10)
    assert wanted <= found.activations <= wanted + 200
    assert all(parameter.grad is None for parameter in net.parameters())


def test_memory_follows_optimizer_ema_precision_and_micro_batch() -> None:
    def memory(**sections: Any) -> Any:
        recipe = Recipe.model_validate({"name": "m", "data": {"name": "food101"}, **sections})
        return estimate_memory(nn.Linear(9, 10), Costs(0, 0, activations=50), recipe)

    size = 4 * 100
    sgd = memory(train={"global_batch": 8, "micro_batch": 8})
    assert (sgd.weights, sgd.gradients, sgd.optimizer, sgd.ema) == (size, size, size, 0)
    assert sgd.activations == 8 * 50 and sgd.total == 3 * size + 400
    assert memory(optim={"name": "adamw"}).optimizer == 2 * size
    assert memory(optim={"momentum": 0.0}).optimizer == 0
    assert memory(ema={"decay": 0.99}).ema == size


@pytest.mark.slow
def test_an_unprepared_recipe_is_described(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = inspect(capsys, f"recipe={recipe_file}", "--classes", "7")
    text = "\n".join(lines)
    assert "small: resnet18, random weights of seed 0; 7 classes; input 64 px" in text
    assert "20 gated layers in order of execution" in text
    assert "1 conv1 7x7 /2 3 64" in lines
    numbered = [line.split() for line in lines if line[:1].isdigit()]
    order = [row[1] for row in numbered if row[-1].isdigit()]
    assert order[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert "layer2.0.downsample.0" in order and len(order) == 20
    weights = sum(
        m.weight.numel()
        for m in torchvision.models.resnet18().modules()
        if isinstance(m, nn.Conv2d)
    )
    assert f"frozen filters {weights:,} kept in buffers, never trained" in lines
    assert f"fine-tuned filters {weights:,} start as the frozen ones" in lines
    assert f"classifier {512 * 7 + 7:,} new" in lines
    net = torchvision.models.resnet18(num_classes=7)
    counts = multiply_adds(net, SIDE)
    (prediction,) = (line.split() for line in lines if line.startswith("prediction"))
    assert float(prediction[1]) == pytest.approx(sum(counts.values()) / 1e6, abs=0.06)
    # Both branches everywhere, and the gate on top.
    assert 2.0 < float(prediction[3]) < 2.2
    (step,) = (line.split() for line in lines if line.startswith("training step"))
    assert 5 / 3 < float(step[4]) < 1.9


def test_what_is_not_gated_is_listed_with_its_reason(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = inspect(capsys, f"recipe={recipe_file}", "method.layers=layer[34]")
    assert "; 10 classes; " in "".join(lines)
    start = lines.index("convolutions left out")
    left = [line for line in lines[start:] if line.startswith(("conv1 ", "layer1.0.conv1 "))]
    assert len(left) == 2 and all("method.layers" in line or "match" in line for line in left)


@pytest.mark.parametrize(
    ("words", "assumed"),
    [
        ([], "10 classes assumed, --classes N says how many"),
        (["data.classes=[a, b, c]"], "3 classes assumed, as data.classes has"),
        (["data.name=food101"], "101 classes assumed, as food101 has"),
    ],
)
def test_classes_that_are_assumed_are_told(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], words: list[str], assumed: str
) -> None:
    lines = inspect(capsys, f"recipe={recipe_file}", "method=linear_probe", *words)
    assert lines[0].endswith(assumed), lines[0]
    assert "prepared" in lines[0] or "data.root" in lines[0]


def test_classes_are_those_of_the_prepared_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("auk", "owl", "wren")
    root = trees.folders(
        tmp_path / "birds", {f"{s}/{c}": 4 for s in ("train", "test") for c in names}
    )
    words = ["recipe=imagefolder", f"data.root={root}", "data.stored_size=32", "model=resnet18"]
    words += [
        "data.val_fraction=0",
        "data.resolution=32",
        "model.weights=null",
        "method=linear_probe",
    ]
    assert main(["prepare", *words]) == 0
    capsys.readouterr()
    lines = inspect(capsys, *words)
    assert "; 3 classes; " in lines[0] and "assumed" not in "".join(lines)


def test_a_baseline_has_no_gates(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = inspect(capsys, f"recipe={recipe_file}", "method=finetune", "--classes", "7")
    text = "\n".join(lines)
    total = sum(p.numel() for p in torchvision.models.resnet18(num_classes=7).parameters())
    assert "gated" not in text
    assert f"trained {total:,}" in text
    (prediction,) = (line.split() for line in lines if line.startswith("prediction"))
    assert prediction[3] == "1.00"


@pytest.mark.slow
def test_missing_weights_are_replaced_with_a_notice(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = inspect(capsys, f"recipe={recipe_file}", "model.weights=gone.pth", "--classes", "7")
    assert any("gone.pth" in line and line.endswith("random weights here") for line in lines)


def test_bad_words_are_one_line_each(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"recipe={recipe_file}", "--classes", "1"]) == 2
    assert "at least two classes" in capsys.readouterr().err
    assert main(["inspect", f"recipe={recipe_file}", "model.name=resnet19"]) == 2
    assert "resnet19" in capsys.readouterr().err
