"""Networks: backbones and their weights, conversion to AdaFilter, gates, BatchNorm, penalties."""
