"""environment.json: what the bits of a run depend on beside its recipe."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed
from adafilter_dist.version import __version__


def describe_environment(
    recipe: Recipe, world_size: int, threads: int, loader: str, kernels: str
) -> dict[str, Any]:
    """What the bits of a run depend on beside its recipe."""
    cuda = torch.cuda.is_available() and recipe.engine.device != "cpu"
    return {
        "adafilter_dist": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
        "world_size": world_size,
        "threads": threads,
        "compile": recipe.train.compile,
        "micro_batches_per_forward": recipe.train.together,
        "kernels": kernels,
        "loader": loader,
        "engine": _engine(recipe),
        # It brings the nvJPEG that decodes.
        **({"torchcodec": metadata.version("torchcodec")} if loader == "nvjpeg" else {}),
    }


def _engine(recipe: Recipe) -> str:
    engine = recipe.engine
    return f"deepspeed ZeRO-{engine.zero_stage}" if isinstance(engine, DeepSpeed) else engine.name
