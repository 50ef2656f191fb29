# SPDX-License-Identifier: Apache-2.0
"""What is judged about the cluster file system of one node: whether it is there, and whether what it says is understood.

Imports little, as ``pve-state`` does it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..base.findings import GOOD, PROBLEM, UNKNOWN, WARNING, Finding, check
from ..base.units import bytes_text

ABSENT = check("pmxcfs-absent", GOOD, "No cluster file system is installed (plain Debian)")
NOT_MOUNTED = check(
    "pmxcfs-not-mounted",
    PROBLEM,
    "The cluster file system is down: /etc/pve is not mounted",
    "Find out why the daemon does not run, then start it.",
    "journalctl -u pve-cluster; systemctl start pve-cluster",
)
DATABASE_MISSING = check(
    "pmxcfs-database-missing",
    PROBLEM,
    "The cluster file system is down, and there is no config.db: what a start would do with that depends on corosync.conf",
    "Find out where the database is before the daemon is started.",
    "journalctl -u pve-cluster; pve-state status",
)
NOT_UNDERSTOOD = check(
    "pmxcfs-not-understood",
    UNKNOWN,
    "The daemon or its database is not as it is known, so quorum, members or content are not known",
    "Read what is not understood; a newer pveguard may know it.",
    "journalctl -u pve-cluster; pve-state status",
)
CONTENT_UNKNOWN = check(
    "pmxcfs-content-unknown",
    UNKNOWN,
    "/etc/pve is mounted, and whether it holds guests is not known",
    "Look yourself before the node joins a cluster.",
    "ls -R /etc/pve/nodes",
)
MOUNTED = check("pmxcfs-mounted", GOOD, "/etc/pve is mounted and understood")
NAME_UNRESOLVED = check(
    "host-name-unresolved",
    PROBLEM,
    "The node's host name does not resolve, so the daemon does not start",
    "Add its address to /etc/hosts.",
    "getent hosts NAME",
)
NAME_LOOPBACK = check(
    "host-name-loopback",
    PROBLEM,
    "The node's host name resolves to a loopback address, so the daemon does not start",
    "Put the node's real address into /etc/hosts.",
    "getent hosts NAME",
)
LOGIN = check(
    "login-on-pve",
    WARNING,
    "root's authorized_keys lies on /etc/pve: while the daemon is down, a login by those keys fails",
    "Keep the key in use in a file that does not need /etc/pve.",
    "/root/.ssh/authorized_keys2, as ram_state_enabled: true does",
)


def absent() -> Finding:
    """pve-cluster is not installed."""
    return ABSENT("no cluster file system is installed (plain Debian)")


def mounted(there: bool, database: bool | None = None, nodes: Iterable[str] = (), means: str = "") -> Finding | None:
    """Whether /etc/pve is not mounted. ``there``: it is; ``database``: whether there is a config.db, None where that is not
    known. ``means``: what that means to the others, where they were asked.
    """
    if there:
        return None
    if database is False:
        return DATABASE_MISSING(
            "/etc/pve is not mounted, and there is no /var/lib/pve-cluster/config.db", means=means, nodes=nodes
        )
    return NOT_MOUNTED("/etc/pve is not mounted", means=means, nodes=nodes)


def understood(error: str | None) -> Finding | None:
    """``error``: what is not understood of the daemon or its database, as :mod:`pmxcfs` and :mod:`daemon_mode` say it."""
    return NOT_UNDERSTOOD(error, brief="what its cluster file system holds or says is not known") if error else None


def content(mode: str, guests: Sequence[object] | None, database_bytes: int | None) -> Finding:
    """What a mounted /etc/pve holds. ``guests``: None where that is not known."""
    size = f", database {bytes_text(database_bytes)}" if database_bytes else ""
    if guests is None:
        return CONTENT_UNKNOWN(f"/etc/pve is mounted, and what it holds is not known{size}")
    return MOUNTED(f"/etc/pve is mounted ({mode} mode, {len(guests)} guest{'s' if len(guests) != 1 else ''}{size})")


def host_name(name: str, address: str | None) -> Finding | None:
    """``address``: what the host name resolves to, None when to nothing."""
    if address is None:
        return NAME_UNRESOLVED(f"the host name {name} does not resolve", code=f"getent hosts {name}")
    if address.startswith("127.") or address == "::1":
        return NAME_LOOPBACK(
            f"the host name {name} resolves to {address}: the daemon does not start", code=f"getent hosts {name}"
        )
    return None


def login(depends_on_pve: bool) -> Finding | None:
    """``depends_on_pve``: root's authorized_keys is a link to a file on /etc/pve."""
    return LOGIN(LOGIN.what) if depends_on_pve else None
