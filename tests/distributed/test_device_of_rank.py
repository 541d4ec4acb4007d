"""Which GPU a rank gets, by what its launcher lets it see; no GPU is needed to know that."""

from __future__ import annotations

import pytest
import torch

from adafilter_dist.distributed.world import _device
from adafilter_dist.errors import RankError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("SLURM_GPUS_PER_TASK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return monkeypatch


def test_ranks_that_see_all_gpus_take_one_each(gpus: pytest.MonkeyPatch) -> None:
    gpus.setattr(torch.cuda, "device_count", lambda: 4)
    assert [_device("auto", rank).index for rank in range(4)] == [0, 1, 2, 3]
    with pytest.raises(RankError, match="local rank 4 has no GPU of its own"):
        _device("auto", 4)


def test_a_task_that_sees_only_its_own_gpu_takes_that(gpus: pytest.MonkeyPatch) -> None:
    gpus.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RankError, match="local rank 1"):
        _device("cuda", 1)
    gpus.setenv("SLURM_GPUS_PER_TASK", "1")
    assert _device("cuda", 1) == torch.device("cuda", 0)


def test_the_cpu_is_taken_where_it_is_wanted(gpus: pytest.MonkeyPatch) -> None:
    assert _device("cpu", 0) == torch.device("cpu")
