"""Bad input: a short error that says what to do, exit code 2, no traceback."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from adafilter_dist.__main__ import main
from tests.shared.real_pictures import real_pictures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An image folder of two classes of real pictures, and a working folder beside it.

    Of all that is refused nothing may be left in runs/.
    """
    monkeypatch.chdir(tmp_path)
    for key in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    for number, picture in enumerate(real_pictures()[:12]):
        place = tmp_path / "pictures" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.open(picture).convert("RGB").resize((40, 40)).save(place / f"{number}.jpg")
    yield tmp_path / "pictures"
    assert not (tmp_path / "runs").exists()


def words(folder: Path, *more: str) -> list[str]:
    return [
        "recipe=imagefolder",
        f"data.root={folder}",
        "data.stored_size=32",
        "data.resolution=32",
        "data.eval_resize=32",
        "data.val_fraction=0",
        "data.loader=torchvision",
        "model=resnet18",
        "model.weights=null",
        "train.global_batch=4",
        "train.micro_batch=2",
        "train.epochs=1",
        "optim.warmup_epochs=0",
        "engine.device=cpu",
        *more,
    ]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error's text; asserts code 2, nothing but error lines, and their length."""
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr().err
    assert code == 2, said
    lines = said.strip().splitlines()
    assert 0 < len(lines) <= 15
    assert lines[0].startswith("error: ")
    assert "Traceback" not in said
    return said


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'train'?" in refused(capsys, "trian")


def test_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'food101'?" in refused(capsys, "train", "recipe=food11")


def test_unknown_key_and_wrong_type_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "train", "recipe=demo", "optim.learning_rate=1", "train.epochs=few")
    assert "optim.learning_rate: unknown key" in said and "train.epochs=few" in said


def test_not_prepared_names_the_line_to_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "adafilter prepare recipe=imagefolder" in refused(capsys, "train", *words(folder))


def test_missing_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = folder / "nowhere"
    assert str(missing) in refused(capsys, "prepare", *words(missing))


def test_empty_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "class2").mkdir()
    assert "class2" in refused(capsys, "prepare", *words(folder))


def test_one_class_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "class1")
    assert "class0" in refused(capsys, "prepare", *words(folder))


def test_unreadable_picture_is_named_with_the_way_round(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = folder / "class0" / "broken.jpg"
    broken.write_bytes((folder / "class0" / "0.jpg").read_bytes()[:300])
    said = refused(capsys, "prepare", *words(folder))
    assert "broken.jpg" in said and "on_bad=skip" in said


def test_weights_of_another_architecture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torchvision.models import squeezenet1_1

    other = folder.parent / "other.pth"
    torch.save(squeezenet1_1().state_dict(), other)
    assert main(["prepare", *words(folder)]) == 0
    said = refused(capsys, "train", *words(folder, f"model.weights={other}"))
    assert "other.pth" in said and "another architecture" in said and "model.weights" in said


def test_a_pickle_is_not_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = folder.parent / "evil.pth"
    torch.save({"state": Path("/")}, evil)  # any object needs code to be unpickled
    assert main(["prepare", *words(folder)]) == 0
    assert "evil.pth" in refused(capsys, "train", *words(folder, f"model.weights={evil}"))


def test_a_world_size_that_cannot_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    for key, value in (place | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(key, value)
    assert "at most 2 processes" in refused(capsys, "train", *words(folder))


def test_a_run_folder_of_another_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *words(folder)]) == 0
    run = folder.parent / "run"
    run.mkdir()
    from adafilter_dist.recipe import dump_recipe, load_recipe

    other = load_recipe(words(folder, "optim.lr=0.5"))
    (run / "recipe.yaml").write_text(dump_recipe(other))
    said = refused(capsys, "train", *words(folder, f"run_dir={run}", "optim.lr=0.25"))
    assert "optim.lr: 0.5 -> 0.25" in said


def test_resume_of_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a run folder" in refused(capsys, "resume", str(tmp_path))


def test_no_space_for_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *words(folder)]) == 0
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        tiny = ("model=small_resnet", "model.weights=null", "method=finetune")
        said = refused(capsys, "train", *words(folder, *tiny, f"run_dir={small / 'run'}"))
        assert "no space" in said and "run_dir=PATH" in said
        assert list(small.iterdir()) == []
        refused(capsys, "train", *words(folder, *tiny, f"run_dir={small}"))
        assert list(small.iterdir()) == []  # it was there before, empty
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_run_folder_that_cannot_be_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *words(folder)]) == 0
    file = folder.parent / "file"
    file.write_text("")
    said = refused(capsys, "train", *words(folder, f"run_dir={file / 'run'}"))
    assert "run_dir=" in said


def test_help_of_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    from adafilter_dist.__main__ import VERBS

    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(verb in said for verb in VERBS)
    for verb in VERBS:
        with pytest.raises(SystemExit) as left:
            main([verb, "--help"])
        assert left.value.code == 0
        assert f"adafilter {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("data.stored_format=raw", "stored_format=raw stores none"),
        ("augment.policy=randaugment", "changes pictures on the CPU"),
        ("engine.device=cpu", "trains without one"),
    ],
)
def test_nvjpeg_with_what_it_cannot_do(
    more: str, told: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    given = words(folder, "engine.device=auto", "data.loader=nvjpeg", more)
    said = refused(capsys, "train", *given)
    assert told in said and "loader=numba" in said
