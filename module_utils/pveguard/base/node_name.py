"""The name of a node as the cluster file system, pvecm and HA take it."""

from __future__ import annotations

import socket


def own(hostname: str | None = None) -> str:
    """The host name up to its first dot. ``hostname``: the kernel's by default, a full domain name where that was set."""
    return (socket.gethostname() if hostname is None else hostname).split(".", 1)[0]
