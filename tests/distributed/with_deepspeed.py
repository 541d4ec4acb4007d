"""Importing it imports DeepSpeed, as the engine does, and what DeepSpeed imports at its start.

For a fork server: in a rank it takes a second, as an optimizer among it asks for torch's compiler.
"""

from __future__ import annotations

import importlib
import os

import torch

from adafilter_dist.distributed.deepspeed_import import import_deepspeed

_BEFORE = dict(os.environ)
import_deepspeed(torch.device("cpu"))
for name in ("stage3", "stage_1_and_2", "muon.muon_optimizer"):
    importlib.import_module(f"deepspeed.runtime.zero.{name}")
for variable in os.environ.keys() - _BEFORE.keys():  # each rank sets its own
    del os.environ[variable]
