"""Ranks in real processes meet through a file, or end with a line that says why not."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.distributed.joining import outputs, start

pytestmark = pytest.mark.distributed
HERE = socket.gethostname()


def place(port: int, **changes: Any) -> dict[str, Any]:
    """What rank 0 writes, of a meeting on this machine."""
    found = {"host": HERE, "addresses": ["127.0.0.1"], "port": port, "name": "x"}
    return {**found, "job": None, "restart": "0", **changes}


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes no connection: those that wait to be accepted fill its queue."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_two_meetings_on_one_machine(tmp_path: Path) -> None:
    first, second = tmp_path / "meeting.1.0", tmp_path / "meeting.2.0"
    # What an earlier start left: its port is nobody's any more, and its restart another.
    first.write_text(json.dumps(place(1, restart="7")))
    three = [start(tmp_path, rank, 3, first) for rank in (2, 1, 0)]
    two = [start(tmp_path, rank, 2, second, ADAFILTER_INTERFACE="lo") for rank in (0, 1)]
    assert [(code, "sum 6" in text) for code, text in outputs(three)] == [(0, True)] * 3
    assert [(code, "sum 3 gloo lo" in text) for code, text in outputs(two)] == [(0, True)] * 2
    met = [json.loads(file.read_text()) for file in (first, second)]
    assert met[0]["port"] != met[1]["port"]
    assert met[1]["addresses"][0] == "127.0.0.1"  # of this interface only
    assert all(one["host"] == HERE and one["restart"] == "0" for one in met)


def test_an_address_that_does_not_answer(tmp_path: Path, silent: int) -> None:
    meeting = tmp_path / "meeting"
    meeting.write_text(json.dumps(place(silent, host=HERE)))
    began = time.monotonic()
    code, text = start(tmp_path, 1, 2, meeting, ADAFILTER_CONNECT_TIMEOUT="2").end()
    assert time.monotonic() - began < 40
    assert code == 1, text
    assert f"rank 1 on {HERE} cannot reach rank 0 on {HERE} at 127.0.0.1:{silent} (timed o" in text
    assert "a firewall or the wrong network; choose one with launch.interface=NAME, on" in text
    assert "Traceback" not in text


def test_somebody_else_at_the_address(tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=9), wait_for_workers=False)
    store.set("name", "of another start")
    meeting = tmp_path / "meeting"
    meeting.write_text(json.dumps(place(store.port)))
    with socket.socket() as mute:  # takes connections, but never says a word
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        other = tmp_path / "other"
        other.write_text(json.dumps(place(mute.getsockname()[1])))
        ranks = [
            start(tmp_path, 1, 2, file, ADAFILTER_CONNECT_TIMEOUT="2") for file in (meeting, other)
        ]
        (first, text), (second, said) = outputs(ranks)
    assert (first, second) == (1, 1), text + said
    assert f"at 127.0.0.1:{store.port} (somebody else's), " in text
    assert "(accepted, but gives no answer)" in said


def test_the_first_rank_never_comes(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    code, text = start(tmp_path, 3, 4, meeting, ADAFILTER_CONNECT_TIMEOUT="1").end()
    assert code == 1, text
    assert f"rank 3 on {HERE} waited 1 s for rank 0: its output says why" in text
    assert str(meeting) in text


def test_another_rank_never_comes(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    short = {"ADAFILTER_CONNECT_TIMEOUT": "4"}
    ranks = [start(tmp_path, rank, 4, meeting, **short) for rank in (0, 1)]
    (first, text), (second, said) = outputs(ranks)
    assert (first, second) == (1, 1), text + said
    assert f"rank 0 on {HERE} waited 4 s for ranks 2, 3 of 4: their output says why" in text
    assert f"rank 1 on {HERE}: rank 0 on {HERE} waited in vain for ranks 2, 3" in said


def test_a_process_group_that_does_not_connect_is_given_up(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    other = start(tmp_path, 1, 2, meeting, what="only_meet")
    code, text = start(tmp_path, 0, 2, meeting, ADAFILTER_CONNECT_TIMEOUT="4").end()
    other.process.kill()
    assert code == 1, text
    assert f"rank 0 on {HERE}: the ranks have met, but gloo could not connect" in text
    assert "launch.interface=NAME" in text


def test_a_node_that_hides_its_gpu(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    ranks = [start(tmp_path, rank, 3, meeting, what=":join_or_hide") for rank in range(3)]
    for rank, (code, text) in enumerate(outputs(ranks)):
        assert code == 1, text
        assert f"rank {rank} on {HERE}: only 1 of 3 ranks have a GPU (rank 0 on {HERE} has" in text


def test_an_interface_that_is_not_there(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    code, text = start(tmp_path, 0, 1, meeting, ADAFILTER_INTERFACE="ib7").end()
    assert code == 1, text
    assert f"launch.interface=ib7: no such interface with an address on {HERE}; there are" in text
