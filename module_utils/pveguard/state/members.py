# SPDX-License-Identifier: Apache-2.0
"""The daemon's mode and the members of its cluster, as /etc/pve says."""

from __future__ import annotations

import json
import os

from .rows import is_member
from .system import run


def members_said(paths, timeout=10):
    """What /etc/pve/.members holds, None when it does not answer. Read by a child: a hanging daemon must not hang us."""
    done = run(["cat", f"{paths.pve}/.members"], timeout=timeout)
    try:
        return json.loads(done.out)
    except ValueError:
        return None


def members_file(paths, timeout=10):
    """What /etc/pve/.members says; {} when it does not answer, or not as it is known."""
    said = members_said(paths, timeout)
    return {} if unknown_members(said) else said


def unknown_members(said):
    """What of .members is not as the daemon is known to write it, None when all of it is. Without a key ``cluster`` it has
    nothing but the node's name and a version; what else may stand there is not taken for a node without a cluster.
    """
    if not isinstance(said, dict):
        return "it is no JSON object"
    if "cluster" not in said:
        if not isinstance(said.get("nodename"), str) or not said["nodename"]:
            return "it has no nodename"
        others = sorted(str(key) for key in said if key not in ("nodename", "version"))
        return f"it has no cluster but {', '.join(others[:5])}" if others else None
    cluster, nodes = said["cluster"], said.get("nodelist", {})
    if not isinstance(cluster, dict) or cluster.get("quorate") not in (0, 1):
        return "its cluster does not say quorate 0 or 1"
    if not isinstance(nodes, dict) or not all(isinstance(node, dict) for node in nodes.values()):
        return "its nodelist does not tell of each node by its name"
    return None


# What an operator is told of a daemon in cluster mode that has not met its Corosync.
NOT_MET = "its Corosync has not run since the daemon started: /etc/pve is read-only"
ALONE = "the daemon works alone (local mode) although this node is a member of a cluster: what is written here rolls the \
others back when it meets them"


class Mode:
    """How the daemon works: ``name`` is ``cluster``, ``local`` or None (not known). ``quorate``: in local mode whether the
    node is no member. ``met`` is False when Corosync has not run since a daemon in cluster mode started.
    """

    def __init__(self, name, quorate, met=True):
        self.name, self.quorate, self.met = name, quorate, met


def daemon_mode(paths, members, again=None):
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


def takes_writes(paths):
    """Whether the file system's own modes let /etc/pve be written: without quorum the link ``local``, and where that is
    missing the mount itself, has no write bits.
    """
    for path in (f"{paths.pve}/local", paths.pve):
        try:
            return bool(os.lstat(path).st_mode & 0o222)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return False


def no_quorum(mode):
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
