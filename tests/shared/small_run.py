"""A run folder with a real model and real pictures, and no training."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from adafilter_dist.__main__ import main
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.methods import build_method
from adafilter_dist.methods.export import export_model
from adafilter_dist.models.backbone.backbones import load_backbone, resolve_preprocess
from adafilter_dist.recipe import dump_recipe, load_recipe
from tests.shared.real_pictures import thumbnails


def small_run(root: Path, folder: Path, model: str = "timm/test_resnet") -> Path:
    """``folder``: a run of two classes of thumbnails, copied to ``root`` and prepared.

    Its best model is freshly converted from ``model`` with random weights; the recipe lies beside
    it as small.yaml.
    """
    torch.set_num_threads(1)
    for number, path in enumerate(thumbnails()):
        place = root / ("test" if number % 4 == 0 else "train") / path.name.partition("_")[0]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.name)
    recipe_file = folder.parent / "small.yaml"
    recipe_file.write_text(
        f"name: small\nrun_dir: {folder}\n"
        f"data: {{name: imagefolder, root: {root}, stored_size: 32, stored_format: raw,\n"
        "       resolution: 32, eval_resize: 32, val_fraction: 0.2, num_workers: 1}\n"
        f"model: {{name: {model}, weights: null}}\n"
        "method: {gate: {recipe: paper}}\n"  # its gates differ from picture to picture at once
        "train: {global_batch: 8, micro_batch: 4}\n"
        "engine: {device: cpu, threads: 1}\n"
    )
    assert main(["prepare", f"recipe={recipe_file}"]) == 0
    recipe = load_recipe([f"recipe={recipe_file}"])
    classes = open_prepared(recipe).classes
    trainable = build_method(load_backbone(recipe, len(classes)), recipe)
    export_model(folder / "best", trainable, classes=classes, preprocess=resolve_preprocess(recipe))
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return folder
