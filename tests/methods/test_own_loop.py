"""The examples of AdaFilter in a loop of one's own run, and do what a loop must."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from adafilter_dist.models.gating.convert import AdaFilterNet
from tests.shared.real_pictures import thumbnails

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def main_of(name: str) -> Callable[..., AdaFilterNet]:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module: Any = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    main: Callable[..., AdaFilterNet] = module.main
    return main


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Nine pictures of two classes: a step of eight an epoch."""
    for number, path in enumerate(thumbnails()[:9]):
        folder = tmp_path / "train" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").save(folder / f"{number}.png")
    torch.manual_seed(0)
    return tmp_path


def require_trained(model: AdaFilterNet) -> None:
    """One step was made: the tuned filters moved, the frozen did not, statistics were updated."""
    layer = model.gated_layers["conv1"]
    assert not torch.equal(layer.conv.weight, layer.frozen_weight)
    assert layer.bn1.num_batches_tracked == 1 and layer.bn1.running_mean.any()
    assert not any(torch.isnan(parameter).any() for parameter in model.parameters())


@pytest.mark.slow
def test_plain_pytorch(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len((EXAMPLES / "own_loop.py").read_text().splitlines()) <= 40
    model = main_of("own_loop")(str(pictures / "train"), epochs=1, pretrained=False)
    printed = capsys.readouterr().out
    assert "20 gated layers" in printed and "epoch 0: right" in printed
    require_trained(model)


@pytest.mark.slow
def test_lightning(pictures: Path, tmp_path: Path) -> None:
    model = main_of("with_lightning")(
        str(pictures / "train"),
        epochs=1,
        pretrained=False,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path / "lightning",
    )
    require_trained(model)


@pytest.mark.slow
def test_timms_parts(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = main_of("with_timm")(str(pictures), epochs=1, name="test_resnet", pretrained=False)
    assert "epoch 0: loss" in capsys.readouterr().out
    layer = next(iter(model.gated_layers.values()))
    assert not torch.equal(layer.conv.weight, layer.frozen_weight)
    assert layer.bn1.num_batches_tracked == 1
