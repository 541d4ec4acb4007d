"""The positive control: does deciding by picture pay where it must, and what of it is needed?

Every arm trains the same recipe with its own words. Learning rates are chosen on the validation
pictures over the tuning seeds, then each arm runs on fresh seeds and is tested once. Each seed
draws other training pictures (data.split_seed). Differences are paired by seed; intervals are
Student's t, 95 %. What is done is kept under --out and not run again.

    python benchmarks/gate_control.py --out results/control
    python benchmarks/gate_control.py --out results/edges --words "data.mixed.changes=[edges]"
    python benchmarks/gate_control.py --out results/demo --recipe demo --arms finetune adafilter
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.reporting import Column, Table, say

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.sections.data import Data
from adafilter_dist.run.files import RunFiles


@dataclass(frozen=True)
class Arm:
    """What is compared: words of its recipe, and the learning rates to choose from."""

    words: tuple[str, ...]
    rates: tuple[float, ...] = (0.01, 0.03)


def arms(data: Data) -> dict[str, Arm]:
    """All arms by name, for these data."""
    changes = data.mixed.original_changes, data.mixed.changes
    first, second = ("+".join(each) or "original" for each in changes)

    def oracle(one: str, other: str) -> tuple[str, ...]:
        gates = f"{{{first}: {one}, {second}: {other}}}"
        return ("method.gate.mode=oracle", f"method.gate.oracle={gates}")

    no_picture = ("method.gate.decision=filter", "method.batchnorm=selected")
    # What is left out of AdaFilter is left out at its rate, and pictures are divided all the same.
    same = (0.03,)
    divide = "method.gate.contrast=0"
    return {
        "finetune": Arm(("method=finetune",), (0.003, 0.01, 0.03)),
        "lp_ft": Arm(("method=lp_ft",), (0.003, 0.01, 0.03)),
        "oracle": Arm(oracle("0", "1")),
        "oracle_of_groups": Arm(oracle("[1, 0]", "[0, 1]")),
        "adafilter": Arm(()),
        "low_contrast": Arm(("method.gate.contrast=0.5",)),
        "paper": Arm(("method.gate.recipe=paper",)),
        "frozen": Arm(("method.gate.mode=frozen",), same),
        "partition": Arm(("method.gate.mode=partition",), same),
        "bernoulli": Arm(("method.gate.mode=bernoulli",), same),
        "without_selected_batchnorm": Arm(("method.batchnorm=all", divide), same),
        "without_measured_losses": Arm(no_picture, same),
        "without_early_decision": Arm(("method.gate.warmup=0.9", divide), same),
        "without_look_ahead": Arm(("method.gate.look_ahead=0", divide), same),
        "look_ahead_of_one_layer": Arm(("method.gate.look_ahead=0.01", divide), same),
        "groups_2": Arm(("method.gate.groups=2", divide), same),
    }


@dataclass(frozen=True)
class Outcome:
    """Figures of one run: accuracies in percent, information in bits."""

    validation: float
    test: float
    domains: tuple[float, ...]
    information: float | None
    mean_gate: float | None


class Control:
    """Runs arms and reads what they came to; `words` are those of all runs."""

    def __init__(self, out: Path, words: Sequence[str], kinds: dict[str, Arm]) -> None:
        self._out = out
        self._of_all = list(words)
        self._arms = kinds

    def run(self, name: str, seed: int, rate: float, *, gates: bool = False) -> Outcome:
        """Train and test one arm, unless that is done; `gates` measures these, too."""
        arm = self._arms[name]
        folder = self._out / f"{name}-{rate:g}-{seed}"
        words = [*self._words(seed), *arm.words, f"optim.lr={rate}", f"run_dir={folder}"]
        words.append(f"evaluate.gates={str(gates).lower()}")
        if not self._is_done(folder):
            self._adafilter("train", *words)
            say(f"{name}, lr {rate:g}, seed {seed}: {self._outcome(folder).test:.1f} %")
        return self._outcome(folder)

    def prepare(self, seed: int) -> None:
        """Draw the training pictures of a seed."""
        self._adafilter("prepare", *self._words(seed))

    def _words(self, seed: int) -> list[str]:
        of_seed = (f"seed={seed}", f"data.split_seed={seed}")
        return [*self._of_all, *of_seed, "engine.device=cpu", "log.to=[]"]

    @staticmethod
    def _is_done(folder: Path) -> bool:
        return (folder / "figures" / "summary.json").is_file()

    def _adafilter(self, verb: str, *words: str) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "adafilter_dist", verb, *words]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        if ended.returncode:
            raise UserError(f"{' '.join(words)}: {(ended.stdout + ended.stderr).strip()[-2000:]}")

    @staticmethod
    def _outcome(folder: Path) -> Outcome:
        summary = json.loads((folder / "figures" / "summary.json").read_text())
        rows = [json.loads(line) for line in RunFiles(folder).metrics.open()]
        validation = [row["top1"] for row in rows if row.get("split") == "val"]
        evaluation, gates = summary["evaluation"], summary.get("gates") or {}
        figures = gates.get("figures") or {}
        return Outcome(
            100 * validation[-1],
            100 * evaluation.get("mean_of_domains", evaluation["top1"]),
            tuple(100 * domain["top1"] for domain in evaluation.get("domains") or ()),
            figures.get("information"),
            figures.get("mean"),
        )


def _with_interval(values: Sequence[float], sign: str = "") -> str:
    """The mean over seeds ± half its 95 % interval."""
    from adafilter_dist.compare.statistics import mean_over_seeds

    mean = mean_over_seeds(values)
    return f"{mean.value:{sign}.1f} ± {mean.half or 0:.1f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and the table")
    parser.add_argument("--recipe", default="control/mixed-domains")
    parser.add_argument("--words", nargs="*", default=[], help="words of the recipe for all runs")
    parser.add_argument("--arms", nargs="*", help="which; all if none are given")
    parser.add_argument("--rates", type=float, nargs="+", help="to choose from, for every arm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 6, 7, 8, 9])
    parser.add_argument("--tune", type=int, nargs="+", default=[0, 1], help="seeds to tune on")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    options = parser.parse_args(argv)
    # What the intervals need, before hours of training: UserError where SciPy is missing.
    importlib.import_module("adafilter_dist.compare.statistics")
    if len(options.seeds) < 2:
        raise UserError("--seeds: at least two, for intervals")

    words = [f"recipe={options.recipe}", *options.words]
    kinds = arms(load_recipe(words).data)
    unknown = [name for name in options.arms or () if name not in kinds]
    if unknown:
        raise UserError(f"--arms: no {unknown[0]}; there are: {', '.join(kinds)}")
    if options.rates:
        kinds = {name: Arm(arm.words, tuple(options.rates)) for name, arm in kinds.items()}
    names = options.arms or list(kinds)
    control = Control(options.out, words, kinds)
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in [*options.tune, *options.seeds]:
        control.prepare(seed)

    with ThreadPoolExecutor(options.workers) as pool:
        # Learning rates, on validation pictures; where there is one, nothing is chosen.
        tuning = {
            (name, rate, seed): pool.submit(control.run, name, seed, rate)
            for name in names
            for rate in kinds[name].rates
            for seed in options.tune
            if len(kinds[name].rates) > 1
        }

        def validation(name: str, rate: float) -> float:
            return statistics.mean(
                tuning[name, rate, seed].result().validation for seed in options.tune
            )

        chosen = {
            name: max(arm.rates, key=partial(validation, name))
            if len(arm.rates) > 1
            else arm.rates[0]
            for name, arm in kinds.items()
            if name in names
        }
        # Fresh seeds, tested once.
        runs = {
            (name, seed): pool.submit(control.run, name, seed, chosen[name], gates=True)
            for seed in options.seeds
            for name in names
        }
        outcomes = {key: future.result() for key, future in runs.items()}
    table = _table(names, options.seeds, chosen, outcomes)
    table.print_markdown()
    (options.out / "table.md").write_text(table.markdown())


def _table(
    names: Sequence[str],
    seeds: Sequence[int],
    chosen: dict[str, float],
    outcomes: dict[tuple[str, int], Outcome],
) -> Table:
    """Means over seeds, differences to the first arm, intervals behind +-."""
    table = Table(
        f"accuracy on the test set, mean of domains, seeds {', '.join(map(str, seeds))}",
        [
            *(Column("arm"), Column("lr"), Column("test %"), Column("by domain")),
            *(Column(f"minus {names[0]}"), Column("information, bits"), Column("mean gate")),
        ],
    )
    for name in names:
        of_arm = [outcomes[name, seed] for seed in seeds]
        test = [outcome.test for outcome in of_arm]
        gains = [
            outcome.test - outcomes[names[0], s].test
            for outcome, s in zip(of_arm, seeds, strict=True)
        ]
        domains = zip(*(outcome.domains for outcome in of_arm), strict=True)
        bits = [outcome.information for outcome in of_arm if outcome.information is not None]
        gates = [outcome.mean_gate for outcome in of_arm if outcome.mean_gate is not None]
        table.add(
            name,
            f"{chosen[name]:g}",
            _with_interval(test),
            " / ".join(f"{statistics.mean(domain):.1f}" for domain in domains),
            _with_interval(gains, "+") if name != names[0] else "",
            f"{statistics.mean(bits):.2f}" if bits else "",
            f"{statistics.mean(gates):.2f}" if gates else "",
        )
    return table


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
