"""Ranks whose pixels would differ do not start."""

from __future__ import annotations

import pytest

from adafilter_dist.data.loading.agreement import require_equal
from adafilter_dist.errors import UserError

A100, H100 = "nvjpeg of NVIDIA A100-SXM4-80GB", "nvjpeg of NVIDIA H100"


@pytest.mark.parametrize("decoders", [("numba", "ffcv"), ("torchvision",) * 2, (H100, H100)])
def test_the_same_pixels(decoders: tuple[str, str]) -> None:
    require_equal([(decoder, f"rank {rank}") for rank, decoder in enumerate(decoders)])


@pytest.mark.parametrize(
    ("decoders", "advice"),
    [
        (("torchvision", "numba"), "set data.loader=torchvision"),
        ((H100, "numba"), "set data.loader=numba"),
        ((A100, H100), "one model of GPU"),
    ],
)
def test_other_pixels(decoders: tuple[str, str], advice: str) -> None:
    with pytest.raises(UserError, match=advice) as told:
        require_equal([(decoder, f"rank {rank}") for rank, decoder in enumerate(decoders)])
    for rank, decoder in enumerate(decoders):
        assert f"rank {rank} by {decoder}" in str(told.value).replace(" decodes", "")
