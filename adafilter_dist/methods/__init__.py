"""What is trained: AdaFilter and its baselines, one file each, and their export.

A file turns a backbone into a model with parameter groups and a penalty; the networks themselves
are in `models`, the step that trains them in `training`.
"""

from adafilter_dist.methods.base import TrainableModel, parameter_groups
from adafilter_dist.methods.build import build_method

__all__ = ["TrainableModel", "build_method", "parameter_groups"]
