from __future__ import annotations

import pytest
import torch
from torch import nn

from adafilter_dist.models.ops.selected_filters import selected_filters


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wanted", [[0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1]])
def test_wanted_filters_only(wanted: list[int], bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, (3, 2), stride=2, padding=1, bias=bias, dtype=torch.float64)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    mask = torch.tensor(wanted, dtype=torch.bool)
    y = selected_filters(conv, x, conv.weight, conv.bias, mask)
    torch.testing.assert_close(y, conv(x) * mask[None, :, None, None])
    y.sum().backward()
    for parameter in conv.parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape
        assert not parameter.grad[~mask].any()
        assert bool(parameter.grad[mask].all())
