"""Two hosts on one machine: network namespaces that a cable joins, which can be pulled out."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ADDRESSES = {"a": "10.81.0.1", "b": "10.81.0.2"}
CARD = "eth0"
"""What the network card of each host is called there."""
NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of setns(2)."""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _name(host: str) -> str:
    return f"ftengine-{os.getpid()}-{host}"


@contextmanager
def two_hosts() -> Iterator[dict[str, str]]:
    """Make hosts "a" and "b"; give the name of each one's namespace. The test is skipped where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip`")
    names = {host: _name(host) for host in ADDRESSES}
    try:
        try:
            for name in names.values():
                _ip("netns", "add", name)
            first, second = names.values()
            _ip("link", "add", CARD, "netns", first, "type", "veth", "peer", "name", CARD, "netns", second)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        for host, name in names.items():
            _ip("-n", name, "address", "add", f"{ADDRESSES[host]}/24", "dev", CARD)
            for card in ("lo", CARD):
                _ip("-n", name, "link", "set", card, "up")
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def plug(name: str, state: str) -> None:
    """Pull the cable out of a host ("down"), or put it in again ("up")."""
    _ip("-n", name, "link", "set", CARD, state)


def enter(name: str) -> None:
    """Move this process to a host."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as namespace:
        if libc.setns(namespace.fileno(), NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"setns to {name}")
