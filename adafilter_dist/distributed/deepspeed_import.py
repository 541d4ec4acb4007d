"""DeepSpeed, imported when it is used, for the device in use, and without its noise."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import sys
from types import ModuleType

import torch

from adafilter_dist.errors import UserError
from adafilter_dist.recipe import Recipe
from adafilter_dist.recipe.sections.engine import DeepSpeed

INSTALL = "pip install 'adafilter-dist[deepspeed]'"

# Said at every start, and nothing to be done about: torch's SGD is exact under ZeRO (our tests).
_MEANINGLESS = ("untested optimizer",)


def require_deepspeed(recipe: Recipe) -> None:
    """UserError with the pip command where ``recipe`` trains with DeepSpeed and it is missing."""
    if isinstance(recipe.engine, DeepSpeed) and importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"engine=deepspeed: DeepSpeed is not installed: {INSTALL}")


def import_deepspeed(device: torch.device) -> ModuleType:
    """The package ``deepspeed``, which `require_deepspeed` has found."""
    os.environ["DS_ACCELERATOR"] = device.type
    # It asks for this in any process, also where no launcher has set it.
    os.environ.setdefault("LOCAL_RANK", "0")
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):  # torch looks for a CUDA compiler, and tells of it
            deepspeed = importlib.import_module("deepspeed")
    except BaseException:
        sys.stderr.write(stderr.getvalue())
        raise
    logging.getLogger("DeepSpeed").addFilter(_means_something)
    if device.type == "cpu":
        # Its collectives in shared memory are for inference, and would be compiled at every first
        # start on a machine; DeepSpeed looks here for what can be compiled.
        deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})
    return deepspeed


def _means_something(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in _MEANINGLESS)
