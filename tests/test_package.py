"""The wheel and the source distribution: built, installed alone, used in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from adafilter_dist.version import __version__

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


KINDS = ("*.py", "*.c", "*.cpp", "*.safetensors", "*.j2", "*.css", "*.js")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    output(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(CLONE)],
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def source(built: Path) -> Path:
    (path,) = built.glob("*.tar.gz")
    return path


def install(path: Path, folder: Path) -> Path:
    """The bin folder of a new environment with ``path`` and, from here, the other packages."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    # Paths alone, so that the .pth file which adds this clone to them is not read.
    here = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "others.pth").write_text("\n".join(here))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index"]
    output([*pip, "--no-deps", "--no-build-isolation", "--ignore-installed", str(path)], folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, with what numba has compiled here of the same sources: it takes ten seconds."""
    programs = install(wheel, tmp_path_factory.mktemp("environment"))
    loading = Path("adafilter_dist", "data", "loading")
    (place,) = programs.parent.glob(f"lib/python*/site-packages/{loading}")
    (place / "__pycache__").mkdir(exist_ok=True)
    for code in (CLONE / loading / "__pycache__").glob("*.code"):
        shutil.copy(code, place / "__pycache__")
    return programs


def test_what_the_wheel_carries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = CLONE / "adafilter_dist"
    code = [path for kind in KINDS for path in package.rglob(kind)]
    sources = {str(path.relative_to(CLONE)) for path in code}
    shipped = [path.relative_to(CLONE) for path in (CLONE / "recipes").rglob("*.yaml")]
    assert Path("recipes/launch/example.yaml") in shipped
    assert Path("recipes/control/mixed-domains.yaml") in shipped
    recipes = {f"adafilter_dist/{path}" for path in shipped}
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == sources | recipes | {"adafilter_dist/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in about)


def test_what_the_source_distribution_carries(source: Path) -> None:
    with tarfile.open(source) as archive:
        names = [Path(entry.name) for entry in archive if entry.isfile()]
    paths = {name.relative_to(name.parts[0]) for name in names}
    listing = ["git", "-C", str(CLONE), "ls-files", "--cached", "--others", "--exclude-standard"]
    wanted = {Path(name) for name in output(listing, CLONE).splitlines()}
    wanted = {path for path in wanted if path.parts[0] != ".ci" and (CLONE / path).exists()}
    assert paths == wanted | {Path("PKG-INFO")}


def test_it_is_the_wheel_that_runs(installed: Path, tmp_path: Path) -> None:
    runs(installed, tmp_path)


def test_the_source_distribution_runs(source: Path, tmp_path: Path) -> None:
    runs(install(source, tmp_path / "environment"), tmp_path)


def runs(installed: Path, folder: Path) -> None:
    where = [str(installed / "python"), "-c", "import adafilter_dist as a; print(a.__file__)"]
    assert Path(output(where, folder).strip()).is_relative_to(installed.parent)
    adafilter = str(installed / "adafilter")
    assert output([adafilter, "--version"], folder).strip() == __version__
    assert "name: food101" in output([adafilter, "train", "recipe=food101", "--cfg"], folder)


def test_the_demo_is_checked_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    adafilter = str(installed / "adafilter")
    output([adafilter, "prepare", "recipe=demo"], tmp_path)
    output([adafilter, "train", "recipe=demo", "--check"], tmp_path)
    # The demo has two micro-batches, for two processes.
    submit = [adafilter, "submit", "recipe=demo", "launch=@example", "launch.gpus_per_node=2"]
    script = output([*submit, "--dry-run"], tmp_path)
    assert "#SBATCH --gres=gpu:a100:2" in script
    assert "All that is required is there" in output([adafilter, "doctor"], tmp_path)
