"""Where Triton kernels run: by the interpreter in a process of its own, and on a GPU if any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import numpy
import pytest
import torch
from packaging.version import Version

from tests.models.ops.worker import Worker

Check = Callable[..., None]
Run = Callable[..., None]


def _interpreter_is_broken() -> bool:
    """Triton 3.6 makes numbers of arrays of one element, which NumPy 2.4 no longer does."""
    try:
        triton = Version(version("triton"))
    except PackageNotFoundError:
        return False  # said by the tests
    return triton < Version("3.7") and Version(numpy.__version__) >= Version("2.4")


BROKEN = (
    [
        pytest.mark.may_skip("this Triton's own interpreter fails with this NumPy"),
        pytest.mark.skip("Triton 3.6's interpreter needs NumPy before 2.4 (tests alone use it)"),
    ]
    if _interpreter_is_broken()
    else []
)


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


@pytest.fixture(
    params=[pytest.param("interpreter", marks=BROKEN), *["cuda"] * torch.cuda.is_available()]
)
def run(request: pytest.FixtureRequest) -> Run:
    """Calls check(device, *given) where Triton's kernels run."""
    if request.param == "cuda":
        return lambda check, *given: check("cuda", *given)
    worker: Worker = request.getfixturevalue("interpreter")
    return lambda check, *given: worker.run(check, "cpu", *given)
