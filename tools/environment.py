"""Make the environment that the clone runs in; called by setup.sh, needs the standard library only.

Two layers, so that clones share the gigabytes and nothing else:

- the packages: one environment per (requirements, constraints, Python) in the user's cache folder;
- ``.venv`` in the clone: a few kilobytes that add the packages and the clone itself to the path and
  give every command (``adafilter``, ``torchrun``, ``pytest``) an entry that uses them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import ffcv_build
from console import CLONE, SetupError, run, say

# Bump when environments made by older versions of this file must not be used.
LAYOUT = 1
EXTRAS = ("dev",)

# distlib's form of a script: works where the path is long or has a space.
SCRIPT = """\
#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import sys

from {module} import {name}

sys.exit({call}())
"""


def requirements(project: dict[str, object], extras: tuple[str, ...]) -> list[str]:
    """The core requirements and those of ``extras``, with references to other extras followed."""
    name, optional = project["name"], project["optional-dependencies"]
    assert isinstance(optional, dict)
    wanted = list(project["dependencies"])  # type: ignore[call-overload]
    todo = list(extras)
    for extra in todo:
        for line in optional[extra]:
            if line.startswith(f"{name}["):
                todo += [word.strip() for word in line.split("[")[1].rstrip("]").split(",")]
            else:
                wanted.append(line)
    return sorted(set(wanted))


def constraints() -> str:
    """The text of the constraints in force, which may be empty."""
    chosen = os.environ.get("ADAFILTER_CONSTRAINTS", str(CLONE / "constraints.txt"))
    return Path(chosen).read_text() if chosen else ""


def environments() -> Path:
    """The folder of shared environments, made if missing; inside the clone if there is no home."""
    env = os.environ
    if chosen := env.get("ADAFILTER_ENVS") or env.get("ADAFILTER_CACHE"):
        folder = Path(chosen).absolute()
    elif env.get("XDG_CACHE_HOME") or env.get("HOME"):
        cache = env.get("XDG_CACHE_HOME") or f"{env['HOME']}/.cache"
        folder = Path(cache, "adafilter").absolute()
    else:
        folder = CLONE / ".cache"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SetupError(f"cannot write {folder} ({error.strerror}); set ADAFILTER_ENVS") from None
    return folder


def key(wanted: list[str], pins: str) -> str:
    """Twelve hex digits that name the environment of these requirements on this Python."""
    python = [sys.version, sys.base_prefix, platform.machine()]
    return hashlib.sha256(json.dumps([LAYOUT, python, wanted, pins]).encode()).hexdigest()[:12]


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Let one process at a time in; a second ``make`` waits for the first instead of racing it."""
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another set-up that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: go on alone
        yield


def site_packages(environment: Path) -> Path:
    """Where the packages of ``environment`` are."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))


def make_packages(environment: Path, wanted: list[str], pins: str) -> None:
    """Install ``wanted`` into ``environment``; ``complete`` in it is written last."""
    if (environment / "complete").exists():
        return
    say(f"[1/3] packages: {len(wanted)} and what they need, about 6 GB, 1 to 5 minutes")
    shutil.rmtree(environment, ignore_errors=True)  # a set-up that was killed
    run([sys.executable, "-m", "venv", str(environment)], log=environment.with_suffix(".log"))
    (environment / "requirements.txt").write_text("\n".join(wanted) + "\n")
    (environment / "constraints.txt").write_text(pins)
    python = str(environment / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off"]
    files = [str(environment / name) for name in ("requirements.txt", "constraints.txt")]
    run([*pip, "-r", files[0], "-c", files[1]], log=environment.with_suffix(".log"))
    (environment / "complete").write_text(time.strftime("%Y-%m-%d\n"))


def clone_venv() -> Path:
    """The clone's own ``.venv``; SetupError if there is one that somebody else made."""
    venv = CLONE / ".venv"
    if venv.exists() and not (venv / "adafilter.json").exists():
        raise SetupError(
            f"{venv} was not made by this set-up; move it out of the way and try again"
        )
    return venv


def write_script(path: Path, python: Path, entry: str) -> None:
    """An executable at ``path`` that calls ``entry`` (``package.module:function``)."""
    module, _, call = entry.split("[")[0].strip().partition(":")
    name = call.partition(".")[0]
    path.write_text(SCRIPT.format(python=python, module=module, name=name, call=call))
    path.chmod(0o755)


def make_clone_venv(venv: Path, environment: Path, scripts: dict[str, str]) -> None:
    """Write ``.venv``: the packages, this clone, and every command run by its own Python."""
    from importlib.metadata import distributions

    say("[3/3] .venv")
    shutil.rmtree(venv, ignore_errors=True)
    venv.mkdir()
    (venv / "adafilter.json").write_text("{}")  # ours, though not finished
    run([sys.executable, "-m", "venv", "--without-pip", str(venv)], log=None)
    packages = site_packages(environment)
    (site_packages(venv) / "adafilter-dist.pth").write_text(
        f"{CLONE}\nimport site; site.addsitedir({str(packages)!r})\n"
    )
    commands = dict(scripts)
    for distribution in distributions(path=[str(packages)]):
        for point in distribution.entry_points.select(group="console_scripts"):
            commands.setdefault(point.name, point.value)
    for name, entry in commands.items():
        write_script(venv / "bin" / name, venv / "bin" / "python", entry)
    for program in (environment / "bin").iterdir():
        if not (venv / "bin" / program.name).exists() and "ctivate" not in program.name:
            (venv / "bin" / program.name).symlink_to(program)  # a binary, such as ruff


def main() -> int:
    """Set up whatever is missing; a second call finds nothing to do."""
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    wanted, pins = requirements(project, EXTRAS), constraints()
    venv, folder = clone_venv(), environments()
    environment = folder / f"env-{key(wanted, pins)}"
    made = {"clone": str(CLONE), "environment": str(environment), "scripts": project["scripts"]}
    with only_one(folder / f"{environment.name}.lock"), only_one(CLONE / ".venv.lock"):
        make_packages(environment, wanted, pins)
        changed = ffcv_build.ensure(
            environment, site_packages(environment), retry="--ffcv" in sys.argv
        )
        marker = venv / "adafilter.json"
        if changed or not marker.exists() or json.loads(marker.read_text()) != made:
            make_clone_venv(venv, environment, project["scripts"])
            marker.write_text(json.dumps(made))
    say(f"ready: source {venv}/bin/activate")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except subprocess.SubprocessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
