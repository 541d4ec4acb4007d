"""Where Triton kernels run: by the interpreter in a process of its own, and on a GPU if any."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.models.ops.worker import Worker

Check = Callable[..., None]
Run = Callable[..., None]


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Worker]:
    worker = Worker({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Triton without its interpreter, and without what it compiled before."""
    cache = tmp_path_factory.mktemp("triton")
    worker = Worker({"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)})
    yield worker
    worker.close()


@pytest.fixture(params=["interpreter", *["cuda"] * torch.cuda.is_available()])
def run(request: pytest.FixtureRequest) -> Run:
    """Calls check(device, *given) where Triton's kernels run."""
    if request.param == "cuda":
        return lambda check, *given: check("cuda", *given)
    worker: Worker = request.getfixturevalue("interpreter")
    return lambda check, *given: worker.run(check, "cpu", *given)
