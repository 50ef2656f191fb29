# SPDX-License-Identifier: Apache-2.0
"""The daemon's mode and the members of its cluster, as /etc/pve says."""

from __future__ import annotations

import json

from ..pmxcfs.mount import NOT_MET, has_write_bits, unknown_members
from .rows import is_member
from .system import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from .paths import Paths


def members_said(paths: Paths, timeout: float = 10) -> Any:
    """What /etc/pve/.members holds, None when it does not answer. Read by a child: a hanging daemon must not hang us."""
    done = run(["cat", f"{paths.pve}/.members"], timeout=timeout)
    try:
        return json.loads(done.out)
    except ValueError:
        return None


def members_file(paths: Paths, timeout: float = 10) -> dict[str, Any]:
    """What /etc/pve/.members says; {} when it does not answer, or not as it is known."""
    said = members_said(paths, timeout)
    return {} if unknown_members(said) else said


ALONE = "the daemon works alone (local mode) although this node is a member of a cluster: what is written here rolls the \
others back when it meets them"


class Mode:
    """How the daemon works: ``name`` is ``cluster``, ``local`` or None (not known). ``quorate``: in local mode whether the
    node is no member. ``met`` is False when Corosync has not run since a daemon in cluster mode started.
    """

    def __init__(self, name: str | None, quorate: bool, met: bool = True) -> None:
        self.name, self.quorate, self.met = name, quorate, met


def daemon_mode(
    paths: Paths, members: Mapping[str, Any], again: Callable[[], Mapping[str, Any]] | None = None
) -> Mode:
    """The :class:`Mode` of the daemon that serves /etc/pve; ``members`` is what :func:`members_file` said, ``again`` asks
    once more.

    Cluster mode if and only if the database held a corosync.conf when the daemon started, without -l. ``.members`` names
    the cluster only once Corosync has run since then. The database of now is not asked: what it holds counts from the next
    start on. In local mode the daemon has quorum by itself, so what is read-only is in cluster mode.
    """
    if not members:
        return Mode(None, False)
    cluster = members.get("cluster")
    if not cluster:
        if not takes_writes(paths):
            return Mode("cluster", False, met=False)
        # Corosync may have come between the two looks.
        members = again() if again else members_file(paths)
        if not members:
            return Mode(None, False)
        cluster = members.get("cluster")
    return Mode("cluster", bool(cluster.get("quorate"))) if cluster else Mode("local", not is_member(paths))


def takes_writes(paths: Paths) -> bool:
    """Whether the file system's own modes let /etc/pve be written."""
    return bool(has_write_bits(paths.pve))


def no_quorum(mode: Mode) -> str:
    """Why this node has no quorum, for people; "" when it has, or needs none."""
    if mode.name is None:
        return (
            "/etc/pve/.members does not answer, or not as it is known, so whether there is quorum is not known; see "
            "'journalctl -u pve-cluster' and 'cat /etc/pve/.members'"
        )
    if not mode.met:
        return f"{NOT_MET}; see 'systemctl status corosync'"
    if mode.name == "local":
        return "" if mode.quorate else f"{ALONE}; see 'systemctl status pve-cluster'"
    return "" if mode.quorate else "the cluster is not quorate; bring it to quorum first"
