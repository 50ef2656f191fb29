# SPDX-License-Identifier: Apache-2.0
"""What is judged about Corosync, by what one node knows: its quorum, its copies of corosync.conf, what runs.

The comparison of several nodes (``corosync_compare``) judges the same conditions here, with ``nodes``: those that it is true of.
Without ``nodes`` it is the node that was looked at. What only a comparison shows is judged there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..base.findings import GOOD, PROBLEM, UNKNOWN, WARNING, Finding, check
from ..pmxcfs.members import NOT_MET
from ..pmxcfs.places import CLUSTER_CONF as CLUSTER_COPY
from ..pmxcfs.places import HOST_CONF as HOST_COPY

_DIFF = f"diff {CLUSTER_COPY} {HOST_COPY}"

NEVER_MET = check(
    "quorum-never-met",
    PROBLEM,
    "The daemon runs in cluster mode, and Corosync has not run since it started: /etc/pve is read-only",
    "Find out why Corosync does not run, then start it.",
    "journalctl -u corosync; corosync -t; systemctl start corosync",
)
NO_QUORUM = check(
    "quorum-missing",
    PROBLEM,
    "A node is without quorum: /etc/pve is read-only there",
    "Bring the missing members back, or read which votes are missing.",
    "corosync-quorumtool -s",
)
LONE = check(
    "quorum-alone",
    PROBLEM,
    "A node is without quorum and sees no other member",
    "Repair its links to the others, or bring them back.",
    "corosync-cfgtool -s; corosync-quorumtool -s",
)
QUORUM_UNKNOWN = check(
    "quorum-unknown",
    UNKNOWN,
    "The node is in a cluster, and whether it has quorum is not known",
    "Ask the node.",
    "corosync-quorumtool -s; cat /etc/pve/.members",
)
MEMBERS_DOWN = check(
    "corosync-members-down",
    WARNING,
    "Members of the cluster are not up; probes are not counted",
    "Bring the missing members back before anything else is changed.",
    "pvecm status",
)
DOWN = check(
    "corosync-down",
    PROBLEM,
    "Corosync does not run on a cluster member: its vote is missing, and /etc/pve is read-only there",
    "'journalctl -u corosync' and 'corosync -t' say why; then 'systemctl start corosync'",
)
SAME_VERSION = check(
    "corosync-copies-same-version",
    PROBLEM,
    "The two copies of corosync.conf on a node have the same config_version and different text",
    "Compare them and make them one again while the cluster has quorum.",
    _DIFF,
)
HOST_NEWER = check(
    "corosync-host-copy-newer",
    PROBLEM,
    f"{HOST_COPY} has a higher config_version than {CLUSTER_COPY}, so the daemon leaves both as they are",
    "Compare them and make them one again while the cluster has quorum.",
    _DIFF,
)
HOST_OLDER = check(
    "corosync-host-copy-older",
    (PROBLEM, WARNING),
    f"{HOST_COPY} has a lower config_version than {CLUSTER_COPY}; a warning where the node has no quorum to copy it",
    "with quorum 'systemctl restart pve-cluster' on the node copies it; 'journalctl -u pve-cluster' says why not",
)
COPIES_DIFFER = check(
    "corosync-copies-differ",
    PROBLEM,
    "The two copies of corosync.conf on a node differ, and one of them has no config_version",
    "Compare them and make them one again while the cluster has quorum.",
    _DIFF,
)
#: Those of one node's two copies.
COPIES = (SAME_VERSION, HOST_NEWER, HOST_OLDER, COPIES_DIFFER)
RUNNING_DIFFERS = check(
    "corosync-running-differs",
    WARNING,
    f"Corosync runs another config_version than {HOST_COPY} has",
    "'corosync-cfgtool -R' on one node reloads all; where 'journalctl -u corosync' says that a setting cannot be changed live, "
    "restart corosync on one node after the other, with quorum and without armed HA",
)
TWO_NODE = check(
    "corosync-two-node",
    WARNING,
    "two_node is set: both halves of a split may write, and one of them loses",
    "Add a QDevice instead.",
    "pvecm qdevice setup ADDRESS",
)
EVEN_VOTES = check(
    "corosync-even-votes",
    WARNING,
    "An even number of members and no QDevice: an even split has no quorum on either side",
    "Consider a QDevice or another node.",
    "pvecm qdevice setup ADDRESS",
)
AUTHKEY_EXPOSED = check(
    "corosync-authkey-exposed",
    PROBLEM,
    "/etc/corosync/authkey can be read by others than root: whoever reads it can join the traffic of the cluster",
    "The role corosync sets 0400 (by hand: 'chown root:root /etc/corosync/authkey; chmod 0400 /etc/corosync/authkey'); where "
    "others log in to the node, change the key too (playbooks/authkey.yml)",
)
PROBE = check("corosync-probe", GOOD, "The node is a probe: it watches, and nothing depends on it")
MEMBER = check("corosync-member", GOOD, "The node is a member of a cluster of which all members are up")


def quorum(quorate: bool | None, met: bool | None, live: int | None = None, members: int | None = None) -> Finding | None:
    """The quorum of a node in a cluster, as it sees it itself.

    ``met``: whether Corosync has run since its daemon started. ``live`` of ``members`` are up, None where that is not known.
    """
    if quorate is None:
        return QUORUM_UNKNOWN("whether it has quorum is not known")
    if quorate:
        return None
    if met is False:
        return NEVER_MET(f"no quorum: {NOT_MET}")
    if members is None or live is None:
        return no_quorum(False)
    return no_quorum(members > 1 and live < 2, f"no quorum: {live} of {members} members are up and /etc/pve is read-only")


def no_quorum(alone: bool, text: str = "", nodes: Iterable[str] = (), others_quorate: bool = False) -> Finding:
    """A node without quorum. ``alone``: it sees no other. ``others_quorate``: nodes that it does not see have quorum.
    ``text``: what was seen, where more is known.
    """
    nodes = tuple(nodes)
    if not nodes:
        return (LONE if alone else NO_QUORUM)(text or "no quorum: /etc/pve is read-only")
    fix = (
        "bring a majority of the nodes back. Only where the others are certainly off and stay so: "
        "'corosync-quorumtool -e 1' on one node, which lasts until its corosync is restarted"
    )
    if others_quorate:
        fix = "the others have quorum: repair its links to them; never 'corosync-quorumtool -e' here"
    return (LONE if alone else NO_QUORUM)(
        "alone and without quorum" if alone else "no quorum",
        means="/etc/pve is read-only there, guests go on; nothing of what the others write arrives",
        fix=fix,
        nodes=nodes,
    )


def members(cluster: str | None, live: int, count: int, quorate: bool | None = None) -> Finding | None:
    """``live`` of ``count`` members are up; None where it has none."""
    if live < count:
        return MEMBERS_DOWN(f"{count - live} of {count} members of {cluster} are not up")
    if count:
        return MEMBER(f"member of {cluster}: {count} of {count} members up{', quorate' if quorate else ''}")
    return None


def votes(members: int, two_node: bool, qdevice: bool) -> list[Finding]:
    """How the cluster breaks in halves."""
    found = []
    if two_node:
        found.append(TWO_NODE(TWO_NODE.what))
    if members > 2 and members % 2 == 0 and not qdevice:
        found.append(EVEN_VOTES(f"{members} votes: an even split has no quorum on either side"))
    return found


def service(
    running: bool, met: bool | None = None, why: str = "", alone: bool = False, nodes: Iterable[str] = ()
) -> Finding | None:
    """Whether Corosync does not run on a member. ``met``: whether it has since the daemon started. ``why``: what keeps it from
    starting, where that is seen. ``alone``: the daemon works in local mode.
    """
    nodes = tuple(nodes)
    if running:
        return None
    writable = "writable there, as its daemon works alone" if alone else "read-only there"
    return DOWN(
        f"corosync does not run{'' if nodes else ' on a cluster member'}"
        f"{', nor has it since the daemon started' if met is False else ''}{f'; {why}' if why else ''}",
        means=f"the node is in no membership, its vote is missing and /etc/pve is {writable}",
        nodes=nodes,
    )


def version_told(value: object) -> int | None:
    """A config_version that a node told, which may be text by now; None where it is no number."""
    if isinstance(value, str):
        return int(value) if re.fullmatch("[0-9]{1,20}", value) else None
    return value if isinstance(value, int) else None


def copies(cluster: object, host: object, quorate: bool = True, nodes: Iterable[str] = ()) -> Finding:
    """Two copies of corosync.conf that differ, by their config_version. ``quorate``: so that the daemon copies a newer one."""
    nodes = tuple(nodes)
    cluster, host = version_told(cluster), version_told(host)
    own = "" if nodes else "the two copies of corosync.conf differ: "
    seen = f"{own}{CLUSTER_COPY} has config_version {cluster}, {HOST_COPY} has {host}"
    if not cluster or not host:
        return COPIES_DIFFER(seen if cluster or host else "the two copies of corosync.conf differ", nodes=nodes)
    if cluster == host:
        return SAME_VERSION(
            f"{own}both copies have config_version {cluster} and different text",
            means="the daemon overwrites the host's copy at its next start, sync or change, and corosync takes what is on "
            "/etc/pve at its next reload or start",
            fix="To keep what is on /etc/pve: 'systemctl restart pve-cluster'. To keep the host's: bring it to /etc/pve with "
            f"config_version {cluster + 1}, as a copy named .new that is edited and renamed",
            code=_DIFF,
            nodes=nodes,
        )
    if host > cluster:
        return HOST_NEWER(
            seen,
            means="the daemon leaves both as they are ('local corosync.conf is newer'), so they stay different",
            fix=f"Bring the one that is right to /etc/pve with config_version {host + 1}, as a copy named .new that is edited "
            "and renamed",
            code=_DIFF,
            nodes=nodes,
        )
    return HOST_OLDER(
        seen,
        severity=PROBLEM if quorate else WARNING,
        means="corosync would start with the old text; the daemon copies the new one as soon as it has quorum",
        nodes=nodes,
    )


def running(runs: object, file: object, nodes: Iterable[str] = ()) -> Finding | None:
    """``runs``: the config_version that Corosync runs with, ``file``: that of its file. None where one is not known."""
    runs, file = version_told(runs), version_told(file)
    if not runs or not file or runs == file:
        return None
    return RUNNING_DIFFERS(
        f"corosync runs config_version {runs}, the file has {file}",
        means="the reload came before the new text, or was refused" if runs < file else "the file was put back later",
        nodes=nodes,
    )


def authkey(exposed: bool, mode: str | None) -> Finding | None:
    """``exposed``: others than root can read the key. ``mode``: its mode, as text."""
    if not exposed:
        return None
    return AUTHKEY_EXPOSED(
        f"/etc/corosync/authkey has mode {mode} or another owner than root: whoever reads it can join the traffic of the cluster"
    )


def probe(cluster: str | None) -> Finding:
    """The node is a probe of ``cluster``."""
    return PROBE(f"a probe of {cluster}: it watches, and nothing depends on it")
