"""Trial runs of a network: on a copy, in training or evaluation mode, with fixed random numbers."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from adafilter_dist.models.gating.micro_batches import in_micro_batches


def trial_copy(model: nn.Module) -> nn.Module:
    """A copy for trial runs, so that attributes set by the network's code stay as they are.

    Returns `model` itself if it cannot be copied.
    """
    if any("forward" in module.__dict__ for module in model.modules()):
        return model  # such a function may hold the module that it was made for
    try:
        return copy.deepcopy(model)
    except Exception:  # whatever a module's attributes raise
        return model


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set training or evaluation mode, except for BatchNorms, and fix the random numbers.

    BatchNorms use their running statistics in both modes: statistics of the few example pictures
    would amplify rounding. Modes and generators are restored afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    python, numpy_state = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        devices = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices))
        # The gates' noise is drawn elsewhere, because the source has no gates.
        stack.enter_context(in_micro_batches(1, [torch.Generator(device).manual_seed(0)]))
        stack.enter_context(torch.set_grad_enabled(training))
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            model.train(training)
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            random.setstate(python)
            np.random.set_state(numpy_state)
