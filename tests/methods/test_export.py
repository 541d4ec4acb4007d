"""Exports: a folder that gives the model and its transform back, on its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torchvision import models

import adafilter_dist
from adafilter_dist.errors import UserError
from adafilter_dist.methods import TrainableModel, build_method
from adafilter_dist.methods.export import export_model, load
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.models.backbone.preprocess import Preprocess, evaluation_transform
from adafilter_dist.models.gating.convert import AdaFilterNet
from adafilter_dist.recipe.schema import Recipe
from tests.models.networks import randomise

PREPROCESS = Preprocess((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic", 40, 32)
CLASSES = ["cat", "dog", "zebra"]


def build(
    method: object, name: str = "small_resnet", dtype: torch.dtype = torch.float32
) -> TrainableModel:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "fashion_mnist", "resolution": 32},
            "model": {"name": name, "weights": None},
            "method": method,
        }
    )
    trainable = build_method(load_backbone(recipe, len(CLASSES)), recipe)
    randomise(trainable.model, seed=3)
    trainable.model.to(dtype)
    return trainable


def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (50, 61, 3), dtype=np.uint8)
    return Image.fromarray(noise)


METHODS = [
    {"name": "adafilter", "gate": {"hidden": 8, "input_norm": "none"}, "layers": r"blocks\.[12]"},
    {"name": "finetune"},
    {"name": "finetune_last"},
    {"name": "l2sp"},
    {"name": "layerwise_decay"},
    {"name": "spottune", "layers": r"blocks\.[12]", "sample": True},
    {"name": "linear_probe"},
    {"name": "lp_ft"},
    {"name": "bss"},
    {"name": "stochnorm"},
    {"name": "spd"},
    {"name": "auto_rgn"},
    {"name": "delta"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_round_trip(method: object, dtype: torch.dtype, tmp_path: Path) -> None:
    trainable = build(method, dtype=dtype)
    export_model(tmp_path / "best", trainable, classes=CLASSES, preprocess=PREPROCESS)
    model, transform = adafilter_dist.load(tmp_path / "best")
    assert not any("start_weights" in name for name in model.state_dict())
    x = transform(picture())[None].to(dtype)
    assert x.shape == (1, 3, 32, 32)
    assert not model.training and model.classes == CLASSES
    assert torch.equal(model(x), trainable.model.eval()(x))
    if isinstance(trainable.model, AdaFilterNet):
        assert isinstance(model, AdaFilterNet)
        assert list(model.gated_layers) == list(trainable.model.gated_layers)
        assert model.report.left_out == trainable.model.report.left_out
        assert model.gate.settings == trainable.model.gate.settings
    else:
        assert type(model) is type(trainable.model)


def test_it_trains_on_with_the_batchnorm_it_had(tmp_path: Path) -> None:
    for kind in ("selected", "all"):
        trainable = build(METHODS[0] | {"batchnorm": kind})
        export_model(tmp_path, trainable, classes=CLASSES, preprocess=PREPROCESS)
        model, _ = load(tmp_path)
        assert isinstance(model, AdaFilterNet) and model.batchnorm == kind
    # As versions wrote it that knew statistics of all images alone.
    config = json.loads((tmp_path / "config.json").read_text())
    old = {key: value for key, value in config.items() if key not in ("batchnorm", "sha256")}
    (tmp_path / "config.json").write_text(json.dumps(old))
    model, _ = load(tmp_path)
    assert isinstance(model, AdaFilterNet) and model.batchnorm == "all"


def test_a_run_folder_will_do_and_an_export_replaces_the_last(tmp_path: Path) -> None:
    trainable = build(METHODS[1])
    for _ in range(2):
        export_model(tmp_path / "best", trainable, classes=CLASSES, preprocess=PREPROCESS)
        with torch.no_grad():
            trainable.model.head.bias += 1  # type: ignore[union-attr,operator]
    model, _ = load(str(tmp_path))
    torch.testing.assert_close(model.head.bias, trainable.model.head.bias - 1)  # type: ignore
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.slow
def test_the_names_that_timm_and_efficientnet_lite_use(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    trainable = build(METHODS[0] | {"layers": ".*"}, "timm/tf_efficientnet_lite0")
    export_model(tmp_path, trainable, classes=CLASSES, preprocess=PREPROCESS)
    model, transform = load(tmp_path)
    x = transform(picture())[None]
    assert torch.equal(model(x), trainable.model.eval()(x))


def test_damaged_and_missing_files_are_short_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing; give the best/ folder"):
        load(tmp_path)
    export_model(tmp_path, build(METHODS[1]), classes=CLASSES, preprocess=PREPROCESS)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "classes": ["b", "a", "c"]}))
    with pytest.raises(UserError, match="damaged or was edited"):
        load(tmp_path)
    unsealed = {key: value for key, value in config.items() if key != "sha256"}
    (tmp_path / "config.json").write_text(json.dumps({**unsealed, "classes": ["one"]}))
    with pytest.raises(UserError, match="do not fit together"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load(tmp_path)


def test_what_only_a_newer_version_knows_is_one_line(tmp_path: Path) -> None:
    export_model(tmp_path, build(METHODS[0]), classes=CLASSES, preprocess=PREPROCESS)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sha256"]
    gate = config["gate"]
    for changed, unknown in (
        ({"gate": gate | {"horizon": 3}}, "gate.horizon"),
        ({"gate": gate | {"mode": "dreamt"}}, "gate.mode"),
        ({"method": "elastic"}, "method 'elastic'"),
    ):
        newer = config | {"version": "9.1.0"} | changed
        (tmp_path / "config.json").write_text(json.dumps(newer))
        with pytest.raises(UserError) as refused:
            load(tmp_path)
        (line,) = str(refused.value).splitlines()
        assert unknown in line and "written by adafilter 9.1.0" in line


def test_a_flipped_bit_of_the_weights_is_noticed_and_what_has_no_sha256_is_read(
    tmp_path: Path,
) -> None:
    trainable = build(METHODS[1])
    export_model(tmp_path, trainable, classes=CLASSES, preprocess=PREPROCESS)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load(tmp_path)
    # As earlier versions wrote them.
    safetensors.torch.save_file(trainable.model.state_dict(), path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = load(tmp_path)
    assert model.classes == CLASSES


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "mobilenet_v3_large"])
def test_transform_equals_the_librarys_own(name: str) -> None:
    preset = models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    preprocess = Preprocess(
        tuple(preset.mean),
        tuple(preset.std),
        preset.interpolation.value,
        preset.resize_size[0],
        preset.crop_size[0],
    )
    image = picture().resize((300, 260))
    torch.testing.assert_close(
        evaluation_transform(preprocess)(image), preset(image), rtol=0, atol=1e-6
    )
    gray = evaluation_transform(preprocess)(image.convert("L"))
    assert gray.shape == (3, preprocess.crop, preprocess.crop)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, adafilter_dist; print('torch' in sys.modules, adafilter_dist.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", adafilter_dist.__version__]
    with pytest.raises(AttributeError, match="no attribute 'konvert'"):
        adafilter_dist.konvert  # noqa: B018
    assert all(hasattr(adafilter_dist, name) for name in adafilter_dist.__all__)


def test_the_stored_size_travels_and_older_exports_have_none(tmp_path: Path) -> None:
    stored = replace(PREPROCESS, stored_size=44)
    export_model(tmp_path, build(METHODS[1]), classes=CLASSES, preprocess=stored)
    _, transform = load(tmp_path)
    assert torch.equal(transform(picture()), evaluation_transform(stored)(picture()))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("stored_size") == 44 and "stored_size" not in config["preprocess"]
    del config["sha256"]  # nor had they one
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, older = load(tmp_path)
    assert torch.equal(older(picture()), evaluation_transform(PREPROCESS)(picture()))
    assert not torch.equal(older(picture()), transform(picture()))
