"""A folder in which documented commands run as they stand, in seconds.

`./recipes` comes before the package's, so a recipe of each name lies there: the real one over a
tiny network and few pixels. `/data` is a folder of small replicas, made of real pictures. The runs
that the pages speak of are copies of one that was trained here, made anew before each command.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adafilter_dist.recipe import load_recipe, recipe_names
from adafilter_dist.run.folder import find_run
from tests.data.trees import (
    caltech256,
    decathlon,
    fgvc_aircraft,
    folders,
    food101,
    indoor67,
    stanford_dogs,
)
from tests.distributed.launch import Ended, free_port, rank_environment, start, wait
from tests.documented.pages import CLONE, Command

SMALL = """\
base: {base}
data:
  stored_size: 32
  resolution: 32
  eval_resize: 32
  loader: torchvision
  num_workers: 1
  {data}
model: {{name: timm/test_resnet, weights: null}}
train: {{epochs: 2, evaluate_every: 10, global_batch: 8, micro_batch: 4, precision: fp32,
        kernels: reference}}
engine: {{device: cpu, threads: 1}}
log: {{to: []}}
"""
DATA = {
    "demo": "prepared: {data}/fashion-mnist\n  train_per_class: 2\n  test_per_class: 1",
    "food101": "root: {data}/food-101",
    "caltech256": "root: {data}/caltech256\n  train_per_class: 6\n  test_per_class: 2",
    "paper": "root: {data}/caltech256\n  train_per_class: 4\n  test_per_class: 2",
    "imagefolder": "root: {data}/birds",
    "stanford-dogs": "root: {data}/stanford-dogs",
    "fgvc-aircraft": "root: {data}/aircraft",
    "indoor67": "root: {data}/indoor67",
    "ucf101": "root: {data}/decathlon-1.0",
    "omniglot": "root: {data}/decathlon-1.0",
    "compared/fashion-mnist": (
        "prepared: {data}/compared\n  train_per_class: 4\n  val_fraction: 0.5\n  test_per_class: 1"
    ),
    "compared/clipart": "root: {data}/birds\n  train_per_class: 2",
    "control": "prepared: {data}/mixed-domains\n  test_per_class: 2",
}
RUNS = {
    **dict.fromkeys(("runs/demo/1a2b3c4d", "runs/demo/0123abcd", "runs/demo/55ee66ff"), "demo"),
    **dict.fromkeys(("runs/demo/5e6f7a8b",), "demo"),
    **dict.fromkeys(("runs/food101/1a2b3c4d", "RUN", "CONTROL", "ROOT/one"), "food101"),
}
SWEEPS = ("SWEEP", "runs/food101/sweep-1a2b3c4d")
# What stands for something else on the pages, and what it is here.
MEANT = {"recipe=NAME": "recipe=food101", "PICTURES": "picture.jpg", "sweep-...": "sweep-1a2b3c4d"}
RANKS = 2


@dataclass(frozen=True)
class Place:
    """The working folder of the commands, with all that they name."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Place:
        """Pictures, recipes, prepared data and runs."""
        place = cls(folder)
        data = folder / "data"
        data.mkdir()
        food101(data)
        food101(folder / "other", train=5, test=3)
        (folder / "other" / "food-101").rename(folder / "FOLDER")
        caltech256(data)
        for tree, name in ((stanford_dogs, "stanford-dogs"), (fgvc_aircraft, "aircraft")):
            (data / name).mkdir()
            tree(data / name)
        (data / "indoor67").mkdir()
        indoor67(data / "indoor67")
        for name in ("ucf101", "omniglot"):
            decathlon(data, name)
        folders(data / "birds", {f"{s}/{c}": n for s, n in _SPLITS for c in ("finch", "wren")})
        (folder / "recipes").mkdir()
        for name in recipe_names():
            kind = next(kind for kind in DATA if name.startswith(kind))
            text = SMALL.format(base=CLONE / "recipes" / f"{name}.yaml", data=DATA[kind])
            text = text.replace("{data}", str(data))
            if kind == "demo" or name.startswith("compared/"):
                text += "method: {layers: '.*'}\n"
            if kind == "control":  # its network is small, and its head belongs to the weights
                text = "".join(line for line in text.splitlines(True) if line[:6] != "model:")
            path = folder / "recipes" / f"{name}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        (folder / "ds.json").write_text('{"zero_optimization": {"reduce_bucket_size": 5000000}}')
        shutil.copy(next(data.rglob("*.jpg")), folder / "picture.jpg")
        place.must("prepare", "recipe=food101", "data.root=FOLDER")
        for name in ("demo", "food101"):
            words = [f"recipe={name}"]
            place.train(words)
            shutil.move(place.run_of(words), folder / f"trained-{name}")
        return place

    def train(self, words: Sequence[str]) -> None:
        """The run of these words of a recipe, unless it has been trained already."""
        if not self.is_finished(words):
            self.must("prepare", *words)
            self.must("train", *words)

    def is_finished(self, words: Sequence[str]) -> bool:
        """Whether the run of these words of a recipe is there, trained to its end."""
        status = self.run_of(words) / "status.json"
        return status.is_file() and json.loads(status.read_text())["state"] == "finished"

    def must(self, *words: str) -> None:
        """Run a command that the others need."""
        ended = self.run(words)
        assert ended.code == 0, ended.output

    def ready(self, words: Sequence[str]) -> None:
        """The runs that these words name, as they were; all others are there."""
        text = " ".join(words)
        for name, trained in RUNS.items():
            run = self.folder / name
            if name in text or not run.exists():
                shutil.rmtree(run, ignore_errors=True)
                shutil.copytree(self.folder / f"trained-{trained}", run)
        export = self.folder / "EXPORT"
        if export.name in text or not export.exists():
            shutil.rmtree(export, ignore_errors=True)
            shutil.copytree(self.folder / "RUN" / "best", export)
        member = {"run": str(self.folder / "RUN"), "values": {"optim.lr": 0.01}}
        for name in SWEEPS:
            (self.folder / name).mkdir(exist_ok=True)
            sweep = json.dumps({"key": ["optim.lr"], "members": [member]})
            (self.folder / name / "sweep.json").write_text(sweep)

    def submitted(self, name: str) -> None:
        """Have a run be one that was submitted, with two ranks."""
        log = self.folder / name / "jobs" / "1_%t_log.out"
        log.parent.mkdir()
        log.with_name("1_1_log.out").write_text("rank 1\n")
        job = {"cluster": "local", "job": "1", "log": str(log), "tasks": 2}
        (self.folder / name / "submitted.json").write_text(json.dumps(job))

    def words(self, command: Command) -> list[str]:
        """Those of a command, with what they mean here."""
        words = command.words
        for word, meant in MEANT.items():
            words = [each.replace(word, meant) for each in words]
        return [word.replace("=/data/", f"={self.folder}/data/") for word in words]

    def run_of(self, words: Sequence[str]) -> Path:
        """The folder of the run of these words of a recipe."""
        here = os.getcwd()
        os.chdir(self.folder)
        try:
            run = find_run(load_recipe([word for word in words if not word.startswith("--")]))
            return self.folder / run.path
        finally:
            os.chdir(here)

    def environment(self) -> dict[str, str]:
        """Variables that the pages speak of."""
        return {
            "SLURM_TMPDIR": str(self.folder / "scratch"),
            "PATH": os.environ["PATH"],
        }

    def run(self, words: Sequence[str], more: Mapping[str, str] | None = None) -> Ended:
        """``adafilter WORDS`` to its end."""
        environment = self.environment() | dict(more or {})
        page = words[0] == "report"  # which a run leaves out of its end, as its figure
        process = start(words, folder=self.folder, environment=environment, figures=page)
        return wait(process, 120)

    def torchrun(self, words: Sequence[str]) -> Ended:
        """What torchrun starts by its options, in two processes that a fork server has started."""
        from torch.distributed.run import parse_args  # half a second

        options = parse_args(list(words))
        assert options.module and options.training_script == "adafilter_dist"
        port = free_port()
        ranks = [
            start(
                options.training_script_args,
                folder=self.folder,
                environment=self.environment() | rank_environment(rank, RANKS, port),
            )
            for rank in range(RANKS)
        ]
        ended = [wait(rank, 120) for rank in ranks]
        return Ended(max(end.code for end in ended), "\n".join(end.output for end in ended))


_SPLITS = (("train", 6), ("test", 2))
