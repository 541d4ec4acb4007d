"""Interfaces and addresses of this machine, and two machines that differ in more than a name."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from adafilter_dist.distributed import interface
from adafilter_dist.distributed.interface import addresses, choose_gloo_interface, require, use
from adafilter_dist.errors import RankError
from tests.distributed.joining import Rank, start_on


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two networks, whose name means its loopback."""
    places = {"lo": ["127.0.0.1", "::1"], "eth0": ["fd00::7", "192.0.2.7"], "ib0": ["10.1.0.7"]}
    monkeypatch.setattr(interface, "_interfaces", lambda: {**places, "eth1": []})
    monkeypatch.setattr(interface, "_resolved", lambda name: ["127.0.1.1"])
    for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(key, "")  # so that it is put back
        monkeypatch.delenv(key)


@pytest.mark.usefixtures("two")
def test_addresses_in_the_order_in_which_they_are_tried() -> None:
    assert addresses(None) == ["192.0.2.7", "10.1.0.7", "fd00::7", "127.0.1.1", "127.0.0.1", "::1"]
    assert addresses("eth0") == ["192.0.2.7", "fd00::7"]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("name", ["ib1", "eth1"])
def test_an_interface_that_cannot_be_used(name: str) -> None:
    with pytest.raises(RankError, match=f"{name}: no such interface.*there are: eth0, ib0"):
        require(name)


@pytest.mark.usefixtures("two")
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=ib0")
    use("eth0")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=ib0"
    choose_gloo_interface("10.1.0.7")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0"


@pytest.mark.usefixtures("two")
def test_gloo_is_helped_where_the_name_of_the_host_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose_gloo_interface("127.0.0.1")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    choose_gloo_interface("10.1.0.7")
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == "ib0"
    monkeypatch.setattr(interface, "_resolved", lambda name: ["192.0.2.7"])
    choose_gloo_interface("10.1.0.7")
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_without_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(interface, "_resolved", lambda name: ["192.0.2.7"])
    assert addresses(None) == ["192.0.2.7"]
    assert "lo" not in interface.names()
    with pytest.raises(RankError, match=r"needs psutil: pip install 'adafilter-dist\[slurm\]'"):
        require("eth0")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=60)


@pytest.fixture
def network() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and ip (apt-get install iproute2)")
    ends = [f"a{os.getpid()}n{number}" for number in (1, 2)]
    with ExitStack() as stack:
        for end in ends:
            ip("netns", "add", end)
            stack.callback(ip, "netns", "del", end)
        ip("link", "add", ends[0], "netns", ends[0], "type", "veth", "peer", ends[1])
        ip("link", "set", ends[1], "netns", ends[1])
        for number, end in enumerate(ends, 1):
            ip("-n", end, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", end, "link", "set", end, "up")
            ip("-n", end, "link", "set", "lo", "up")
        yield ends


def node(folder: Path, end: str, rank: int, **environment: str) -> Rank:
    """Join as a node of its own, named as Debian does it: its own name is at 127.0.1.1."""
    host = f"n{rank + 1}"
    hosts = folder / f"hosts.{host}"
    hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {host}\n")
    return start_on(end, folder, rank, hosts, **environment)


@pytest.mark.distributed
def test_two_machines_whose_names_mean_their_loopback(network: list[str], tmp_path: Path) -> None:
    nodes = [node(tmp_path, end, rank) for rank, end in enumerate(network)]
    for end, one in zip(network, nodes, strict=True):
        code, text = one.end()
        assert code == 0 and f"sum 3 gloo {end}" in text, text
    assert json.loads((tmp_path / "meeting").read_text())["addresses"][0] == "10.77.0.1"


@pytest.mark.distributed
def test_the_wrong_network(network: list[str], tmp_path: Path) -> None:
    short = {"ADAFILTER_CONNECT_TIMEOUT": "5"}
    first = node(tmp_path, network[0], 0, ADAFILTER_INTERFACE="lo", **short)
    second = node(tmp_path, network[1], 1, **short)
    code, text = second.end()
    assert code == 1, text
    assert "rank 1 on n2 cannot reach rank 0 on n1 at n1:" in text  # 127.0.0.1 is not tried
    assert f"choose one with launch.interface=NAME, on n2 there are: {network[1]}" in text
    code, text = first.end()
    assert code == 1 and "waited 5 s for rank 1 of 2" in text
    assert socket.gethostname() not in text
