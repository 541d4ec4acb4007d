"""``evaluate.test=false``: a run that ends with its validation, and never reads a test picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.data.stored.store import Store
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.identity import run_hash
from tests.shared.real_pictures import thumbnails


def prepared(folder: Path) -> list[str]:
    """Words of a recipe whose test pictures cannot be decoded."""
    for number, path in enumerate(thumbnails()):
        place = folder / "pictures" / ("test" if number % 4 == 0 else "train")
        place = place / path.name.partition("_")[0]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.name)
    recipe = folder / "small.yaml"
    recipe.write_text(
        f"name: small\ndata: {{name: imagefolder, root: {folder / 'pictures'}, stored_size: 32,\n"
        "       val_fraction: 0.3, num_workers: 1, loader: torchvision, verify: never}\n"
        "model: {name: small_resnet}\nmethod: finetune\nlog: {to: []}\n"
        "train: {epochs: 1, global_batch: 4, micro_batch: 4}\n"
        "engine: {device: cpu, threads: 1}\n"
    )
    words = [f"recipe={recipe}", f"run_dir={folder / 'run'}"]
    assert main(["prepare", *words]) == 0
    path = open_prepared(load_recipe(words)).test_store
    store, written = Store(path), bytearray(path.read_bytes())
    for record in map(store.encoded, range(len(store))):
        offset = written.index(record.tobytes())
        written[offset : offset + len(record)] = bytes(len(record))
    path.write_bytes(written)
    return words


@pytest.mark.slow
def test_no_test_picture_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = prepared(tmp_path)
    run = tmp_path / "run"
    assert main(["train", *words, "evaluate.test=false"]) == 0
    assert "not evaluated on the test set" in capfd.readouterr().out
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows if "split" in row] == ["val"]
    assert not (run / "figures").exists()
    assert main(["train", *words, "evaluate.test=false"]) == 0
    assert "already finished" in capfd.readouterr().out

    # With the test set the same run fails at its end.
    shutil.rmtree(run)
    assert main(["train", *words]) == 2
    assert "test.beton is damaged: record" in capfd.readouterr().err


def test_whether_a_run_is_tested_is_no_part_of_its_identity() -> None:
    words = ["recipe=control/mixed-domains"]
    assert run_hash(load_recipe(words)) == run_hash(load_recipe([*words, "evaluate.test=false"]))
