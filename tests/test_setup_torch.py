"""`make setup` on a machine without a GPU: PyTorch's CPU build, or what the registry has."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.setup_clone import installed, make_clone, make_wheel, setup

pytestmark = pytest.mark.slow
PINS = "torch==1.0\ntorchvision==1.0\ntorchcodec==1.0\ncuda==1\n"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of an index like PyTorch's, with a CPU build and nothing else."""
    for name in ("torch", "torchvision", "torchcodec"):
        make_wheel(tmp_path / "index" / name, name, "1.0+cpu", ["torch==1.0"][: name != "torch"])
    handler = partial(Quiet, directory=str(tmp_path / "index"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone that needs torch, whose registry has it with CUDA."""
    make_wheel(tmp_path / "registry", "torch", "1.0", ["cuda"])
    make_wheel(tmp_path / "registry", "torchvision", "1.0", ["torch==1.0"])
    make_wheel(tmp_path / "registry", "torchcodec", "1.0", ["torch==1.0", "cuda"])
    make_wheel(tmp_path / "registry", "cuda", "1")
    return make_clone(tmp_path / "clone", ["torch>=1", "torchvision", "torchcodec"], PINS)


def test_the_cpu_build_is_taken_where_its_index_answers(
    clone: Path, home: Path, index: str, tmp_path: Path
) -> None:
    words = {"UV_FIND_LINKS": str(tmp_path / "registry"), "ADAFILTER_TORCH_INDEX": index}
    for _ in range(2):  # the second time in .venv as it is
        code, text = setup(clone, home, **words)
        assert code == 0, text
        versions = installed(clone)
        names = ("torch", "torchvision", "torchcodec")
        assert {versions[name] for name in names} == {"1.0+cpu"}
        assert "cuda" not in versions
        (clone / "constraints.txt").write_text(PINS + "six==1.17.0\n")


@pytest.mark.parametrize("named", [True, False])
def test_otherwise_the_registrys_build_and_a_line_that_says_so(
    clone: Path, home: Path, tmp_path: Path, named: bool
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/cpu"
        words = {"ADAFILTER_TORCH_INDEX": address if named else ""}
        code, text = setup(clone, home, UV_FIND_LINKS=str(tmp_path / "registry"), **words)
    assert code == 0, text
    assert installed(clone)["torch"] == "1.0"
    assert "cuda" in installed(clone)
    lines = [line for line in text.splitlines() if line.startswith("PyTorch:")]
    told = f"PyTorch: the registry's build, as {address} has none (Connection refused"
    assert len(lines) == named
    assert "".join(lines).startswith(told if named else "")
