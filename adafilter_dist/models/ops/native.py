"""C and C++ beside the Python here, compiled on first use by the machine's own compiler.

A library is compiled once a machine: it lies in the cache folder under a hash of its source, the
compiler, the processor's features and torch's version, so that nodes which share a home do not
share what only one of them can run. Without a compiler the callers take their PyTorch paths.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

from adafilter_dist.system.cache_folder import cache_folder

# -fno-trapping-math lets comparisons become masks; results are the same.
_FLAGS = ("-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_SECONDS = 120


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """The compiled C or C++ file `source`; None, and one warning, if that failed.

    ADAFILTER_NATIVE=0 compiles nothing and warns of nothing.
    """
    if os.environ.get("ADAFILTER_NATIVE") == "0" or platform.system() != "Linux":
        return None
    try:
        return ctypes.CDLL(str(_compiled(source)))
    except (OSError, subprocess.SubprocessError) as error:
        message = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"{source.name} was not compiled, gated layers run slower on the CPU: "
            f"{message.strip().splitlines()[0]}. A C++ compiler (Debian: g++) mends that, "
            "ADAFILTER_NATIVE=0 silences it",
            stacklevel=2,
        )
        return None


def _compiled(source: Path) -> Path:
    compiler = _compiler(source)
    known = "\n".join((_version(compiler), processor(), torch.__version__, *_FLAGS))
    key = hashlib.sha256(known.encode() + source.read_bytes()).hexdigest()[:16]
    target = cache_folder() / "native" / f"{source.stem}-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made, between = Path(folder) / "made.so", Path(folder) / "made.o"
        standard = "-std=c++17" if source.suffix == ".cpp" else "-std=gnu11"
        _run([compiler, *_FLAGS, "-fopenmp", standard, "-c", str(source), "-o", str(between)])
        _run([compiler, "-shared", str(between), *_openmp(), "-o", str(made)])
        made.replace(target)  # ranks that compile at the same time write the same
    return target


def _openmp() -> list[str]:
    """torch's own OpenMP, so that there is one set of threads; two would wait on each other."""
    own = sorted(Path(torch.__file__).parent.joinpath("lib").glob("libgomp*.so*"))
    return [str(own[0])] if own else ["-fopenmp"]


def _compiler(source: Path) -> str:
    asked = os.environ.get("CXX" if source.suffix == ".cpp" else "CC")
    usual = ("g++", "c++", "clang++") if source.suffix == ".cpp" else ("gcc", "cc", "clang")
    for candidate in (asked, *usual):
        if candidate and (path := shutil.which(candidate)):
            return path
    raise FileNotFoundError(f"none of {', '.join(usual)} is installed")


def _version(compiler: str) -> str:
    return _run([compiler, "--version"])


def processor() -> str:
    """What tells apart processors that cannot run each other's code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    features = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join([platform.machine(), *sorted(set(features))])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
    return done.stdout
