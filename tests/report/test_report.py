"""What a run says at its end: console, file and figure agree with the figures measured."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from adafilter_dist.evaluate import (
    Ablation,
    Difference,
    DomainGates,
    Evaluation,
    GateEvaluation,
    GateFigures,
    LayerGates,
    OfDomain,
    Outcomes,
)
from adafilter_dist.evaluate.gate_choices import GateChoices
from adafilter_dist.evaluate.gate_probe import GateMovement
from adafilter_dist.evaluate.linear_probe import Probe
from adafilter_dist.metrics import append
from adafilter_dist.report import Results, draw, figure, print_summary, write_gates, write_summary
from adafilter_dist.report.control import ControlResult

N, CLASSES = 200, 7


def outcomes(right: int, n: int = N) -> Outcomes:
    """Of ``n`` images the first ``right`` are right."""
    labels = torch.arange(n) % CLASSES
    predictions = torch.where(torch.arange(n) < right, labels, (labels + 1) % CLASSES)
    sure = torch.ones(n).double()
    return Outcomes(labels, predictions, predictions == labels, sure, sure)


def evaluation(right: int) -> Evaluation:
    return Evaluation.of(outcomes(right), CLASSES)


def results(layers: int = 3, seed: int = 4, gate_seed: int = 0) -> Results:
    draw_from = np.random.default_rng(gate_seed)
    few = Ablation(Evaluation.of(outcomes(100, 150), CLASSES), Difference(0.1, 0.02, 0.06, 0.14))
    gates = GateEvaluation(
        learned=evaluation(160),
        outcomes=outcomes(160),
        ablations={
            "mean": Ablation(evaluation(164), Difference(-0.02, 0.01, -0.04, 0.0)),
            "permuted": Ablation(evaluation(150), Difference(0.05, 0.02, 0.01, 0.09)),
            "same_class": few,
        },
        figures=GateFigures(0.4567, 0.0123, 0.1004, 0.127, 1.0),
        domains=[DomainGates("near", 150, 0.41), DomainGates("far", 50, 0.597)],
        choices=GateChoices([], np.zeros(0, np.int64), np.zeros((N, 0), np.uint16)),
        forwards=4,
        layers=[
            LayerGates(
                name=f"layer{i // 6}.{i // 3}.conv{i % 3}",
                filters=64,
                mean=float(draw_from.uniform(0.1, 0.9)),
                variance=float(draw_from.uniform(0, 0.2)),
                constant=0.25,
                between=0.031,
            )
            for i in range(layers)
        ],
    )
    probe = Probe(evaluation(140), 0.1, {1.0: 0.6, 0.1: 0.7, 0.01: 0.65}, 512, 1000)
    return Results("demo", seed, "adafilter", "test", gates.learned, gates, probe)


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def shown(place: Console) -> str:
    assert isinstance(place.file, io.StringIO)
    return place.file.getvalue()


def test_the_summary_tells_all_that_a_run_found(tmp_path: Path) -> None:
    place = console()
    run_dir = tmp_path / ("long-name-" * 12) / "1234abcd"
    files = {"numbers": run_dir / "n.json", "figure": run_dir / "figures" / "gates.png"}
    print_summary(place, run_dir, results(), {**files, "nowhere": None}, every_gate=True)
    lines = [" ".join(line.replace("│", " ").split()) for line in shown(place).splitlines()]
    text = "\n".join(lines)
    assert "linear probe on frozen features, L2 0.1 70.0 [63.3, 75.9]" in text
    assert "AdaFilter 80.0 [73.9, 85.0]" in text
    assert "another picture's gates 75.0 [68.6, 80.5] +5.0 [+1.0, +9.0]" in text
    assert "each filter's mean gate 82.0 [76.1, 86.7] -2.0 [-4.0, +0.0]" in text
    assert "... same class, 150 pictures 66.7 [58.8, 73.7] +10.0 [+6.0, +14.0]" in text
    assert (
        "mean 0.457 (1: fine-tuned), 25% of 192 constant, variance 0.0123 between classes, 0.1004 "
        "within" in text
    )
    assert (
        "domains mean gate in near 0.410, far 0.597; 0.127 of 1.000 bits shared with gates" in text
    )
    assert "measured in 4 passes (--no-gates: 1)" in text.replace("\n", " ")
    assert "a gate that was never trained also loses accuracy" in text.replace("\n", " ")
    for layer in results().gates.layers:  # type: ignore[union-attr]
        assert f"{layer.name} 64 {layer.mean:.2f} {layer.variance:.3f} 25% 0.031" in text
    assert "bits of domain" not in text.partition("layer filters")[2].partition("\n")[0]
    # Paths and the command stay whole, however narrow the console.
    assert f"numbers {run_dir}/n.json" in lines
    assert f"figure {run_dir}/figures/gates.png" in lines
    # Accuracy is what everybody looks for; and a finished run has nothing to be resumed.
    assert text.index("AdaFilter 80.0") < text.index("gates by layer")
    assert "resume" not in text and "nowhere" not in text


def test_gates_are_three_lines_on_the_screen_and_a_table_in_a_file(tmp_path: Path) -> None:
    layers = [LayerGates(f"layer{i}", 64, 0.5 + 0.001 * i, 0.1, 0.25, 0.02, 0.3) for i in range(50)]
    for i, mean in ((7, 0.8), (30, 0.2), (31, 0.6601), (32, 0.34), (33, 0.7)):
        layers[i] = replace(layers[i], mean=mean)
    movement = GateMovement("val", 256, 0.98, 0.5, 0.12, 0.23, 0.07, 0.1)
    found = replace(results(), movement=movement)
    assert found.gates is not None
    one_domain = replace(found.gates.figures, information=None, domain_entropy=None)
    found = replace(found, gates=replace(found.gates, layers=layers, figures=one_domain))
    place = console()
    print_summary(place, tmp_path, found, {})
    lines = shown(place).splitlines()
    of_gates = [i for i, line in enumerate(lines) if re.match("gates  |layers  |since start", line)]
    assert of_gates == list(range(of_gates[0], of_gates[0] + 3))
    assert lines[of_gates[-1] + 1] == "" and lines[of_gates[-1] + 2].startswith("run folder")
    assert lines[of_gates[1]] == (
        "layers      median of 50 mean gates 0.52; over 0.1 off: layer30 0.20, layer7 0.80, "
        "layer32 0.34 and 2 more; every layer: --gates"
    )
    path = write_gates(tmp_path, found)
    assert path == tmp_path / "figures" / "gates.txt"
    assert all(f"layer{i} " in path.read_text() for i in range(50))
    table = " ".join(path.read_text().split())
    assert table.count("all 50 layers 3200 0.53 0.100 25% 0.020 0.300") == 1
    assert write_gates(tmp_path, replace(found, gates=None)) is None

    same = [replace(layer, mean=0.5) for layer in layers]
    found = replace(found, gates=replace(results().gates, layers=same))  # type: ignore[type-var]
    place = console()
    print_summary(place, tmp_path, found, {})
    assert "layer7" not in shown(place) and "0.50, all within 0.1 of it" in shown(place)


def test_a_gate_that_never_left_its_start_is_warned_of(tmp_path: Path) -> None:
    movement = GateMovement("val", 256, 0.98, 0.97, 0.012, 0.23, 0.01, 0.1)

    def text(found: Results) -> str:
        place = console()
        print_summary(place, tmp_path, found, {})
        return " ".join(shown(place).split())

    found = replace(results(), movement=movement)
    assert "since start mean 0.980 to 0.970, 23.0% of the bits" in text(found)
    assert "warning: the mean gate never left its start: 0.980 before" in text(found)
    assert "0.970 now (all but plain fine-tuning);" in text(found)
    assert "warning" not in text(replace(found, gate_learns=False))  # a frozen control
    assert "warning" not in text(replace(found, movement=replace(movement, moved=0.06)))
    kept = json.loads(write_summary(tmp_path, found).read_text())["gate_movement"]
    assert kept["changed"] == 0.23 and kept["drift"] == pytest.approx(-0.01)


def test_a_control_stands_beside_the_run(tmp_path: Path) -> None:
    less = Difference(0.035, 0.01, 0.015, 0.055)
    gates = GateFigures(0.51, 0.01, 0.1, 0.113, 1.0)
    control = ControlResult(Path("/runs/1234abcd"), "adafilter", evaluation(153), less, gates)
    found = replace(results(), control=control)
    place = console()
    print_summary(place, tmp_path, found, {})
    text = " ".join(shown(place).split())
    assert "control: AdaFilter, 1234abcd 76.5 [70.2, 81.8] +3.5 [+1.5, +5.5]" in text
    assert "never trained" not in text
    assert "control gates' mean 0.510, 0.113 bits shared with the domain" in text
    kept = json.loads(write_summary(tmp_path, found).read_text())["control"]
    assert (kept["run"], kept["top1"]) == ("/runs/1234abcd", 0.765)
    assert kept["run_minus_control"]["low"] == 0.015
    assert kept["gates"]["information"] == 0.113


def test_the_figure_has_a_bar_for_each_layer_and_domain() -> None:
    from matplotlib.figure import Figure

    def bars(*names: str) -> tuple[list[float], list[str]]:
        axes = Figure().add_subplot()
        domains = {name: 0.25 * (i + 1) for i, name in enumerate(names)}
        layers = [LayerGates(f"layer{i}", 8, 0.6, 0.1, 0.0, domains=domains) for i in range(3)]
        figure._means(axes, layers)
        legend = axes.get_legend()
        texts = [text.get_text() for text in legend.get_texts()] if legend else []
        return [round(bar.get_height(), 2) for bar in axes.patches], texts  # type: ignore[attr-defined]

    assert bars("$a$", "_b") == ([0.25] * 3 + [0.5] * 3, ["domain $a$", "domain _b"])
    assert bars() == bars("a") == bars(*"abcde") == ([0.6] * 3, [])


def test_the_points_of_a_short_curve_are_marked() -> None:
    from matplotlib.figure import Figure

    def marker(points: int) -> object:
        axes = Figure().add_subplot()
        figure._losses(axes, [{"kind": "train", "step": i, "loss": 2.0} for i in range(points)])
        (line,) = axes.get_lines()
        assert len(np.asarray(line.get_xdata())) == points
        return line.get_marker()

    assert marker(1) == marker(8) == "o"  # a line through one point is not seen
    assert marker(300) == "None"


def test_without_gates_and_probe_only_the_accuracy_is_told() -> None:
    place = console()
    plain = Results("demo", 4, "finetune", "test", evaluation(160))
    print_summary(place, Path("runs/demo"), plain, {})
    assert "plain fine-tuning" in shown(place) and "80.0" in shown(place)
    assert "gate" not in shown(place) and "probe" not in shown(place)


def test_a_few_pictures_that_are_all_right_do_not_look_certain() -> None:
    place = console()
    eleven = Evaluation.of(outcomes(11, 11), CLASSES)
    print_summary(place, Path("runs/x"), Results("x", 0, "finetune", "test", eleven), {})
    assert "100.0 [74.1, 100.0]" in shown(place) and "95 % interval" in shown(place)


def test_accuracies_of_domains_and_their_mean_are_told() -> None:
    place = console()
    domains = [OfDomain("photo", 150, 0.9), OfDomain("ink", 50, 0.5)]
    of_domains = replace(evaluation(160), domains=domains)
    print_summary(place, Path("runs/x"), Results("x", 0, "finetune", "test", of_domains), {})
    text = " ".join(shown(place).replace("│", " ").split())
    assert (
        "plain fine-tuning, mean of domains 70.0 photo, 150 images 90.0 [84.2, 93.8] ink," in text
    )


def test_a_controls_accuracies_by_domain_stand_above_the_runs(tmp_path: Path) -> None:
    place = console()
    near, far = (
        replace(evaluation(160), domains=[OfDomain("near", 150, near), OfDomain("far", 50, 0.5)])
        for near in (0.7, 0.9)
    )
    control = ControlResult(Path("/runs/1234abcd"), "finetune", near, Difference(0, 0, 0, 0))
    print_summary(place, tmp_path, replace(results(), evaluation=far, control=control), {})
    text = " ".join(shown(place).replace("│", " ").split())
    before = text.index("mean of domains 60.0 near, 150 images 70.0 [62.2, 76.8] far")
    assert before < text.index(
        "AdaFilter, mean of domains 70.0 near, 150 images 90.0 [84.2, 93.8] far"
    )


def test_summary_json_holds_the_same_figures(tmp_path: Path) -> None:
    found = json.loads(write_summary(tmp_path, results()).read_text())
    assert found["evaluation"]["top1"] == 0.8
    assert np.asarray(found["evaluation"]["confusion"]).sum() == N
    assert found["probe"]["test"]["top1"] == 0.7 and found["probe"]["strength"] == 0.1
    permuted = found["gates"]["ablations"]["permuted"]
    assert permuted["top1"] == 0.75
    wanted = {"value": 0.05, "standard_error": 0.02, "low": 0.01, "high": 0.09}
    assert permuted["learned_minus_this"] == wanted
    assert found["gates"]["figures"]["between"] == 0.0123 and found["gates"]["forwards"] == 4
    assert found["control"] is None
    assert [layer["filters"] for layer in found["gates"]["layers"]] == [64] * 3


def rows(folder: Path) -> None:
    for step in range(10, 310, 10):
        row = {"loss": 2 / (1 + step / 60), "accuracy": 0.85 - 0.6 / (1 + step / 50)}
        append(folder / "metrics.jsonl", {"kind": "train", "step": step, **row})
    for step in range(30, 330, 30):
        row = {"loss": 1.8 / (1 + step / 60), "top1": 0.8 - 0.5 / (1 + step / 50)}
        head = {"kind": "evaluation", "split": "val", "step": step}
        append(folder / "metrics.jsonl", {**head, **row})


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.int16)


@pytest.mark.slow
def test_the_figure_shows_accuracies_curves_and_gates(tmp_path: Path) -> None:
    rows(tmp_path)
    path = draw(tmp_path, results(layers=52), console())
    assert path == tmp_path / "figures" / "gates.png"
    assert [item.name for item in path.parent.iterdir()] == ["gates.png"]
    first = pixels(path)
    assert first.shape[0] > 800 and first.shape[1] > 1200
    upper = int(0.36 * len(first))
    # Other gates change the lower panels only, other curves the upper ones only.
    draw(tmp_path, results(layers=52, gate_seed=1), console())
    other_gates = pixels(path)
    assert (other_gates[:upper] == first[:upper]).all()
    for panel in (slice(upper, int(0.62 * len(first))), slice(int(0.66 * len(first)), None)):
        assert (other_gates[panel] != first[panel]).any()
    (tmp_path / "metrics.jsonl").write_text("")
    draw(tmp_path, results(layers=52), console())
    other_curves, width = pixels(path), first.shape[1]
    for panel in (slice(int(0.4 * width), int(0.68 * width)), slice(int(0.72 * width), None)):
        assert (other_curves[:upper, panel] != first[:upper, panel]).any()
    draw(tmp_path, Results("demo", 4, "finetune", "test", evaluation(160)), console())
    assert len(pixels(path)) < len(first)


def test_without_matplotlib_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    place = console()
    assert draw(tmp_path, results(), place) is None
    assert "pip install 'adafilter-dist[report]'" in shown(place)
    assert not (tmp_path / "figures").exists()
