"""Each command runs, writes its two files, and says in one line what is wrong with its input."""

from __future__ import annotations

import csv
import json
import math
from functools import partial
from pathlib import Path

import profile_step
import pytest
import speed
import torch
from bench import inference, peaks, settings, step_memory, training
from bench.inference import RandomGates, forwards_of, same_logits
from bench.reporting import Column, Table, write
from bench.training import same_start, steps_of
from bench.variants import FOLDED, NAIVE, PLAIN, TRAINED, Networks

from adafilter_dist.errors import UserError
from adafilter_dist.system.exit_code import exit_code
from tests.benchmarks import by_hand
from tests.benchmarks.conftest import BENCHMARKS
from tests.distributed import forked

SMALL = ["--model", "resnet18", "--size", "32", "--threads", "1", "--device", "cpu"]


def small(*words: str) -> settings.Settings:
    return settings.parse("", [*SMALL, *words])


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine can do is measured with small tensors, twice for each batch of a command."""
    measure = partial(peaks.measure_machine, scale=0.05)
    for module in (training, inference, profile_step):
        monkeypatch.setattr(module, "measure_machine", measure)


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Of the one CSV in a folder, whose Markdown lies beside it; all numbers are finite."""
    (path,) = folder.glob("*.csv")
    assert path.with_suffix(".md").read_text().startswith("**")
    assert sorted(file.suffix for file in folder.iterdir()) == [".csv", ".md"]
    lines = path.read_text().splitlines()
    facts = [line for line in lines if line.startswith("#")]
    assert any(line.startswith("# torch: ") for line in facts)
    assert any("--model resnet18" in line for line in facts)
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    for row in rows:
        for key, value in row.items():
            if value and key not in ("variant", "phase", "gates", "part"):
                assert math.isfinite(float(value)), row
    return rows


@pytest.mark.slow
def test_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", *SMALL, "--batch", "4", "--repeats", "2", "--out", str(tmp_path)]
    assert speed.main(words) == 0
    rows = rows_of(tmp_path)
    assert {row["variant"] for row in rows} == {*TRAINED, "floor: plain", "floor: AdaFilter"}
    steps = {row["variant"]: row for row in rows if row["phase"] == "step"}
    assert float(steps["plain"]["to plain"]) == 1.0
    assert all(float(steps[name]["ms"]) > 0 for name in (NAIVE, "floor: AdaFilter"))
    out, err = capsys.readouterr()
    assert "written: " in out and "round 2/2" in err


def test_a_result_of_the_same_day_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = small("--out", str(tmp_path))
    table = Table("t", [Column("variant"), Column("ms", 1)])
    for number in range(2):
        table.add(PLAIN, 1.5 * number)
        write(own, table, [], {"torch": "2", "command": own.command})
        assert ("replaces" in capsys.readouterr().err) == (number == 1)
        assert [row["ms"] for row in rows_of(tmp_path)] == ["0.0", "1.5"][: number + 1]


@pytest.mark.slow
def test_infer(tmp_path: Path) -> None:
    words = ["infer", *SMALL, "--batch", "1,2", "--repeats", "1", "--precision", "bf16"]
    assert speed.main([*words, "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path)
    assert all(path.name.startswith("infer-bf16-batch1+2-32px-") for path in tmp_path.iterdir())
    assert len(rows) == 2 * 8
    assert {row["batch"] for row in rows} == {"1", "2"}


@pytest.mark.slow
def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A process of its own for each, seconds of importing torch; the next test has the others.
    monkeypatch.setattr(step_memory, "TRAINED", (PLAIN, NAIVE))
    words = ["memory", *SMALL, "--batch", "4", "--out", str(tmp_path)]
    assert speed.main(words) == 0
    found = {row["variant"]: row for row in rows_of(tmp_path)}
    assert set(found) == {PLAIN, NAIVE}
    plain, naive = found["plain"], found[NAIVE]
    weights = 11.2e6 * 4 / 1e6  # MB
    assert float(plain["at rest MB"]) == pytest.approx(2 * weights, rel=0.01)
    assert float(naive["at rest MB"]) > 3 * weights
    assert float(plain["step MB"]) > weights  # the gradients at least
    assert float(naive["saved to plain"]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*TRAINED} - {PLAIN, NAIVE}))
