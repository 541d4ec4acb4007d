"""The example of a loop of one's own runs, and does what a loop must."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.shared.real_pictures import thumbnails

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_loop.py"


@pytest.mark.slow
def test_example_is_short_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    for number, path in enumerate(thumbnails()[:9]):
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        Image.open(path).convert("RGB").save(folder / f"{number}.png")
    specification = importlib.util.spec_from_file_location("own_loop", EXAMPLE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    torch.manual_seed(0)
    model = module.main(str(tmp_path), epochs=1, pretrained=False)
    printed = capsys.readouterr().out
    assert "20 gated layers" in printed and "epoch 0: right" in printed
    layer = model.gated_layers["conv1"]
    assert not torch.equal(layer.conv.weight, layer.frozen_weight)
    assert layer.bn1.num_batches_tracked == 1 and layer.bn1.running_mean.any()
    assert not any(torch.isnan(parameter).any() for parameter in model.parameters())
