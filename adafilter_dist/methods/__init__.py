"""AdaFilter and what it is compared with: model surgery, parameter groups, penalty."""

from adafilter_dist.methods.base import Built, parameter_groups
from adafilter_dist.methods.build import build_method

__all__ = ["Built", "build_method", "parameter_groups"]
