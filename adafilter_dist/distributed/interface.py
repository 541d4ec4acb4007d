"""Network interfaces of this machine: their names, their addresses, which one the ranks use."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable

from adafilter_dist.errors import RankError

INSTALL = "pip install 'adafilter-dist[slurm]'   (psutil)"


def addresses(interface: str | None) -> list[str]:
    """Where this machine can be reached, the likeliest first: IPv4, then IPv6, loopback last.

    Those of ``interface`` alone where it is named; RankError where there is no such one here.
    """
    by_interface = _interfaces()
    if interface is not None:
        return _best_first(by_interface[require(interface)])
    of_name = _resolved(socket.gethostname())
    others = [address for name in by_interface for address in by_interface[name]]
    return _best_first([*of_name, *others])


def require(interface: str) -> str:
    """``interface``, if this machine has it with an address; RankError with those there are."""
    try:
        import psutil  # noqa: F401
    except ImportError:
        raise RankError(f"launch.interface={interface} needs psutil: {INSTALL}") from None
    if not _interfaces().get(interface):
        raise RankError(
            f"launch.interface={interface}: no such interface with an address on "
            f"{socket.gethostname()}; there are: {', '.join(names()) or 'none'}"
        )
    return interface


def names() -> list[str]:
    """Interfaces with an address, loopback not counted; without psutil all there are."""
    with_address = {name for name, places in _interfaces().items() if places}
    return sorted(
        name for name in with_address or {n for _, n in socket.if_nameindex()} if name != "lo"
    )


def use(interface: str) -> None:
    """Let gloo and NCCL use this interface, where the user has not chosen one for them."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def choose_gloo_interface(address: str) -> None:
    """Let gloo use the interface of ``address``, by which this machine is known to be reached.

    Only where it would go by the name of the host and find the loopback or nothing there, as on a
    Debian with its name at 127.0.1.1: the ranks of other machines could not reach this one then.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ or is_loopback(address):
        return
    if all(is_loopback(one) for one in _resolved(socket.gethostname())):
        for name, places in _interfaces().items():
            if address in places:
                os.environ["GLOO_SOCKET_IFNAME"] = name


def is_loopback(address: str) -> bool:
    """Whether this is a loopback address, which each machine understands as itself."""
    return ipaddress.ip_address(address).is_loopback


def _interfaces() -> dict[str, list[str]]:
    """Name -> addresses, without those that need a scope; empty without psutil."""
    try:
        import psutil
    except ImportError:
        return {}
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    wanted = (socket.AF_INET, socket.AF_INET6)
    addresses_of = {
        name: [one.address for one in entries if one.family in wanted]
        for name, entries in psutil.net_if_addrs().items()
        if name in up
    }
    return {name: _usable(places) for name, places in addresses_of.items()}


def _usable(places: Iterable[str]) -> list[str]:
    return [p for p in places if "%" not in p and not ipaddress.ip_address(p).is_link_local]


def _resolved(name: str) -> list[str]:
    try:
        entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return _usable(str(entry[4][0]) for entry in entries)


def _best_first(places: Iterable[str]) -> list[str]:
    parsed = dict.fromkeys(ipaddress.ip_address(place) for place in places)
    return [str(one) for one in sorted(parsed, key=lambda one: (one.is_loopback, one.version))]
