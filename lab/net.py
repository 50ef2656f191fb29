"""Free ports for management (TCP, ssh) and the ring (UDP multicast), chosen under a machine-wide lock."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import LabError

FIRST_SSH_PORT = 22100
LAST_SSH_PORT = 22999
FIRST_RING_PORT = 7771
LAST_RING_PORT = 7970
RING_GROUP = "230.0.77.1"


@contextmanager
def ports_lock(timeout: float = 120.0) -> Iterator[None]:
    """Hold while choosing ports and until QEMU has bound them.

    The lock is an abstract unix socket: it lives in the network namespace, as ports do, leaves no file and ends with
    its holder.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        while True:
            try:
                lock.bind("\0pveguard-lab-ports")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise LabError(f"another lab has been starting for over {timeout:.0f} s") from None
                time.sleep(0.1)
        yield


def port_is_free(port: int) -> bool:
    """True when 127.0.0.1:``port`` can be bound."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_ssh_port(taken: Iterable[int], wanted: int | None = None) -> int:
    """``wanted`` when it is free, else the first free port that no lab has written down in ``taken``."""
    reserved = set(taken)
    if wanted is not None and port_is_free(wanted):
        return wanted
    for port in range(FIRST_SSH_PORT, LAST_SSH_PORT + 1):
        if port not in reserved and port_is_free(port):
            return port
    raise LabError(f"no free TCP port between {FIRST_SSH_PORT} and {LAST_SSH_PORT} on 127.0.0.1")


def udp_ports_in_use(table: str) -> set[int]:
    """Local ports of a ``/proc/net/udp`` table."""
    ports = set()
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 1 and ":" in fields[1]:
            ports.add(int(fields[1].rsplit(":", 1)[1], 16))
    return ports


def choose_ring_port(taken: Iterable[int], table: str | None = None) -> int:
    """A multicast port nobody uses: QEMU would share a used one with a stranger and say nothing."""
    text = Path("/proc/net/udp").read_text() if table is None else table
    used = udp_ports_in_use(text) | set(taken)
    for port in range(FIRST_RING_PORT, LAST_RING_PORT + 1):
        if port not in used:
            return port
    raise LabError(f"no free UDP port between {FIRST_RING_PORT} and {LAST_RING_PORT}")
