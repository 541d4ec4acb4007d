"""A small prepared set of real pictures, shared by the tests that start the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import adafilter

WORDS = [
    "recipe=demo",
    "data.train_per_class=48",
    "data.test_per_class=10",
    "data.stored_size=32",
    "data.resolution=32",
    "data.eval_resize=32",
    "data.loader=torchvision",
    "model=timm/test_resnet",
    "model.weights=null",
    "method=adafilter",
    "method.gate.hidden=16",
    "method.gate.estimator=gumbel",  # noise in the model, keyed
    "method.sparsity.kind=target",  # a penalty with a running mean
    "method.sparsity.weight=0.1",
    "augment.erasing=0.3",
    "augment.mixup=0.2",
    "train.epochs=2",
    "train.global_batch=16",
    "train.micro_batch=4",
    "train.precision=fp64",
    "train.clip_norm=5",
    "ema.decay=0.9",
    "optim.lr=0.005",
    "optim.warmup_epochs=0",
    "evaluate.probe=false",
    "engine.device=cpu",
    "engine.threads=1",
    "log.every=1",
    "log.to=[]",
]


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a recipe whose data are prepared: 10 classes, 430 training pictures."""
    folder = tmp_path_factory.mktemp("prepared")
    words = [*WORDS, f"data.prepared={folder / 'data'}"]
    ended = adafilter("prepare", *words, folder=folder)
    assert ended.code == 0, ended.output
    return words


def run_folder(folder: Path) -> Path:
    """The only run in ``folder``."""
    (run,) = (folder / "runs").glob("*/*")
    return run