def test_memory_of_one_variant(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    step_memory.tell_one(small("--batch", "4", "--only", name))
    told = json.loads(capsys.readouterr().out)
    plain = 2 * 11.2e6 * 4  # bytes of its weights and their momentum
    assert told["rest"] > plain and told["saved"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "infer"])
def test_profile(tmp_path: Path, what: str) -> None:
    words = [what, *SMALL, "--batch", "2", "--repeats", "1", "--out", str(tmp_path)]
    assert profile_step.main(words) == 0
    rows = rows_of(tmp_path)
    parts = {row["part"]: row for row in rows}
    assert ("weight gradient" in parts) == (what == "train")
    listed = [row for row in rows if row["gap %"]]
    assert sum(float(row["gap %"]) for row in listed) == pytest.approx(100)
    total = sum(float(row["AdaFilter ms"]) for row in listed)
    assert total == pytest.approx(float(parts["sum"]["AdaFilter ms"]))


@pytest.mark.slow
def test_a_variant_that_computes_something_else_is_noticed() -> None:
    networks = Networks(small())
    steps = steps_of(networks, 2)
    assert "losses" in same_start(steps, 2, networks.settings)
    with torch.no_grad():
        steps[NAIVE].net.get_parameter("backbone.fc.weight").mul_(10)
    with pytest.raises(RuntimeError, match="different losses"):
        same_start(steps, 2, networks.settings)

    forwards = forwards_of(networks, 2)
    assert "folded from plain" in same_logits(forwards, 2, networks.settings)
    with torch.no_grad():
        next(forwards[FOLDED, ""].net.parameters()).mul_(3)
    with pytest.raises(RuntimeError, match="plain and plain, folded differ"):
        same_logits(forwards, 2, networks.settings)


def test_random_gates_change_from_call_to_call_and_come_again() -> None:
    device, given = torch.device("cpu"), torch.zeros(3, 40)
    gates, again = (RandomGates([40, 60], 3, device, seed=1) for _ in range(2))
    first = [gates(index, given) for index in (0, 1)]
    second = gates(0, given)
    assert [tuple(bits.shape) for bits in first] == [(3, 40), (3, 60)]
    assert set(first[0].unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first[0], second)
    assert not torch.equal(first[0][0], first[0][1])  # nor are images alike
    assert torch.equal(again(0, given), first[0])
    gates.restart()
    assert torch.equal(gates(0, given), first[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tran"], "invalid choice: 'tran'"),
        ([], "required: what"),
        (["train", "--batch", "1"], "--batch 1: at least 2"),
        (["infer", "--batch", "1;8"], "--batch 1;8: whole numbers with commas"),
        (["train", "--model", "resnet5"], "did you mean 'resnet50'"),
        (["train", "--size", "8"], "--size 8: at least 32"),
        (["train", "--repeats", "0"], "--repeats 0: at least 1"),
        (["train", "--device", "tpu9"], "--device tpu9: no such device"),
        (["train", "--device", "cuda:99"], "--device cuda:99: there are"),
        (["train", "--out", __file__], "a file, not a folder"),
        (["memory", "--compile"], "--compile: for train and infer only"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: speed.main(words)) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    assert said in err


def test_a_folder_that_cannot_be_made_is_noticed_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        speed.main(["train", *SMALL, "--out", str(tmp_path / "file" / "results")])


@pytest.mark.slow
@pytest.mark.parametrize("script", ["speed.py", "profile_step.py", "floor.py"])
def test_help_from_any_folder(script: str, tmp_path: Path) -> None:
    shown = forked.server().fork(
        [], folder=tmp_path, before=[by_hand.__name__, "run", str(BENCHMARKS / script), "--help"]
    )
    assert shown.wait() == 0, shown.printed()
    assert "--precision" in shown.printed() and "--repeats" in shown.printed()
