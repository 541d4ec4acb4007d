"""FFCV, the fast loader, and the system libraries that it is compiled against.

Nothing here may stop the set-up: without FFCV the torchvision loader reads the same pictures,
only slower. What was tried is remembered beside the environment, so that a second call is quick.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from console import SetupError, run, say

LIBRARIES = ("opencv4", "libturbojpeg")  # as pkg-config calls them
# Without ffcv's own requirements: they ask for the OpenCV build with windows, which does not
# import on a machine without a display, and for packages of ffcv's benchmarks.
HELPERS = ("opencv-python-headless>=4.8", "numba>=0.61", "tqdm>=4.66")
FFCV = "ffcv>=1.0.2"
COST = "the torchvision loader is used: the same pictures, 2 to 5 times slower to load"


def ensure(environment: Path, packages: Path, *, retry: bool) -> bool:
    """Install FFCV into ``environment`` where that is possible; True if it did so just now."""
    failed, log = environment / "ffcv-failed", environment.with_suffix(".ffcv.log")
    if works(packages):
        return False
    if os.environ.get("ADAFILTER_FFCV") == "never":
        return False
    if failed.exists() and not retry:
        say(f"FFCV could not be installed ({failed.read_text().strip()}); {COST}.")
        say("      `make ffcv` tries again.")
        return False
    try:
        say("[2/3] FFCV: system libraries")
        system_libraries(log)
        if not works(packages):
            say("[2/3] FFCV: compiling it, about a minute")
            build(environment, log)
    except SetupError as error:
        failed.write_text(str(error).splitlines()[0] + "\n")
        say(f"      {error}\n      Going on without FFCV: {COST}.")
        return False
    failed.unlink(missing_ok=True)
    if not works(packages):
        say(f"      FFCV was compiled but does not load ({log}); {COST}.")
        return False
    return True


def works(packages: Path) -> bool:
    """Whether FFCV's compiled half is installed and finds its libraries on this machine."""
    found = list((packages / "ffcv").glob("_libffcv*.so"))
    try:
        return bool([ctypes.CDLL(str(library)) for library in found])
    except OSError:
        return False


def build(environment: Path, log: Path) -> None:
    """Compile FFCV with pip; it then needs two of OpenCV's libraries instead of all fifty."""
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install"]
    pip += ["--disable-pip-version-check", "--progress-bar=off"]
    constraints = ["-c", str(environment / "constraints.txt")]
    run([*pip, *HELPERS, *constraints], log)
    run(
        [*pip, "--no-deps", "--force-reinstall", FFCV, *constraints],
        log,
        {"LDFLAGS": f"{os.environ.get('LDFLAGS', '')} -Wl,--as-needed".strip()},
    )


def missing_tools() -> list[str]:
    """What FFCV cannot be compiled without and this machine lacks."""
    missing = [tool for tool in ("pkg-config", "g++") if shutil.which(tool) is None]
    if "pkg-config" not in missing:
        asked = {name: ["pkg-config", "--exists", name] for name in LIBRARIES}
        missing += [name for name, words in asked.items() if subprocess.run(words).returncode]
    else:
        missing += LIBRARIES
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("Python.h")
    return missing


def system_libraries(log: Path) -> None:
    """Install what is missing if this user may; SetupError naming the commands otherwise."""
    missing = missing_tools()
    if not missing:
        return
    names = ["libopencv-dev", "libturbojpeg0-dev", "pkg-config", "g++"]
    if "Python.h" in missing:
        names.append(f"python{sys.version_info.major}.{sys.version_info.minor}-dev")
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    may = not prefix or (shutil.which("sudo") and not _quiet([*prefix, "true"]))
    if shutil.which("apt-get") and may:
        apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
        # Another apt-get may be at work, as on a machine that has just started.
        wait = ["-o", "DPkg::Lock::Timeout=300"]
        say(f"      apt-get install {' '.join(names)} (about a minute)")
        run([*apt, *wait, "-qq", "update"], log)
        run([*apt, *wait, "-qq", "-y", "--no-install-recommends", "install", *names], log)
        if not missing_tools():
            return
    lines = [
        f"FFCV needs {', '.join(missing)}, and installing that needs root:",
        f"  Debian, Ubuntu   sudo apt-get install {' '.join(names)}",
        "  Fedora, RHEL     sudo dnf install opencv-devel turbojpeg-devel pkgconf gcc-c++",
        "  conda            conda install -c conda-forge opencv libjpeg-turbo pkg-config gxx",
        "then `make ffcv`.",
    ]
    raise SetupError("\n      ".join(lines))


def _quiet(command: list[str]) -> int:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ).returncode
