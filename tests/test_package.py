"""The wheel: built from this clone, installed alone, used in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from adafilter_dist import __version__

CLONE = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def output(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    output([*build, str(CLONE)], folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel and, from here, the other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index"]
    output([*pip, "--no-deps", str(wheel)], folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Paths alone, so that the .pth file which adds this clone to them is not read.
    here = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "others.pth").write_text("\n".join(here))
    return folder / "bin"


def test_what_the_wheel_carries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = CLONE / "adafilter_dist"
    code = [path for kind in ("*.py", "*.c", "*.cpp") for path in package.rglob(kind)]
    sources = {str(path.relative_to(CLONE)) for path in code}
    shipped = [path.relative_to(CLONE) for path in (CLONE / "recipes").rglob("*.yaml")]
    assert Path("recipes/launch/example.yaml") in shipped
    recipes = {f"adafilter_dist/{path}" for path in shipped}
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == sources | recipes | {"adafilter_dist/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in about)


def test_it_is_the_wheel_that_runs(installed: Path, tmp_path: Path) -> None:
    where = [str(installed / "python"), "-c", "import adafilter_dist as a; print(a.__file__)"]
    assert Path(output(where, tmp_path).strip()).is_relative_to(installed.parent)
    assert output([str(installed / "adafilter"), "--version"], tmp_path).strip() == __version__


def test_the_demo_is_checked_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    adafilter = str(installed / "adafilter")
    output([adafilter, "prepare", "recipe=demo"], tmp_path)
    output([adafilter, "train", "recipe=demo", "--check"], tmp_path)
    # The demo has two micro-batches, for two processes.
    submit = [adafilter, "submit", "recipe=demo", "launch=@example", "launch.gpus_per_node=2"]
    script = output([*submit, "--dry-run"], tmp_path)
    assert "#SBATCH --gres=gpu:a100:2" in script
    assert "Nothing that everything needs is missing" in output([adafilter, "doctor"], tmp_path)
